"""A watch stream over grpcio: its reader thread on one side, trio on the other.

grpcio has no trio interface. The synchronous stub is read in one thread a stream, which
appends to a buffer and rings trio's bell once for all that has gathered since
(``run_sync_soon(idempotent=True)``). The buffer is bounded: past its limit the thread waits
until trio has emptied it, and HTTP/2 flow control holds etcd back.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import grpc
import trio

from etcd_actions.containment import describe
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd import grpc_errors, grpc_wire
from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.etcd.api import WatchCreate, WatchResponse
from etcd_actions.logger import get_logger

_BUFFERED_EVENTS = 4096
_BUFFERED_BYTES = 16 * 1024 * 1024
_CLOSE_TIMEOUT = 5.0

_log = get_logger(__name__)


class GrpcWatchStream:
    """Implements :class:`~etcd_actions.etcd.api.WatchStream`; made by ``Etcd.watch``."""

    def __init__(
        self,
        channel: grpc.Channel,
        metadata: Sequence[tuple[str, str]],
        what: str,
        on_unavailable: Callable[[], None],
    ) -> None:
        self._what = what
        self._on_unavailable = on_unavailable
        self._token = trio.lowlevel.current_trio_token()
        self._requests: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
        self._buffer: deque[pb.WatchResponse] = deque()
        self._buffered_events = 0
        self._buffered_bytes = 0
        self._drained = threading.Condition()
        self._closing = False
        self._prev_kv = False
        self._failure: EtcdError | None = None
        self._parked: trio.lowlevel.Task | None = None
        self._ended = trio.Event()
        method = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
        )
        try:
            self._call = method(self._iterate_requests(), metadata=metadata)
        except Exception as error:
            # The channel is closed, or there can be no more threads.
            self._requests.put(None)
            raise Unavailable(f"{what}: it cannot be opened: {describe(error)}") from error
        self._thread = threading.Thread(target=self._read, name="etcd-watch", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._call.cancel()
            self._requests.put(None)
            raise Unavailable(f"{what}: no thread can be started: {error}") from error

    def create(self, request: WatchCreate) -> None:
        """Ask for a watcher."""
        self._prev_kv = self._prev_kv or request.prev_kv
        self._requests.put(grpc_wire.watch_create(request))

    def cancel(self, watch_id: int) -> None:
        """End a watcher."""
        self._requests.put(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))

    def request_progress(self) -> None:
        """Ask how far the stream is."""
        self._requests.put(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    async def receive(self) -> list[WatchResponse]:
        """All messages that have arrived, at least one; see the protocol."""
        if self._buffer:
            await trio.lowlevel.checkpoint()
        while not self._buffer:
            if self._failure is not None:
                if isinstance(self._failure, Unavailable):
                    self._on_unavailable()
                raise self._failure
            self._parked = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._unpark)
        with self._drained:
            messages = list(self._buffer)
            self._buffer.clear()
            self._buffered_events = self._buffered_bytes = 0
            self._drained.notify()
        try:
            return [
                grpc_wire.watch_response(message, prev_kv=self._prev_kv) for message in messages
            ]
        except Exception as error:
            # They are gone: another stream has to bring them again.
            self.fail(grpc_errors.unreadable(error, what=self._what))
            self._on_unavailable()
            assert self._failure is not None
            raise self._failure from error

    def fail(self, failure: EtcdError) -> None:
        """End the stream for its reader, from trio's side."""
        self._failure = self._failure or failure
        self._ring()

    async def aclose(self) -> None:
        """End the stream and its thread. Not interrupted by cancellation, but bounded."""
        self._call.cancel()
        # The thread that grpcio reads requests with waits in get() until it is told to end.
        self._requests.put(None)
        with self._drained:
            self._closing = True
            self._drained.notify()
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True) as scope:
            await self._ended.wait()
        if scope.cancelled_caught:
            _log.warning("watch_stream_thread_did_not_end", seconds=_CLOSE_TIMEOUT)

    def _iterate_requests(self) -> Iterator[pb.WatchRequest]:
        return iter(self._requests.get, None)

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
        """The thread: fill the buffer until the call ends, however it ends."""
        failure: EtcdError = Unavailable(f"{self._what}: etcd ended the stream")
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
        except grpc.RpcError:
            failure = grpc_errors.from_status(
                self._call.code(), self._call.details() or "", what=self._what
            )
        except BaseException as error:
            # A thread has no one who could catch it, and an answer may be anything.
            failure = grpc_errors.unreadable(error, what=self._what)
            self._call.cancel()
        finally:
            self._failure = self._failure or failure
            # An event loop that has ended leaves nobody to be told.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._ring, idempotent=True)
                self._token.run_sync_soon(self._ended.set)
