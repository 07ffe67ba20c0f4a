"""What is refused before it is written: each limit at its boundary, by the request's field."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.task.run_pb2 import RunSpec

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client, open_etcd
from etcd_actions.actions.validation import MOST_BYTES
from etcd_actions.codecs import CODEC_NAMES
from etcd_actions.errors import InvalidArgument
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import ErrorState, Keyspace
from etcd_actions.testing import EtcdFactory
from tests.support import flyte
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")

Edit = Callable[[Action, str], None]


async def refused(
    client: ActionsClient,
    action: Action,
    run_spec: RunSpec | None = None,
    trace_error: ErrorState | None = None,
) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as raised:
        await client.enqueue(action, run_spec, trace_error=trace_error)
    return raised.value


async def is_empty(etcd: Etcd, prefix: bytes) -> bool:
    """Whether nothing at all was written."""
    keys = Keyspace(prefix)
    found = [await etcd.range(KeyRange.of_prefix(each)) for each in (prefix, keys.own)]
    return not any(each.total for each in found)


# --- lengths: good at the limit, refused one above --------------------------------------


def _run(action: Action, text: str) -> None:
    action.action_id.run.name = text


def _project(action: Action, text: str) -> None:
    action.action_id.run.project = text


def _domain(action: Action, text: str) -> None:
    action.action_id.run.domain = text


def _name(action: Action, text: str) -> None:
    action.action_id.name = text


def _cache_key(action: Action, text: str) -> None:
    action.task.cache_key.value = text


def _task_type(action: Action, text: str) -> None:
    action.task.spec.task_template.type = text


def _short_name(action: Action, text: str) -> None:
    action.task.spec.short_name = text


def _group(action: Action, text: str) -> None:
    action.group = text


LENGTHS: list[tuple[str, Edit, int]] = [
    ("action_id.run.name", _run, 30),
    ("action_id.run.project", _project, 63),
    ("action_id.run.domain", _domain, 63),
    ("action_id.name", _name, 30),
    ("task.cache_key", _cache_key, 256),
    ("task.spec.task_template.type", _task_type, 63),
    ("task.spec.short_name", _short_name, 63),
    ("group", _group, 256),
]


@pytest.mark.parametrize(("field", "edit", "most"), LENGTHS, ids=[each[0] for each in LENGTHS])
async def test_lengths(
    client: ActionsClient, etcd: Etcd, prefix: bytes, field: str, edit: Edit, most: int
) -> None:
    """Defect 7: the SDK fails at once, where Flyte's own service has it try 100 times."""
    action = flyte.task(ROOT)
    edit(action, "x" * (most + 1))
    error = await refused(client, action)
    assert error.field == field
    assert f"{most + 1} characters" in error.reason
    assert await is_empty(etcd, prefix)
    edit(action, "x" * most)
    assert (await client.enqueue(action)).created


async def test_characters_count_not_bytes(client: ActionsClient) -> None:
    """As in the schema of a Kubernetes API server."""
    action = flyte.task(ROOT)
    action.group = "é" * 256
    assert (await client.enqueue(action)).action.spec.group == "é" * 256


async def test_the_length_of_a_parents_name(client: ActionsClient) -> None:
    """It is refused for its length, not because there is no such parent."""
    longest = ActionId("p", "d", "r1", "x" * 30)
    await client.enqueue(flyte.task(longest))
    assert (await client.enqueue(flyte.task(CHILD, "x" * 30))).created
    error = await refused(client, flyte.task(CHILD, "x" * 31))
    assert error.field == "parent_action_name"


@pytest.mark.parametrize(
    ("field", "edit"), [each[:2] for each in LENGTHS[:4]], ids=[each[0] for each in LENGTHS[:4]]
)
@pytest.mark.parametrize("text", ["", "a/b", "/"])
async def test_empty_names_and_slashes(
    client: ActionsClient, etcd: Etcd, prefix: bytes, field: str, edit: Edit, text: str
) -> None:
    """They would make the key another one."""
    action = flyte.task(ROOT)
    edit(action, text)
    assert (await refused(client, action)).field == field
    assert await is_empty(etcd, prefix)


@pytest.mark.parametrize("name", ["A0", "a_0", "-a", "a-", "a.", "a..b", "a b", "é", "a\n", "a\0"])
async def test_names_that_are_no_names_of_objects(
    client: ActionsClient, etcd: Etcd, prefix: bytes, name: str
) -> None:
    """Of an action, and of a run; a leading dash of an action is in the middle of the name."""
    if name != "-a":
        assert (await refused(client, flyte.task(ActionId("p", "d", "r1", name)))).field in (
            "action_id",
            "action_id.name",
        )
    if name != "a-":
        error = await refused(client, flyte.task(ActionId("p", "d", name, "a0")))
        assert error.field in ("action_id", "action_id.run.name")
    assert await is_empty(etcd, prefix)


@pytest.mark.parametrize("part", ["project", "domain"])
@pytest.mark.parametrize("text", ["-p", "p-", "p q", "p:q", "é"])
async def test_projects_and_domains_are_labels(
    client: ActionsClient, etcd: Etcd, prefix: bytes, part: str, text: str
) -> None:
    """An API server serves an object with an invalid label, and never changes it again."""
    action = flyte.task(ROOT)
    setattr(action.action_id.run, part, text)
    assert (await refused(client, action)).field == f"action_id.run.{part}"
    assert await is_empty(etcd, prefix)


# --- what is missing -----------------------------------------------------------------------


async def test_unset_parts(client: ActionsClient, etcd: Etcd, prefix: bytes) -> None:
    """Flyte's service takes an unset spec for done, and fails with a nil pointer on the others."""
    nameless = flyte.task(ROOT)
    nameless.ClearField("action_id")
    assert (await refused(client, nameless)).field == "action_id"
    runless = flyte.task(ROOT)
    runless.action_id.ClearField("run")
    assert (await refused(client, runless)).field == "action_id.run"
    empty = flyte.task(ROOT)
    empty.ClearField("task")
    assert (await refused(client, empty)).field == "spec"
    assert await is_empty(etcd, prefix)


@pytest.mark.parametrize("parent", ["a/b", "/"])
async def test_a_parent_with_a_slash(client: ActionsClient, parent: str) -> None:
    assert (await refused(client, flyte.task(CHILD, parent))).field == "parent_action_name"


@pytest.mark.parametrize("name", ["a0", "r1"])
async def test_its_own_parent(client: ActionsClient, name: str) -> None:
    """Also by the root's other name."""
    assert (await refused(client, flyte.task(ROOT, name))).field == "parent_action_name"


# --- labels and annotations ---------------------------------------------------------------

GOOD_NAMES = [
    "a",
    "A9",
    "a-b_c.D",
    "x" * 63,
    "example.org/a",
    "a-b.example.org/" + "x" * 63,
    ".".join(["x" * 62] * 4) + "xx/a",
]
BAD_NAMES = [
    "",
    "-a",
    "a-",
    "a b",
    "é",
    "a\n",
    "x" * 64,
    "/a",
    "example.org/",
    "a/b/c",
    "-example.org/a",
    "example..org/a",
    ".".join(["x" * 62] * 4) + "xxx/a",
]


async def test_good_names_of_labels_and_annotations(client: ActionsClient) -> None:
    run_spec = RunSpec()
    for name in GOOD_NAMES:
        run_spec.labels.values[name] = "v"
        run_spec.annotations.values[name] = "any text: é \n"
    # An API server compares the names of annotations in lower case.
    run_spec.annotations.values["Example.org/a"] = ""
    action = (await client.enqueue(flyte.task(ROOT), run_spec)).action
    assert set(GOOD_NAMES) <= set(action.metadata.labels)
    assert {*GOOD_NAMES, "Example.org/a"} <= set(action.metadata.annotations)


@pytest.mark.parametrize("name", [*BAD_NAMES, "Example.org/a"])
async def test_bad_names_of_labels(
    client: ActionsClient, etcd: Etcd, prefix: bytes, name: str
) -> None:
    run_spec = RunSpec()
    run_spec.labels.values[name] = "v"
    error = await refused(client, flyte.task(ROOT), run_spec)
    assert error.field == f"run_spec.labels[{name[:80]}]"
    assert await is_empty(etcd, prefix)


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_bad_names_of_annotations(
    client: ActionsClient, etcd: Etcd, prefix: bytes, name: str
) -> None:
    run_spec = RunSpec()
    run_spec.annotations.values[name] = "v"
    error = await refused(client, flyte.task(ROOT), run_spec)
    assert error.field == f"run_spec.annotations[{name[:80]}]"
    assert await is_empty(etcd, prefix)


async def test_values_of_labels(client: ActionsClient, etcd: Etcd, prefix: bytes) -> None:
    """At most 63 of few characters; none is fine."""
    run_spec = RunSpec()
    for text in ("x" * 64, "-a", "a-", "a b", "a/b", "é", "a\n"):
        run_spec.labels.values["team"] = text
        assert (await refused(client, flyte.task(ROOT), run_spec)).field == "run_spec.labels[team]"
    assert await is_empty(etcd, prefix)
    good = {"long": "x" * 63, "empty": "", "mixed": "A-b_c.9"}
    run_spec.labels.values.clear()
    run_spec.labels.values.update(good)
    stored = (await client.enqueue(flyte.task(ROOT), run_spec)).action.metadata.labels
    assert good.items() <= stored.items()


@pytest.mark.parametrize(
    "label",
    [
        "flyte.org/terminal-status-recorded",
        "flyte.org/termination-status",
        "flyte.org/completed-time",
        "etcd-actions.io/any",
    ],
)
async def test_labels_that_say_how_an_action_ended(
    client: ActionsClient, etcd: Etcd, prefix: bytes, label: str
) -> None:
    """Nobody would be told of such an action, or it would be deleted while it runs."""
    run_spec = RunSpec()
    run_spec.labels.values[label] = "true"
    error = await refused(client, flyte.task(ROOT), run_spec)
    assert error.field == f"run_spec.labels[{label}]"
    assert await is_empty(etcd, prefix)


async def test_annotations_of_ours(client: ActionsClient, etcd: Etcd, prefix: bytes) -> None:
    """With them a caller could make the action another organisation's."""
    run_spec = RunSpec()
    run_spec.annotations.values["etcd-actions.io/org"] = "other"
    error = await refused(client, flyte.task(ROOT), run_spec)
    assert error.field == "run_spec.annotations[etcd-actions.io/org]"
    assert await is_empty(etcd, prefix)


async def test_the_size_of_all_annotations(client: ActionsClient) -> None:
    """Keys and values, in bytes, ours among them: at most 256 KiB."""
    run_spec = RunSpec()
    run_spec.run_start_time.FromJsonString("2026-11-23T16:00:00Z")
    plain = (await client.enqueue(flyte.task(ROOT), run_spec)).action.metadata.annotations
    ours = sum(len(name) + len(text) for name, text in plain.items())
    left = 256 * 1024 - ours - len("note")
    other = ActionId("p", "d", "r2", "a0")
    run_spec.annotations.values["note"] = "x" * (left - 1) + "é"
    error = await refused(client, flyte.task(other), run_spec)
    assert error.field == "run_spec.annotations"
    assert "262145 bytes" in error.reason
    run_spec.annotations.values["note"] = "x" * left
    assert (await client.enqueue(flyte.task(other), run_spec)).created


# --- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
async def test_the_size_of_an_object(etcd: Etcd, prefix: bytes, codec: str) -> None:
    """Defect 14: refused as the argument that it is, and what fits has room for its end.

    RESOURCE_EXHAUSTED would be tried for ever, and an action that cannot be changed any more
    would never end.
    """
    async with open_actions_client(etcd, prefix=prefix, codec=codec) as client:
        action = flyte.task(ROOT)
        action.input_uri = "x" * MOST_BYTES
        error = await refused(client, action)
        assert error.field == "task"
        assert "make it smaller" in error.reason
        assert await is_empty(etcd, prefix)
        size = int(error.reason.split()[3])
        action.input_uri = "x" * (MOST_BYTES - (size - MOST_BYTES))
        assert (await client.enqueue(action)).created
        kv = (await etcd.range(KeyRange.of_prefix(prefix))).kvs[0]
        assert len(kv.value) == MOST_BYTES
        message = ErrorState(code="X", kind="USER", message="x" * 32768)
        await client.put_status(ROOT, 1, flyte.status(Phase.FAILED), error=message)
        assert (await client.get_task_action(ROOT)).phase is Phase.FAILED


async def test_an_etcd_that_takes_less(etcd_factory: EtcdFactory) -> None:
    """Its own limit is an error of the argument, too."""
    own = etcd_factory(flags=["--max-request-bytes=20000"])
    async with open_etcd(own.endpoint) as etcd, open_actions_client(etcd) as client:
        action = flyte.task(ROOT)
        action.input_uri = "x" * 25000
        error = await refused(client, action)
        assert error.field == "task"
        assert "--max-request-bytes" in error.reason
        action.input_uri = "x" * 15000
        assert (await client.enqueue(action)).created


# --- kinds --------------------------------------------------------------------------------


async def test_times_beyond_the_calendar(client: ActionsClient) -> None:
    """A time that no clock shows is refused by its field."""
    run_spec = RunSpec()
    run_spec.run_start_time.seconds = 253402300800
    error = await refused(client, flyte.task(ROOT), run_spec)
    assert error.field == "run_spec.run_start_time"
    await client.enqueue(flyte.task(ROOT))
    for field in ("start_time", "end_time"):
        trace = flyte.trace(CHILD, "a0")
        getattr(trace.trace, field).seconds = -62135596801
        assert (await refused(client, trace)).field == f"trace.{field}"


async def test_traces(client: ActionsClient) -> None:
    """What only a trace has: a phase of its own, a parent, an error when it failed."""
    await client.enqueue(flyte.task(ROOT))
    unknown = flyte.trace(CHILD, "a0")
    unknown.trace.phase = 77
    assert (await refused(client, unknown)).field == "trace.phase"
    assert (await refused(client, flyte.trace(CHILD, ""))).field == "parent_action_name"
    error = ErrorState(code="X", kind="USER", message="no")
    succeeded = flyte.trace(CHILD, "a0")
    assert (await refused(client, succeeded, trace_error=error)).field == "trace_error"
    assert (await refused(client, flyte.task(CHILD, "a0"), trace_error=error)).field == (
        "trace_error"
    )
