"""What a service answers that is broken, or is none: an error of ours, and in bounded time."""

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb
from flyteidl2.workflow.run_service_pb2 import WatchActionsResponse

from etcd_actions.cli import service_client
from etcd_actions.cli.calls import ACTIONS
from etcd_actions.cli.commands.attach import follow_run
from etcd_actions.cli.exit_codes import report
from etcd_actions.cli.formats.run_progress import ProgressPrinter
from etcd_actions.cli.names import Name
from etcd_actions.cli.reader import Reader
from etcd_actions.cli.service_client import open_service_client
from etcd_actions.errors import ConfigError, EtcdActionsError, ServiceRefused, ServiceUnavailable
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.model import Phase

Answer = Callable[[bytes, Any], Any]


class Broken(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A gRPC server that answers any call with any bytes."""

    def __init__(self, answer: Answer, streams: bool) -> None:
        self._answer = answer
        self._streams = streams

    def service(self, _details: Any) -> Any:
        make = (
            grpc.unary_stream_rpc_method_handler
            if self._streams
            else grpc.unary_unary_rpc_method_handler
        )
        return make(self._answer)


@contextmanager
def grpc_service(answer: Answer, *, streams: bool = False) -> Iterator[Endpoint]:
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads, handlers=[Broken(answer, streams)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield Endpoint("127.0.0.1", port)
        server.stop(None).wait()


@asynccontextmanager
async def raw_service(answer: bytes | None) -> AsyncIterator[Endpoint]:
    """A server that says the same to every client, or with None nothing at all."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                if answer is None:
                    await trio.sleep_forever()
                await stream.send_all(answer or b"")
                await stream.receive_some()
            except trio.BrokenResourceError:
                return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield Endpoint("127.0.0.1", listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def ask(service: Endpoint) -> None:
    with trio.fail_after(30):
        async with open_service_client(service) as asked:
            await asked.abort(pb.AbortRequest())


def aborting(code: grpc.StatusCode, details: str) -> Answer:
    def answer(_request: bytes, context: Any) -> bytes:
        context.set_code(code)
        context.set_details(details)
        return b""

    return answer


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        (lambda *_: b"\xff" * 40, ServiceRefused, 4),
        (lambda *_: b"\x0a\xff\xff\xff\xff\x0f", ServiceRefused, 4),
        (lambda *_: b"\0" * (5 << 20), ServiceRefused, 4),
        (aborting(grpc.StatusCode.UNAVAILABLE, "\x1b[2Jgone\nawfully"), ServiceUnavailable, 3),
        (aborting(grpc.StatusCode.INTERNAL, "{" * 5000), ServiceRefused, 4),
        (aborting(grpc.StatusCode.DATA_LOSS, ""), ServiceRefused, 4),
        (aborting(grpc.StatusCode.UNKNOWN, "\u202e"), ServiceRefused, 4),
        (aborting(grpc.StatusCode.INVALID_ARGUMENT, ": "), EtcdActionsError, 10),
    ],
    ids=["garbage", "cut off", "oversize", "drives terminal", "long", "empty", "turns", "no field"],
)
async def test_an_answer_that_is_none(
    answer: Answer,
    error: type[Exception],
    code: int,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with grpc_service(answer) as service, pytest.raises(error) as raised:
        await ask(service)
    assert report(raised.value) == code
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()
    # What is logged goes to stderr, too.
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<html>\x1b[2J</html>",
        b"\0\0\0\x04\0\0\0\0\0" + b"\xff" * 4000,
        b"\x16\x03\x01\x02\0\x01",
    ],
    ids=["closes", "not HTTP", "HTML", "frames of nonsense", "TLS"],
)
async def test_a_server_that_is_no_service(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service_client, "_DEADLINE", 3.0)
    async with raw_service(answer) as service:
        with pytest.raises(ServiceUnavailable) as raised:
            await ask(service)
    assert report(raised.value) == 3
    assert capsys.readouterr().err.rstrip("\n").isprintable()


async def test_a_service_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline ends it."""
    monkeypatch.setattr(service_client, "_DEADLINE", 0.5)
    async with raw_service(None) as service:
        with pytest.raises(ServiceUnavailable):
            await ask(service)


async def test_a_stream_of_garbage() -> None:
    with (
        grpc_service(lambda *_: iter([b"\xff" * 40]), streams=True) as service,
        trio.fail_after(30),
    ):
        async with open_service_client(service) as asked:
            with pytest.RaisesGroup(
                pytest.RaisesExc(ServiceRefused, match="not a WatchForUpdatesResponse"),
                allow_unwrapped=True,
            ):
                request, kind = pb.WatchForUpdatesRequest(), pb.WatchForUpdatesResponse
                async with asked.stream(ACTIONS, "WatchForUpdates", request, kind) as messages:
                    assert [each async for each in messages] == []


async def test_states_that_say_odd_things() -> None:
    """A phase of a later version does not end what follows a run."""
    written: list[bytes] = []
    responses = []
    for phase, attempts in ((77, 0), (0, 2**32 - 1), (5, 2)):
        response = WatchActionsResponse()
        action = response.enriched_actions.add().action
        action.id.name = "a0"
        action.status.phase, action.status.attempts = phase, attempts
        responses.append(response.SerializeToString())
    with grpc_service(lambda *_: iter(responses), streams=True) as service, trio.fail_after(30):
        async with open_service_client(service) as asked:
            reader = Reader(asked, asked.names)
            printer = ProgressPrinter(written.append, "jsonl")
            root = await follow_run(reader, Name("p", "d", "r"), printer)
    assert (root.phase, root.attempts) == (Phase.SUCCEEDED, 2)
    printed = [json.loads(line) for line in b"".join(written).splitlines()]
    assert [each["phase"] for each in printed] == ["RUNNING", "QUEUED", "SUCCEEDED"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfet\0", "UTF-16"),
        (b"to\0ken", "NUL"),
        ("tökén".encode(), "ASCII only"),
        (b"t" * 9000, "at most 8192 characters"),
        (b"t" * 100_000, "more than 64 KiB"),
    ],
)
async def test_a_file_without_a_token(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^--service-token-file: .*{told}") as raised:
        async with open_service_client(Endpoint("127.0.0.1", 1), token_file=path):
            pytest.fail("it was taken")
    assert str(path) in str(raised.value)


async def test_a_token_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"\xef\xbb\xbfsecret\r\n")
    shown: list[str] = []

    def answer(_request: bytes, context: Any) -> bytes:
        shown.append(dict(context.invocation_metadata())["authorization"])
        return b""

    with grpc_service(answer) as service:
        async with open_service_client(service, token_file=path) as asked:
            await asked.abort(pb.AbortRequest())
    assert shown == ["Bearer secret"]


@pytest.mark.parametrize("content", [b"", b"no PEM", b"\x30\x82\x01\x0a" + b"\0" * 300])
async def test_authorities_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^--service-cacert: .*not a PEM file"):
        async with open_service_client(Endpoint("127.0.0.1", 1), cacert=path):
            pytest.fail("it was taken")
