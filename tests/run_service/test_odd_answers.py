"""Answers that nobody foresaw: they concern one action, or break the stream, and never hang."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import msgspec
import pytest
import trio
from flyteidl2.workflow import internal_run_service_pb2 as pb

from etcd_actions import ActionId, ActionUpdate, Phase
from etcd_actions.errors import RunServiceRejected, RunServiceUnavailable
from etcd_actions.http2 import Code
from etcd_actions.run_service import status_codes
from etcd_actions.run_service.grpc_run_service import GrpcRunService, open_run_service
from etcd_actions.run_service.status_codes import Meaning
from etcd_actions.run_service.status_stream import StatusStream
from tests.support.everyday import first_everyday

SERVICE = "flyteidl2.workflow.InternalRunService"


def update(name: str = "a1", **changes: Any) -> ActionUpdate:
    made = ActionUpdate(
        key=f"/x/flyte/r1-{name}".encode(),
        namespace="flyte",
        name=f"r1-{name}",
        action_id=ActionId("p", "d", "r1", name),
        parent="a0",
        phase=Phase.RUNNING,
        attempts=1,
        cache_status=0,
        output_uri="",
        uid="u",
        create_revision=5,
        revision=7,
        recorded=False,
    )
    return msgspec.structs.replace(made, **changes)


class Server:
    """Answers with bytes, whatever they are.

    Attributes:
        answer: Makes the bytes of an answer from those of the request.
        stream: Whether it knows the stream of updates.
    """

    def __init__(self) -> None:
        self.answer = self.accept
        self.stream = True
        self.streams = 0

    @staticmethod
    def accept(request: bytes) -> bytes:
        asked = pb.UpdateActionStatusRequest.FromString(request)
        accepted = pb.UpdateActionStatusResponse(action_id=asked.action_id)
        accepted.status.code = 0
        data: bytes = accepted.SerializeToString()
        return data

    def _unary(self, request: bytes, _: grpc.ServicerContext) -> bytes:
        return self.answer(request)

    def _stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        if not self.stream:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        self.streams += 1
        for request in requests:
            asked = pb.UpdateActionStatusStreamRequest.FromString(request)
            answer = self.answer(asked.request.SerializeToString())
            if answer.startswith(b"raw:"):
                yield answer[4:]
                continue
            # Field 1 is the response, field 2 the nonce.
            head = b"\x0a" + _varint(len(answer))
            yield head + answer + b"\x10" + _varint(asked.nonce)

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "RecordAction": grpc.unary_unary_rpc_method_handler(self._unary),
                "UpdateActionStatus": grpc.unary_unary_rpc_method_handler(self._unary),
                "UpdateActionStatusStream": grpc.stream_stream_rpc_method_handler(self._stream),
            },
        )


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


@asynccontextmanager
async def told(server: Server, **settings: Any) -> AsyncIterator[GrpcRunService]:
    listener = grpc.server(ThreadPoolExecutor(4))
    listener.add_generic_rpc_handlers((server.handlers(),))
    port = listener.add_insecure_port("127.0.0.1:0")
    listener.start()
    try:
        with trio.fail_after(30):
            async with open_run_service(f"127.0.0.1:{port}", **settings) as service:
                yield service
    finally:
        listener.stop(None).wait()


def in_band(code: int, message: str = "") -> bytes:
    answer = pb.UpdateActionStatusResponse()
    answer.action_id.name = "a1"
    answer.status.code = code
    answer.status.message = message
    data: bytes = answer.SerializeToString()
    return data


def about(name: str) -> bytes:
    answer = pb.UpdateActionStatusResponse()
    answer.action_id.name = name
    answer.status.code = 0
    data: bytes = answer.SerializeToString()
    return data


GARBAGE = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\xff\xff\xff", id="no message"),
    pytest.param(in_band(0) + b"\x07", id="behind the end"),
    pytest.param(about("a2"), id="about another action"),
    pytest.param(in_band(-(2**31)), id="an absurd code"),
    pytest.param(in_band(2**31 - 1, "x" * 100_000), id="an absurd code and text"),
    pytest.param(b"\x0a" * 50_000, id="nested"),
    pytest.param(b"\x12" + _varint(20 << 20) + bytes(20 << 20), id="too large"),
]


@pytest.mark.parametrize("streaming", first_everyday([True, False]))
@pytest.mark.parametrize("answer", GARBAGE)
async def test_an_odd_answer_accepts_nothing_and_the_next_action_is_told(
    answer: bytes, streaming: bool
) -> None:
    """Both ways to tell a status: it is to be told again, and nothing hangs."""
    server = Server()

    def odd(request: bytes) -> bytes:
        asked = pb.UpdateActionStatusRequest.FromString(request)
        return answer if asked.action_id.name == "a1" else server.accept(request)

    server.answer = odd
    async with told(server, streaming=streaming, deadline=2) as service:
        with pytest.raises(RunServiceUnavailable) as raised:
            await service.update_action_status(update("a1"))
        assert len(str(raised.value)) < 3_000
        await service.update_action_status(update("a2"))


async def test_what_is_no_message_at_all_breaks_the_stream_and_not_the_process() -> None:
    """Who waits on it is told so at once; the next one makes a call, or opens another."""
    server = Server()
    server.answer = lambda request: b"raw:\xff\xff\xff"
    async with told(server, deadline=20) as service:
        with pytest.raises(RunServiceUnavailable, match="an answer cannot be read"):
            await service.update_action_status(update())
        server.answer = server.accept
        await service.update_action_status(update())


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), RecursionError(), MemoryError(), SystemExit(1)], ids=repr
)
async def test_a_failure_while_an_answer_is_handed_over_breaks_the_stream(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    server = Server()
    async with told(server, deadline=2) as service:
        with monkeypatch.context() as patched:

            def deliver(*_: object) -> None:
                raise error

            patched.setattr(StatusStream, "deliver", deliver)
            with pytest.raises(RunServiceUnavailable):
                await service.update_action_status(update())
        await service.update_action_status(update())


async def test_an_action_that_no_message_can_be_made_of_is_rejected_alone() -> None:
    """No try would help; nobody else on the stream is touched."""
    server = Server()
    async with told(server) as service:
        await service.update_action_status(update())
        for odd in (
            update(action_id=ActionId("p", "d", "r1", "\ud800")),
            update(phase=Phase.ABORTED, abort_reason="\udfff"),
            update(attempts=-(2**40) * -1),
        ):
            with pytest.raises(RunServiceRejected, match="cannot be put into Flyte's message"):
                await service.update_action_status(odd)
        await service.update_action_status(update())
        assert server.streams == 1


def test_a_message_that_is_too_large_for_the_server_stays_so() -> None:
    theirs = "grpc: received message larger than max (20971524 vs. 4194304)"
    assert status_codes.meaning_of_call(Code.RESOURCE_EXHAUSTED, theirs) is Meaning.PERMANENT
