"""``enqueue``, ``abort``, ``signal`` and ``status``: straight on etcd, and through the service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb
from google.protobuf.json_format import MessageToJson

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.cli.commands.mutations import literal_of, read_request
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.errors import ConfigError, InputError
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import ErrorState
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.web import Bind
from tests.cli.command import Finished, finish
from tests.support import flyte
from tests.support.etcd_server import EtcdServer, free_port
from tests.support.table import table

# Each starts processes.
pytestmark = pytest.mark.slow

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")
GATE = ActionId("p", "d", "r1", "gate")
TOKEN = "the-token-of-this-test"


class Site:
    """Where the commands go, and the client that sees what came of it."""

    def __init__(self, client: ActionsClient, directory: Path, *flags: str) -> None:
        self.client = client
        self.directory = directory
        self.flags = flags

    @property
    def is_service(self) -> bool:
        return "--service" in self.flags

    async def finish(self, *arguments: str, stdin: str = "") -> Finished:
        command = partial(finish, *arguments, *self.flags, stdin=stdin)
        return await trio.to_thread.run_sync(command)

    async def done(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that has to succeed; what it says."""
        ended = await self.finish(*arguments, stdin=stdin)
        assert (ended.code, ended.out) == (ExitCode.OK, ""), ended.err
        return ended.complaint.removeprefix("etcd-actions: ")

    async def phase(self, action: ActionId) -> Phase:
        return (await self.client.get_task_action(action)).phase


@pytest.fixture(params=["etcd", "service"])
async def site(
    request: pytest.FixtureRequest,
    etcd: Etcd,
    shared_etcd: EtcdServer,
    prefix: bytes,
    tmp_path: Path,
) -> AsyncIterator[Site]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        if request.param == "etcd":
            flags = ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
            yield Site(client, tmp_path, *flags)
            return
        token = tmp_path / "token"
        token.write_text(f"{TOKEN}\n")
        settings = ServerSettings(bind=Bind("127.0.0.1", 0), token_file=token)
        async with open_actions_server(client, settings) as server:
            yield Site(
                client,
                tmp_path,
                *("--service", str(server.address), "--service-token-file", str(token)),
            )


async def test_an_action_from_its_file_to_its_end(site: Site) -> None:
    """As a request in JSON, an action in JSON from standard input, and a request in binary."""
    as_json, binary = site.directory / "root.json", site.directory / "gate.pb"
    as_json.write_text(MessageToJson(pb.EnqueueRequest(action=flyte.task(ROOT))))
    binary.write_bytes(pb.EnqueueRequest(action=flyte.condition(GATE, "a0")).SerializeToString())
    assert await site.done("enqueue", str(as_json)) == "enqueued p/d/r1/a0"
    again = await site.done("enqueue", str(as_json))
    assert again == "p/d/r1/a0 is already there, by the same request"
    child = MessageToJson(flyte.task(CHILD, "a0"))
    assert await site.done("enqueue", "-", stdin=child) == "enqueued p/d/r1/c1"
    assert await site.done("enqueue", str(binary)) == "enqueued p/d/r1/gate"

    said = await site.done("status", "p/d/r1/c1", "running")
    assert said == "p/d/r1/c1 is RUNNING in attempt 1"
    assert await site.phase(CHILD) is Phase.RUNNING
    await site.done("signal", "p/d/r1/gate", "true", "--by", "alice")
    assert await site.phase(GATE) is Phase.SUCCEEDED
    aborted = await site.done("abort", "p/d/r1/a0", "--reason", "enough", "--by", "alice")
    assert aborted == "p/d/r1/a0: aborted 2 actions"
    assert [await site.phase(action) for action in (ROOT, CHILD, GATE)] == [
        Phase.ABORTED,
        Phase.ABORTED,
        Phase.SUCCEEDED,
    ]


async def test_what_cannot_be_done_ends_with_its_code(site: Site) -> None:
    """One line on stderr, and the same code both ways."""
    await site.client.enqueue(flyte.task(ROOT))
    await site.client.enqueue(flyte.condition(GATE, "a0"))
    other = flyte.task(ROOT, name="g")
    namesake = flyte.task(ActionId("q", "d", "r1", "a0"))
    orphan = flyte.task(ActionId("p", "d", "nowhere", "c1"), "a0")
    nameless = flyte.task(ROOT)
    nameless.action_id.run.project = ""
    await site.client.put_status(flyte.identifier(ROOT), 2, flyte.status(Phase.RUNNING, 2))
    cases: list[tuple[ExitCode, str, tuple[str, ...], str]] = [
        (
            ExitCode.ACTION,
            "exists already, by another request",
            ("enqueue", "-"),
            MessageToJson(other),
        ),
        (ExitCode.ACTION, "holds task a0 of run p/d/r1", ("enqueue", "-"), MessageToJson(namesake)),
        (ExitCode.NOT_FOUND, "p/d/r1", ("abort", "q/d/r1/a0"), ""),
        (ExitCode.NOT_FOUND, "a0", ("status", "q/d/r1/a0", "RUNNING"), ""),
        (ExitCode.NOT_FOUND, "a0", ("signal", "q/d/r1/a0", "true"), ""),
        (ExitCode.ACTION, "project", ("enqueue", "-"), MessageToJson(nameless)),
        (ExitCode.INPUT, "neither an EnqueueRequest", ("enqueue", "-"), '{"what": 1}'),
        (ExitCode.NOT_FOUND, "none", ("abort", "p/d/r1/none"), ""),
        (ExitCode.NOT_FOUND, "none", ("status", "p/d/r1/none", "RUNNING"), ""),
        (ExitCode.ACTION, "attempt", ("status", "p/d/r1/a0", "RUNNING", "--attempt", "1"), ""),
        (ExitCode.ACTION, "", ("signal", "p/d/r1/gate", "5"), ""),
        (ExitCode.ACTION, "", ("signal", "p/d/r1/a0", "true"), ""),
        (ExitCode.USAGE, "is not an action", ("abort", "r1//a0"), ""),
    ]
    for code, part, arguments, stdin in cases:
        ended = await site.finish(*arguments, stdin=stdin)
        assert (ended.code, part.lower() in ended.complaint.lower()) == (code, True), ended.err
        assert TOKEN not in ended.err
    ended = await site.finish("enqueue", "-", stdin=MessageToJson(orphan))
    assert ended.code in (ExitCode.NOT_FOUND, ExitCode.ACTION), ended.err


async def test_a_failure_with_its_error(site: Site) -> None:
    """Through the service, too, by a method of our own next to Flyte's."""
    await site.client.enqueue(flyte.task(ROOT))
    error = ("--error-code", "Boom", "--error-message", "bad", "--error-kind", "SYSTEM")
    await site.done("status", "p/d/r1/a0", "FAILED", *error, "--message", "gave up")
    action = await site.client.get_task_action(ROOT)
    assert action.phase is Phase.FAILED
    assert action.status.error_state == ErrorState("Boom", "SYSTEM", "bad")
    assert action.status.phase_history[-1].message == "gave up"


async def test_output(site: Site) -> None:
    """Names for other commands, and JSON for programs; then nothing is on stderr."""
    request = MessageToJson(flyte.task(ROOT))

    async def printed(*arguments: str, stdin: str = "") -> str:
        done = await site.finish(*arguments, stdin=stdin)
        assert (done.code, done.err) == (ExitCode.OK, "")
        return done.out

    assert await printed("enqueue", "-", "-o", "name", stdin=request) == "p/d/r1/a0\n"
    again = json.loads(await printed("enqueue", "-", "-o", "json", stdin=request))
    assert again == {"name": "p/d/r1/a0", "result": "unchanged"}
    await site.client.enqueue(flyte.condition(GATE, "a0"))
    reported = json.loads(await printed("status", "p/d/r1/a0", "RUNNING", "-o", "json"))
    assert reported == {
        "name": "p/d/r1/a0",
        "result": "reported",
        "phase": "RUNNING",
        "attempt": 1,
    }
    assert await printed("signal", "p/d/r1/gate", "true", "-o", "name") == "p/d/r1/gate\n"
    aborted = json.loads(await printed("abort", "p/d/r1/a0", "-o", "json"))
    assert aborted == {"name": "p/d/r1/a0", "result": "aborted", "aborted": ["a0"]}
    ended = json.loads(await printed("abort", "p/d/r1/gate", "-o", "json"))
    assert ended == {
        "name": "p/d/r1/gate",
        "result": "unchanged",
        "phase": "SUCCEEDED",
        "aborted": [],
    }


async def test_a_service_without_our_methods() -> None:
    """Flyte's own: Flyte's calls are made, and what it has no field for is refused, not dropped."""
    seen: list[str] = []

    class Flytes(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> object:
            seen.append(details.method)
            if not details.method.startswith("/flyteidl2.actions.ActionsService/"):
                return None
            return grpc.unary_unary_rpc_method_handler(lambda *_: b"")

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Flytes()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        site = ("--service", f"127.0.0.1:{port}")
        said = []
        for arguments in (
            ("status", "p/d/r1/a0", "FAILED", "--error-code", "Boom"),
            ("abort", "p/d/r1/a0"),
        ):
            command = partial(finish, *arguments, *site)
            said.append(await trio.to_thread.run_sync(command))
    finally:
        server.stop(None).wait()
    refused, aborted = said
    assert refused.code == ExitCode.USAGE
    assert "this service is Flyte's, or an earlier version" in refused.complaint
    assert aborted.complaint.endswith("p/d/r1/a0: aborted it and the actions below it")
    # Nothing was reported without its error.
    assert seen == [
        "/etcd_actions.operations.Operations/PutStatus",
        "/flyteidl2.actions.ActionsService/Abort",
    ]


async def test_a_service_that_is_away_or_wants_a_token() -> None:
    """Unreachable is 3, refused is 4; both name the service."""
    away = partial(finish, "abort", "p/d/r1/a0", "--service", f"127.0.0.1:{free_port()}")
    ended = await trio.to_thread.run_sync(away)
    assert ended.code == ExitCode.UNAVAILABLE
    assert "the service" in ended.complaint


async def test_a_wrong_token_is_refused(etcd: Etcd, prefix: bytes, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(TOKEN)
    wrong.write_text("another")
    settings = ServerSettings(bind=Bind("127.0.0.1", 0), token_file=right)
    async with (
        open_actions_client(etcd, prefix=prefix) as client,
        open_actions_server(client, settings) as server,
    ):
        flags = ("--service", str(server.address))
        for more in ((), ("--service-token-file", str(wrong))):
            command = partial(finish, "abort", "p/d/r1/a0", *flags, *more)
            ended = await trio.to_thread.run_sync(command)
            assert ended.code == ExitCode.REFUSED, ended.err
            assert "another" not in ended.err


@table(
    ("text", "kind", "field", "value"),
    [
        ("true", "auto", "boolean", True),
        ("7", "auto", "integer", 7),
        ("7.5", "auto", "float_value", 7.5),
        ("yes", "auto", "string_value", "yes"),
        ("7", "str", "string_value", "7"),
        ("7", "float", "float_value", 7.0),
        ("False", "bool", "boolean", False),
    ],
)
def test_a_signals_value(text: str, kind: str, field: str, value: object) -> None:
    primitive = literal_of(text, kind).scalar.primitive
    assert primitive.WhichOneof("value") == field
    assert getattr(primitive, field) == value


@pytest.mark.parametrize(("text", "kind"), [("yes", "bool"), ("7.5", "int"), ("x", "float")])
def test_a_value_of_another_type(text: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"is not a valid {kind}"):
        literal_of(text, kind)


_TASK = flyte.task(CHILD, "a0")


@pytest.mark.parametrize(
    "written",
    [
        lambda: MessageToJson(pb.EnqueueRequest(action=_TASK)).encode(),
        lambda: MessageToJson(_TASK).encode(),
        lambda: pb.EnqueueRequest(action=_TASK).SerializeToString(),
        _TASK.SerializeToString,
    ],
    ids=["request-json", "action-json", "request-binary", "action-binary"],
)
def test_each_form_of_a_file(tmp_path: Path, written: Callable[[], bytes]) -> None:
    file = tmp_path / "action"
    file.write_bytes(written())
    assert read_request(str(file)) == pb.EnqueueRequest(action=_TASK)


@pytest.mark.parametrize("data", [b"", b"{", b'{"action": 3}', b"\xff\xff", b"plain text"])
def test_no_form_of_a_file(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "rubbish"
    file.write_bytes(data)
    with pytest.raises(InputError, match="rubbish"):
        read_request(str(file))
