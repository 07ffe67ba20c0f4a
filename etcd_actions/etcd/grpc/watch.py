"""A watch stream over gRPC: requests and responses in one exchange.

The task that receives the responses decodes them. While it does not receive, they wait as bytes,
and HTTP/2 flow control stops etcd at 16 MiB.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd import messages
from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.etcd.api import WatchCreate, WatchResponse
from etcd_actions.etcd.grpc import errors
from etcd_actions.http2 import CallFailed, Exchange


class GrpcWatchStream:
    """Implements :class:`~etcd_actions.etcd.transport.TransportStream`.

    Args:
        exchange: The call; None if it could not be made.
        what: The name of the stream in errors.
        on_unavailable: Called when the member cannot be reached.
        failure: The reason if there is no exchange.
    """

    def __init__(
        self,
        exchange: Exchange | None,
        what: str,
        on_unavailable: Callable[[], None],
        failure: EtcdError | None = None,
    ) -> None:
        self._exchange = exchange
        self._what = what
        self._on_unavailable = on_unavailable
        self._prev_kv = False
        self._failure = failure

    def create(self, request: WatchCreate) -> None:
        """Request a watcher."""
        self._prev_kv = self._prev_kv or request.prev_kv
        self._send(messages.watch_create(request))

    def cancel(self, watch_id: int) -> None:
        """End a watcher."""
        self._send(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))

    def request_progress(self) -> None:
        """Request a progress notification."""
        self._send(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    async def receive(self) -> list[WatchResponse]:
        """Messages that have arrived, at least one; see the protocol."""
        if self._failure is not None or self._exchange is None:
            await trio.lowlevel.checkpoint()
            raise self._failed(self._failure or Unavailable(f"{self._what}: it is not open"))
        try:
            received = await self._exchange.receive()
        except CallFailed as failure:
            raise self._failed(errors.from_failure(failure, what=self._what)) from None
        except trio.EndOfChannel:
            raise self._failed(Unavailable(f"{self._what}: etcd ended the stream")) from None
        except EtcdError as failure:
            raise self._failed(failure) from None
        try:
            return messages.watch_responses(received, prev_kv=self._prev_kv)
        except Exception as error:
            # These responses are lost: another stream has to deliver them again.
            self._exchange.close()
            raise self._failed(errors.unreadable(error, what=self._what)) from error

    def fail(self, failure: EtcdError) -> None:
        """End the stream: its reader gets the messages that have arrived, then ``failure``."""
        if self._exchange is not None:
            self._exchange.fail(failure)

    def _send(self, request: pb.WatchRequest) -> None:
        if self._exchange is not None:
            self._exchange.send(request.SerializeToString())

    def _failed(self, failure: EtcdError) -> EtcdError:
        self._failure = failure
        if isinstance(failure, Unavailable):
            self._on_unavailable()
        return failure
