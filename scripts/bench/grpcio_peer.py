"""The transport to compare with: grpcio, bridged from its threads to trio as well as that goes.

Unary calls are futures, whose completions ring trio once a burst; a watch is read by a thread
that fills a bounded buffer. No TLS, no users: the benchmarks need neither.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import trio

from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd import messages
from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.etcd.api import WatchCreate, WatchResponse
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.rpc import Request, Result, Rpc

_BUFFERED_EVENTS = 4096
_BUFFERED_BYTES = 16 * 1024 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_METADATA = (("hasleader", "true"),)


class _Bell:
    """Runs functions in trio's thread; a burst rings once."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._waiting: deque[Callable[[], None]] = deque()

    def call_soon(self, function: Callable[[], None]) -> None:
        self._waiting.append(function)
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._run, idempotent=True)

    def _run(self) -> None:
        while self._waiting:
            self._waiting.popleft()()


class GrpcioConnection:
    """Implements the transports' ``Connection``."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.broken = False
        self._bell = _Bell()
        self._channel = grpc.insecure_channel(str(endpoint), options=_OPTIONS)
        self._stubs: dict[str, Any] = {}

    async def call(
        self, rpc: Rpc[Request, Result], request: Request, *, token: str, within: float
    ) -> Result:
        encode, decode = messages.of_method(rpc)
        stub = self._stubs.get(rpc.name)
        if stub is None:
            stub = self._stubs[rpc.name] = self._channel.unary_unary(f"/etcdserverpb.{rpc.name}")
        message = encode(request).SerializeToString()
        future = stub.future(message, timeout=within, metadata=_METADATA)
        await self._finished(future)
        if future.code() is not grpc.StatusCode.OK:
            raise Unavailable(f"{rpc.name}: {future.details()}")
        return decode(future.result())

    @asynccontextmanager
    async def watch(self, *, token: str) -> AsyncIterator[GrpcioStream]:
        stream = GrpcioStream(self._channel)
        try:
            yield stream
        finally:
            await stream.aclose()

    def close(self) -> None:
        self._channel.close()

    async def _finished(self, future: Any) -> None:
        task = trio.lowlevel.current_task()
        waiting = True

        def wake() -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                trio.lowlevel.reschedule(task)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            nonlocal waiting
            waiting = False
            future.cancel()
            return trio.lowlevel.Abort.SUCCEEDED

        future.add_done_callback(lambda _: self._bell.call_soon(wake))
        await trio.lowlevel.wait_task_rescheduled(abort)


class GrpcioStream:
    """Implements the transports' ``TransportStream``."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._requests: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
        self._buffer: deque[pb.WatchResponse] = deque()
        self._buffered_events = 0
        self._buffered_bytes = 0
        self._drained = threading.Condition()
        self._closing = False
        self._prev_kv = False
        self._parked: trio.lowlevel.Task | None = None
        self._failure: EtcdError | None = None
        self._ended = trio.Event()
        method = channel.stream_stream(
            "/etcdserverpb.Watch/Watch", request_serializer=pb.WatchRequest.SerializeToString
        )
        self._call = method(iter(self._requests.get, None), metadata=_METADATA)
        threading.Thread(target=self._read, daemon=True).start()

    def create(self, request: WatchCreate) -> None:
        self._prev_kv = self._prev_kv or request.prev_kv
        self._requests.put(messages.watch_create(request))

    def cancel(self, watch_id: int) -> None:
        self._requests.put(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))

    def request_progress(self) -> None:
        self._requests.put(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    async def receive(self) -> list[WatchResponse]:
        if self._buffer:
            await trio.lowlevel.checkpoint()
        while not self._buffer:
            if self._failure is not None:
                raise self._failure
            self._parked = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._unpark)
        with self._drained:
            received = list(self._buffer)
            self._buffer.clear()
            self._buffered_events = self._buffered_bytes = 0
            self._drained.notify()
        return [messages.watch_response(message, prev_kv=self._prev_kv) for message in received]

    def fail(self, failure: EtcdError) -> None:
        self._failure = self._failure or failure
        self._ring()

    async def aclose(self) -> None:
        self._call.cancel()
        self._requests.put(None)
        with self._drained:
            self._closing = True
            self._drained.notify()
        with trio.move_on_after(5, shield=True):
            await self._ended.wait()

    def _unpark(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _ring(self) -> None:
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task)

    def _is_full(self) -> bool:
        return self._buffered_events > _BUFFERED_EVENTS or self._buffered_bytes > _BUFFERED_BYTES

    def _read(self) -> None:
        try:
            for data in self._call:
                message = pb.WatchResponse.FromString(data)
                with self._drained:
                    while self._is_full() and not self._closing:
                        self._drained.wait()
                    self._buffer.append(message)
                    self._buffered_events += len(message.events)
                    self._buffered_bytes += len(data)
                with suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._ring, idempotent=True)
        except grpc.RpcError as error:
            self._failure = self._failure or Unavailable(f"watch: {error}")
        finally:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._ring, idempotent=True)
                self._token.run_sync_soon(self._ended.set)
