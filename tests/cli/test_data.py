"""``logs`` and ``io``: logs, inputs and outputs, on this machine and through the service."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
from flyteidl2.core.literals_pb2 import (
    Binary,
    Blob,
    Literal,
    LiteralCollection,
    LiteralMap,
    Primitive,
    Scalar,
    Union,
    Void,
)
from flyteidl2.task.common_pb2 import Inputs, NamedLiteral, Outputs
from flyteidl2.workflow.run_definition_pb2 import ActionDetails, RunDetails
from google.protobuf.struct_pb2 import NULL_VALUE

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.blobs import open_blob_store
from etcd_actions.cli.commands.report import as_json
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.formats.literals import plain_value
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.attempt_log import LocalLogs
from etcd_actions.executor.supervision.bounded_log import LOG
from etcd_actions.runs.run_index import open_run_index
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.attempt_logs import LogSources
from etcd_actions.web import Bind
from tests.cli.command import Finished, finish, running
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually

ROOT = ActionId("p", "d", "r1", "a0")


def text(value: str) -> Literal:
    return Literal(scalar=Scalar(primitive=Primitive(string_value=value)))


def number(value: int) -> Literal:
    return Literal(scalar=Scalar(primitive=Primitive(integer=value)))


class Site:
    """A task of a run with its log and data, and the flags of the commands."""

    def __init__(self, client: ActionsClient, folder: Path, *flags: str) -> None:
        self.client = client
        self.folder = folder
        self.flags = flags
        self.state = folder / "executor"
        self.blobs = open_blob_store(folder / "blobs")

    async def start(self) -> None:
        """Have the root run in its first attempt."""
        action = flyte.task(ROOT)
        action.input_uri = self.blobs.native_url("inputs/p/d/x/y/inputs.pb")
        action.run_output_base = self.blobs.native_url("runs/p/d/r1")
        inputs = Inputs(literals=[NamedLiteral(name="count", value=number(4))])
        await self.put("inputs/p/d/x/y/inputs.pb", inputs.SerializeToString())
        await self.client.enqueue(action)
        await self.client.put_status(ROOT, 1, flyte.status(Phase.RUNNING))

    async def put(self, key: str, data: bytes) -> None:
        async def parts() -> AsyncIterator[bytes]:
            yield data

        await self.blobs.put(key, parts(), most=1 << 20)

    async def write(self, attempt: int, lines: Iterable[str]) -> None:
        """Append to the log of an attempt."""
        incarnation = (await self.client.get_task_action(ROOT)).incarnation
        place = AttemptDirectory(self.state, incarnation, attempt).path
        place.mkdir(parents=True, exist_ok=True)
        with (place / LOG).open("a") as log:
            log.writelines(f"{line}\n" for line in lines)

    async def finish(self, *arguments: str) -> Finished:
        return await trio.to_thread.run_sync(partial(finish, *arguments, *self.flags))


@pytest.fixture(params=["etcd", "service"])
async def site(
    request: pytest.FixtureRequest,
    etcd: Etcd,
    shared_etcd: EtcdServer,
    prefix: bytes,
    tmp_path: Path,
) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_actions_client(etcd, prefix=prefix))
        here = ("--blob-dir", str(tmp_path / "blobs"), "--log-level", "error")
        if request.param == "etcd":
            flags = ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
            directory = ("--executor-state-dir", str(tmp_path / "executor"))
            yield Site(client, tmp_path, *flags, *here, *directory)
            return
        index = await stack.enter_async_context(open_run_index(etcd, client.keys))
        front = FrontDoor(
            client=client,
            keepalive=30,
            blobs=open_blob_store(tmp_path / "blobs"),
            index=index,
            logs=LogSources(client=client, source=LocalLogs(tmp_path / "executor")),
        )
        settings = ServerSettings(bind=Bind("127.0.0.1", 0))
        server = await stack.enter_async_context(open_actions_server(client, settings, front=front))
        yield Site(client, tmp_path, "--service", str(server.address))


@pytest.mark.slow
async def test_the_log_of_an_attempt(site: Site) -> None:
    await site.start()
    await site.write(1, ["one", "two", "three"])
    name = "p/d/r1/a0"
    running_one = await site.finish("logs", name)
    assert (running_one.code, running_one.out) == (ExitCode.OK, "one\ntwo\nthree\n")
    await site.client.put_status(ROOT, 2, flyte.status(Phase.RUNNING, 2))
    await site.write(2, ["again"])
    assert (await site.finish("logs", name)).out == "again\n"
    first = await site.finish("logs", name, "--attempt", "1", "--tail", "2")
    assert (first.code, first.out, first.err) == (ExitCode.OK, "two\nthree\n", "")
    missing = await site.finish("logs", "p/d/r1/nowhere")
    assert (missing.code, missing.out) == (ExitCode.NOT_FOUND, "")
    await site.client.put_status(ROOT, 2, flyte.status(Phase.SUCCEEDED, 2))
    later = await site.finish("logs", name, "--attempt", "3")
    assert later.code == ExitCode.NOT_FOUND
    assert "there is no attempt 3" in later.err


@pytest.mark.slow
async def test_a_log_is_followed_through_its_attempts(site: Site) -> None:
    await site.start()
    await site.write(1, ["old", "one"])
    with running(site.folder, "logs", "p/d/r1/a0", "-f", "--tail", "1", *site.flags) as following:
        out = next(site.folder.glob("*.out"))
        await following.until(lambda: out.read_text() == "one\n")
        await site.write(1, ["two"])
        await following.until(lambda: out.read_text() == "one\ntwo\n")
        await site.client.put_status(ROOT, 2, flyte.status(Phase.RUNNING, 2))
        await site.write(2, ["three"])
        await following.until(lambda: out.read_text() == "one\ntwo\nthree\n")
        await site.client.put_status(ROOT, 2, flyte.status(Phase.SUCCEEDED, 2))
        assert await following.wait() == ExitCode.OK, following.err
        assert out.read_text() == "one\ntwo\nthree\n"


@pytest.mark.slow
async def test_a_signal_ends_what_follows(site: Site) -> None:
    await site.start()
    await site.write(1, ["one"])
    with running(site.folder, "logs", "p/d/r1/a0", "-f", *site.flags) as following:
        out = next(site.folder.glob("*.out"))
        await eventually(lambda: out.read_text() == "one\n", within=30)
        following.signal(signal.SIGINT)
        assert await following.wait() == ExitCode.OK, following.err


@pytest.mark.slow
async def test_a_log_that_is_not_here(site: Site) -> None:
    """The message says where it is."""
    await site.start()
    await site.client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
    done = await site.finish("logs", "p/d/r1/a0")
    assert (done.code, done.out) == (ExitCode.NOT_FOUND, "")
    assert "it is in the state directory of the executor that ran it" in done.err


@pytest.mark.slow
async def test_inputs_and_outputs(site: Site) -> None:
    await site.start()
    shown = await site.finish("io", "p/d/r1/a0", "-o", "table")
    uri = site.blobs.native_url("inputs/p/d/x/y/inputs.pb")
    assert (shown.code, shown.out) == (
        ExitCode.OK,
        f"inputs:  ({uri})\n  count: 4\noutputs: none: the action is RUNNING\n",
    )
    await site.client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
    action = await site.client.get_task_action(ROOT)
    key = site.blobs.key_of(action.output_uri)
    outputs = Outputs(literals=[NamedLiteral(name="o0", value=text("done"))])
    await site.put(f"{key}/outputs.pb", outputs.SerializeToString())
    document = json.loads((await site.finish("io", "p/d/r1/a0")).out)
    assert document == {
        "action": "p/d/r1/a0",
        "phase": "SUCCEEDED",
        "inputs": {"count": 4},
        "inputs_uri": uri,
        "outputs": {"o0": "done"},
        "outputs_uri": f"{action.output_uri}/outputs.pb",
    }
    only = json.loads((await site.finish("io", "p/d/r1/a0", "--outputs")).out)
    assert "inputs" not in only
    assert only["outputs"] == {"o0": "done"}
    gone = await site.finish("io", "p/d/r1/nowhere")
    assert gone.code == ExitCode.NOT_FOUND


def binary(value: Any) -> Literal:
    packed = Binary(value=msgpack.packb(value), tag="msgpack")
    return Literal(scalar=Scalar(binary=packed))


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (number(3), 3),
        (text("x"), "x"),
        (Literal(scalar=Scalar(primitive=Primitive(boolean=False))), False),
        (Literal(scalar=Scalar(primitive=Primitive(float_value=math.nan))), "nan"),
        (Literal(scalar=Scalar(none_type=Void())), None),
        (Literal(), None),
        (Literal(scalar=Scalar(union=Union(value=number(1)))), 1),
        (Literal(collection=LiteralCollection(literals=[number(1), text("a")])), [1, "a"]),
        (Literal(map=LiteralMap(literals={"k": number(1)})), {"k": 1}),
        (Literal(scalar=Scalar(blob=Blob(uri="s3://b/k"))), {"uri": "s3://b/k", "format": ""}),
        (binary({"a": [1, {"b": None}], "c": b"\x00"}), {"a": [1, {"b": None}], "c": "AA=="}),
        (
            Literal(scalar=Scalar(binary=Binary(value=b"\xc1", tag="msgpack"))),
            {"base64": "wQ==", "tag": "msgpack, which cannot be decoded"},
        ),
    ],
)
def test_a_literal_as_a_value(literal: Literal, value: object) -> None:
    found = plain_value(literal)
    assert found == value
    assert type(found) is type(value)
    json.dumps(found, allow_nan=False)


def test_a_deep_value_is_shown_in_part() -> None:
    value: list[Any] = []
    for _ in range(200):
        value = [value]
    assert "nested too deeply" in json.dumps(plain_value(binary(value)))


def test_values_that_json_or_protobuf_refuse_are_shown() -> None:
    generic, late, keys = Literal(), Literal(), Literal()
    fields = generic.scalar.generic.fields
    fields["nan"].number_value = math.nan
    fields["one"].number_value = 1
    fields["list"].list_value.values.add(number_value=math.inf)
    fields["none"].null_value = NULL_VALUE
    assert plain_value(generic) == {"nan": "nan", "one": 1, "list": ["inf"], "none": None}
    late.scalar.primitive.datetime.seconds = 10**15
    assert "no valid datetime" in plain_value(late)
    keys.scalar.binary.tag, keys.scalar.binary.value = "msgpack", b"\x81\x90\x01"
    assert plain_value(keys)["tag"] == "msgpack, which cannot be decoded"


def test_details_of_a_task_with_a_number_that_json_has_not_are_in_a_report_without_the_task() -> (
    None
):
    details = ActionDetails(metadata={"group": "g"})
    details.task.task_template.custom.fields["nan"].number_value = math.nan
    assert as_json(details) == {"metadata": {"group": "g"}}
    assert as_json(RunDetails(action=details)) == {"action": {"metadata": {"group": "g"}}}
    assert details.HasField("task")
