"""One stream of status updates: many callers, answers told apart by their nonces.

The server answers one after another, in order. When one answer is late all behind it are, so
a caller that gives up ends the stream, and the others are told that it broke.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

import grpc
import trio

from etcd_actions.grpc_bridge import Bell

if TYPE_CHECKING:
    from flyteidl2.workflow.internal_run_service_pb2 import (
        UpdateActionStatusRequest,
        UpdateActionStatusResponse,
        UpdateActionStatusStreamRequest,
        UpdateActionStatusStreamResponse,
    )

METHOD = "/flyteidl2.workflow.InternalRunService/UpdateActionStatusStream"


class StreamBroken(Exception):
    """The stream ended without an answer; ``code`` is gRPC's."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details


class _Waiter:
    """One caller, and its answer."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.response: UpdateActionStatusResponse | None = None


class StatusStream:
    """A stream that is open until it breaks; :meth:`close` ends it."""

    def __init__(self, channel: grpc.Channel, bell: Bell) -> None:
        from flyteidl2.workflow import internal_run_service_pb2 as pb  # noqa: PLC0415

        self._message = pb.UpdateActionStatusStreamRequest
        self._bell = bell
        self._waiting: dict[int, _Waiter] = {}
        self._nonce = 0
        self._failure: StreamBroken | None = None
        self._requests: queue.SimpleQueue[UpdateActionStatusStreamRequest | None] = (
            queue.SimpleQueue()
        )
        method = channel.stream_stream(
            METHOD,
            request_serializer=pb.UpdateActionStatusStreamRequest.SerializeToString,
            response_deserializer=pb.UpdateActionStatusStreamResponse.FromString,
        )
        self._call = method(iter(self._requests.get, None))
        threading.Thread(target=self._read, name="run-service", daemon=True).start()

    @property
    def broken(self) -> bool:
        """Whether another stream is needed."""
        return self._failure is not None

    async def ask(self, request: UpdateActionStatusRequest) -> UpdateActionStatusResponse:
        """Send a request and wait for its answer.

        Cancelled, the server may have applied it; who gives up closes the stream.

        Raises:
            StreamBroken: It ended without the answer.
        """
        if self._failure is not None:
            raise self._failure
        self._nonce += 1
        nonce, waiter = self._nonce, _Waiter()
        self._waiting[nonce] = waiter
        self._requests.put(self._message(request=request, nonce=nonce))
        try:
            await waiter.done.wait()
        finally:
            self._waiting.pop(nonce, None)
        if waiter.response is None:
            assert self._failure is not None
            raise self._failure
        return waiter.response

    def close(self) -> None:
        """End the stream; who waits is told that it broke."""
        self._call.cancel()
        # The thread that grpcio reads requests with waits until it is told to end.
        self._requests.put(None)
        self._break(StreamBroken(grpc.StatusCode.CANCELLED, "closed"))

    def _read(self) -> None:
        """The thread: hand over answers until the stream ends, however it ends."""
        broken = StreamBroken(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")
        try:
            for answer in self._call:
                self._bell.call_soon(lambda answer=answer: self._answer(answer))  # type: ignore[misc]
        except grpc.RpcError:
            broken = StreamBroken(self._call.code(), self._call.details() or "")
        finally:
            self._requests.put(None)
            self._bell.call_soon(lambda: self._break(broken))

    def _answer(self, answer: UpdateActionStatusStreamResponse) -> None:
        waiter = self._waiting.get(answer.nonce)
        if waiter is not None:
            waiter.response = answer.response
            waiter.done.set()

    def _break(self, broken: StreamBroken) -> None:
        self._failure = self._failure or broken
        for waiter in self._waiting.values():
            waiter.done.set()
