"""What counts as a reference to an upload: in which form, and in which place."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec
import pytest
from flyteidl2.core.literals_pb2 import Blob, Literal, Scalar
from flyteidl2.task.common_pb2 import Inputs, NamedLiteral
from flyteidl2.task.run_pb2 import RunSpec
from flyteidl2.task.task_definition_pb2 import TaskSpec
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions import Phase
from etcd_actions.actions.status import ActionStatus
from etcd_actions.blobs.references import ReferenceFinder, References
from etcd_actions.blobs.upload_keys import parse_trash, trash_key, unit_of
from etcd_actions.catalog import Entry
from etcd_actions.catalog.cached_result import encode as encode_entry
from etcd_actions.images import StoredImage
from etcd_actions.registry.task_record import TaskId, TaskRecord, task_key
from etcd_actions.registry.task_record import encode as encode_task
from etcd_actions.runs.run_record import ActionHistory, Attempt, encode
from etcd_actions.uploads import SweepResult
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.table import table
from tests.uploads.world import KEEP, ROOT, World

NAME = "0123456789abcdef"
DIGEST = "ab" * 16
KEY = f"uploads/p/d/{NAME}/content/{DIGEST}/code.tar.gz"
UNIT = f"content/{DIGEST}"


def keeps(data: bytes, unit: str = UNIT) -> bool:
    return References(ReferenceFinder(NAME).find(data)).keeps(unit)


def literal(uri: str) -> bytes:
    """A message of inputs, with a File."""
    value = Literal(scalar=Scalar(blob=Blob(uri=uri)))
    data: bytes = Inputs(literals=[NamedLiteral(name="f", value=value)]).SerializeToString()
    return data


def spec_of(uri: str) -> TaskSpec:
    spec = TaskSpec()
    spec.task_template.container.args[:] = ["a0", "--tgz", uri, "--dest", "."]
    return spec


@table(
    "text",
    [
        f"/blobs/{KEY}",
        f"s3://bucket/x/{KEY}",
        f"file:///blobs/{KEY}".replace("/", "//"),
        f"/blobs/./{KEY}".replace("/content/", "/./content/./"),
        json.dumps(f"/blobs/{KEY}").replace("/", "\\/"),
        f"https://x/?at=/blobs/{KEY}".replace("/", "%2F"),
        f"/blobs/{KEY}".replace("/p/d/", "/%70/%64/"),
        f"/blobs/{KEY}"[: -len("/code.tar.gz")],
        f"/blobs/{KEY}"[: -len(f"{DIGEST}/code.tar.gz")],
        f"/blobs/uploads/p/d/{NAME}",
    ],
)
def test_however_a_url_is_written_it_is_a_reference(text: str) -> None:
    assert keeps(text.encode())
    assert keeps(b"\x0a\x20" + text.encode() + b"2\x04abc")


@table("depth", [1, 2, 3])
@table("before", range(5))
@table("encode_it", [base64.b64encode, base64.urlsafe_b64encode])
def test_bytes_in_json_are_searched(
    depth: int, before: int, encode_it: Callable[[bytes], bytes]
) -> None:
    for key, kept in ((KEY, True), (KEY.replace(DIGEST, "cd" * 16), False)):
        data = literal(f"/blobs/{key}")
        for _ in range(depth):
            data = b'{"a":"' + encode_it(b"?" * before + data) + b'","b":"zzzz"}'
        assert keeps(data) is kept


@given(st.binary(max_size=60), st.binary(max_size=60), st.lists(st.integers(0, 5), max_size=3))
def test_whatever_is_around_it_it_is_found(before: bytes, after: bytes, layers: list[int]) -> None:
    data = before + f"/blobs/{KEY}".encode() + after
    for layer in layers:
        text = base64.b64encode(bytes(layer) + data)
        data = msgspec.json.encode({"k": text.decode()})
    assert keeps(data)


@pytest.mark.parametrize(
    "other",
    [
        KEY.replace(NAME, "f" * 16),
        KEY.replace(DIGEST, "cd" * 16),
        KEY.replace("content", "named"),
        f"inputs/p/d/{NAME}/{DIGEST}/inputs.pb",
        f"uploads/p/d/content/{DIGEST}/code.tar.gz",
    ],
)
def test_what_is_of_another_upload_is_no_reference(other: str) -> None:
    assert not keeps(f"/blobs/{other}".encode())


@table(
    ("name", "text", "kept"),
    [
        ("dir", "dir", True),
        ("dir", "dir/a/b", True),
        ("dir", "dir2", True),
        ("dir2", "dir", True),
        ("dir", "other", False),
        ("a b", "a%20b/x", True),
        ("ü", "\\u00fc", True),
        ("ü", "x", True),
        ("x", "", True),
    ],
)
def test_a_name_of_ones_own_is_a_reference_as_far_as_it_can_be_read(
    name: str, text: str, kept: bool
) -> None:
    data = f"/blobs/uploads/p/d/{NAME}/named/{text}".encode() + b"\x12\x04"
    assert keeps(data, f"named/{name}") is kept


@table(
    ("key", "unit"),
    [
        (KEY, UNIT),
        (f"uploads/p/d/{NAME}/named/x/y/z", "named/x"),
        (f"inputs/p/d/{NAME}/{DIGEST}/inputs.pb", f"inputs/{DIGEST}"),
        (f"uploads/p/d/content/{DIGEST}/code.tar.gz", None),
        (KEY.replace(NAME, "f" * 16), None),
        (KEY.replace(DIGEST, "x"), None),
        (f"uploads/p/d/{NAME}/named/x", None),
        (f"inputs/p/d/{NAME}/run/inputs.pb", None),
        (f"runs/p/d/{NAME}/content/{DIGEST}/x", None),
    ],
)
def test_only_what_is_ours_is_a_unit(key: str, unit: str | None) -> None:
    assert unit_of(key, NAME) == unit


def test_what_is_in_the_trash_says_where_it_was() -> None:
    assert parse_trash(trash_key(NAME, 17, KEY)) == (17, KEY)
    assert parse_trash(f"trash/{NAME}/x/{KEY}") is None
    assert parse_trash(f"trash/{NAME}/17") is None
    assert parse_trash(f"runs/{NAME}/17/{KEY}") is None


# Each of these makes one reference to an upload, and nothing else does.

Refer = Callable[[World, str], Awaitable[object]]


async def _enqueue(
    world: World, spec: TaskSpec | None = None, input_uri: str = "", *, succeeded: bool = False
) -> None:
    action = flyte.task(ROOT)
    action.input_uri = input_uri or world.blobs.native_url("runs/none/inputs.pb")
    action.run_output_base = world.blobs.native_url("runs/p/d/r1")
    if spec is not None:
        action.task.spec.task_template.container.CopyFrom(spec.task_template.container)
    await world.client.enqueue(action)
    if succeeded:
        await world.client.put_status(ROOT, 1, ActionStatus(Phase.SUCCEEDED))


async def an_action_has_it_as_code(world: World, url: str) -> None:
    await _enqueue(world, spec_of(url))


async def an_action_has_it_as_input(world: World, url: str) -> None:
    await _enqueue(world, input_uri=await world.put("runs/p/d/r1/c1/inputs.pb", literal(url)))


async def an_action_that_goes_on_has_it_as_output(world: World, url: str) -> None:
    await world.put("runs/p/d/r1/a0/1/outputs.pb", literal(url))
    await _enqueue(world)


async def an_action_that_is_over_has_it_as_output(world: World, url: str) -> None:
    await world.put("runs/p/d/r1/a0/1/outputs.pb", literal(url))
    await _enqueue(world, succeeded=True)


async def a_run_has_it_as_input(world: World, url: str) -> None:
    await world.record(input_uri=await world.inputs(literal(url)))


async def a_run_has_it_as_code(world: World, url: str) -> None:
    await world.etcd.put(world.keys.run_task(ROOT), spec_of(url).SerializeToString())


async def a_run_has_it_in_a_variable(world: World, url: str) -> None:
    spec = RunSpec()
    spec.envs.values.add(key="DATA", value=url)
    await world.record(run_spec=spec.SerializeToString())


async def a_run_had_it_as_output(world: World, url: str) -> None:
    await world.put("runs/p/d/r1/a0/1/outputs.pb", literal(url))
    attempt = Attempt(
        number=1, phase=Phase.SUCCEEDED, output_uri=world.blobs.native_url("runs/p/d/r1/a0/1")
    )
    history = ActionHistory(project="p", domain="d", run="r1", name="a0", attempts=(attempt,))
    await world.etcd.put(world.keys.history(ROOT), encode(history))


async def a_deployed_task_has_it_as_code(world: World, url: str) -> None:
    record = TaskRecord(
        project="p",
        domain="d",
        name="n",
        version="v",
        deployed=world.now,
        updated=world.now,
        spec=spec_of(url).SerializeToString(),
    )
    await world.etcd.put(
        task_key(world.keys.tasks, TaskId("p", "d", "n", "v")), encode_task(record)
    )


def _entry(world: World, **fields: object) -> bytes:
    made = {
        "cache_key": "k",
        "project": "p",
        "domain": "d",
        "run": "r1",
        "action": "a0",
        "attempt": 1,
        "created": world.now,
        "kept_until": world.now,
    } | fields
    return encode_entry(Entry(**made))  # type: ignore[arg-type]


async def a_cached_result_has_it_within(world: World, url: str) -> None:
    await world.etcd.put(world.keys.catalog + b"entries/k", _entry(world, outputs=literal(url)))


async def a_cached_result_has_it_in_its_file(world: World, url: str) -> None:
    directory = "runs/p/d/r1/a0/1"
    await world.put(f"{directory}/outputs.pb", literal(url))
    entry = _entry(world, output_uri=world.blobs.native_url(directory))
    await world.etcd.put(world.keys.catalog + b"entries/k", entry)


async def an_image_has_it_as_context(world: World, url: str) -> None:
    world.now += KEEP * 3
    await world.images.put(StoredImage(name="n:t", spec=b"", context_uri=url, context_digest="0"))
    world.now -= KEEP * 3


async def a_kind_of_record_that_is_not_known_names_it(world: World, url: str) -> None:
    value = msgspec.json.encode({"later": literal(url)})
    await world.etcd.put(world.keys.own + b"later/x", value)


REFERRERS: list[Refer] = [
    an_action_has_it_as_code,
    an_action_has_it_as_input,
    an_action_that_goes_on_has_it_as_output,
    an_action_that_is_over_has_it_as_output,
    a_run_has_it_as_input,
    a_run_has_it_as_code,
    a_run_has_it_in_a_variable,
    a_run_had_it_as_output,
    a_deployed_task_has_it_as_code,
    a_cached_result_has_it_within,
    a_cached_result_has_it_in_its_file,
    an_image_has_it_as_context,
    a_kind_of_record_that_is_not_known_names_it,
]


@pytest.mark.parametrize("refer", first_everyday(REFERRERS, 2))
async def test_what_refers_to_an_upload_keeps_it(world: World, refer: Refer) -> None:
    key = await world.upload()
    other = await world.upload(b"other")
    await refer(world, world.blobs.native_url(key))
    world.now += KEEP * 2
    await world.sweeps()
    assert await world.there(key)
    assert not await world.there(other)
    # It was this reference that kept it.
    await world.forget()
    await world.sweeps()
    assert not await world.there(key)


async def test_what_was_uploaded_for_a_run_that_is_to_be_created_stays(world: World) -> None:
    key = await world.upload()
    world.now += KEEP * 2
    later = (world.now - timedelta(minutes=1)).timestamp()
    inputs = await world.inputs(literal(world.blobs.native_url(key)))
    os.utime(inputs, (later, later))
    # It is not even moved for a moment.
    assert await world.sweeps() == SweepResult()
    assert await world.there(key)


async def test_a_directory_is_kept_as_a_whole(world: World) -> None:
    kept = [await world.named("here", each) for each in ("a", "b/c")]
    gone = await world.named("there", "a")
    url = world.blobs.native_url(f"uploads/p/d/{world.deployment}/named/here")
    await _enqueue(world, input_uri=await world.inputs(literal(url)))
    world.now += KEEP * 2
    await world.sweeps()
    assert [await world.there(each) for each in kept] == [True, True]
    assert not await world.there(gone)


async def test_inputs_without_a_run_are_collected(world: World) -> None:
    await world.inputs(b"orphan")
    kept = await world.inputs(b"named")
    await world.record(input_uri=kept)
    world.now += KEEP * 2
    await world.sweeps()
    assert [world.blobs.native_url(each) for each in await world.stored()] == [kept]
