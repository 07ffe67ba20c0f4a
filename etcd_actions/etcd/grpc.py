"""etcd over grpcio, bridged to trio: the default transport.

Unary calls are grpcio futures. Their completions come in on gRPC's threads and are handed
to trio through one deque and one idempotent bell, so a burst of answers costs one wake-up
of the event loop; no call has a thread of its own.

A connection that stopped answering (a stopped process, a dropped network path) looks healthy
to TCP for minutes. Three things find it: HTTP/2 pings with all of gRPC's time-outs set (any
one left at its default makes the others useless), a deadline on each call, and the watcher's
own probe. A read that runs into its deadline retires the connection it used, and the next
call goes to the next endpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar, cast

import grpc
import trio
from google.protobuf.message import Message

from etcd_actions.errors import LeaseNotFound, Unavailable
from etcd_actions.etcd import grpc_errors, grpc_wire
from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.etcd.api import (
    DeleteResult,
    KeyRange,
    Lease,
    PutResult,
    RangeResult,
    Status,
    Txn,
    TxnResult,
)
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.grpc_watch import GrpcWatchStream

DEFAULT_REQUEST_TIMEOUT = 5.0
"""Seconds, as etcdctl's --command-timeout."""

_CHANNEL_OPTIONS = (
    # etcd answers pings under 5 s apart with GOAWAY (too_many_pings).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Channels must not share a connection: a new one is made when the old one is dead.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_REQUIRE_LEADER = (("hasleader", "true"),)

_Response = TypeVar("_Response", bound=Message)


class _Future(Protocol):
    """What grpcio's untyped call objects offer."""

    def add_done_callback(self, callback: Callable[[object], None]) -> None: ...
    def cancel(self) -> bool: ...
    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def result(self) -> Message: ...


class _Connection:
    """A channel, its streams, and the number of calls on it: the last one closes it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.channel = grpc.insecure_channel(str(endpoint), options=_CHANNEL_OPTIONS)
        self.streams: set[GrpcWatchStream] = set()
        self.calls = 0
        self.retired = False

    def retire(self) -> None:
        self.retired = True
        for stream in self.streams:
            stream.fail(Unavailable(f"watch at {self.endpoint}: the connection was given up"))
        self.close_if_unused()

    def close_if_unused(self) -> None:
        if self.retired and self.calls == 0:
            self.channel.close()


class _Bell:
    """Runs functions in trio's thread, called from any other; bursts ring once."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._waiting: deque[Callable[[], None]] = deque()

    def call_soon(self, function: Callable[[], None]) -> None:
        self._waiting.append(function)
        try:
            self._token.run_sync_soon(self._run, idempotent=True)
        except trio.RunFinishedError:
            # Nobody is left to be told.
            self._waiting.clear()

    def _run(self) -> None:
        while self._waiting:
            self._waiting.popleft()()


@asynccontextmanager
async def open_grpc_etcd(
    endpoints: Iterable[Endpoint], *, request_timeout: float = DEFAULT_REQUEST_TIMEOUT
) -> AsyncIterator[GrpcEtcd]:
    """Connect to etcd; nothing is sent before the first call.

    Args:
        endpoints: The members; one is used at a time, and the next one after a failure.
        request_timeout: Seconds after which a call raises
            :class:`~etcd_actions.errors.Unavailable`.
    """
    etcd = GrpcEtcd(tuple(endpoints), request_timeout)
    try:
        yield etcd
    finally:
        etcd._close()


class GrpcEtcd:
    """Implements :class:`~etcd_actions.etcd.api.Etcd`; made by :func:`open_grpc_etcd`."""

    def __init__(self, endpoints: tuple[Endpoint, ...], request_timeout: float) -> None:
        self._endpoints = endpoints
        self._request_timeout = request_timeout
        self._bell = _Bell()
        self._next = 0
        self._connection: _Connection | None = None

    async def range(
        self,
        keys: KeyRange,
        *,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
    ) -> RangeResult:
        """Read a range, linearizable."""
        request = pb.RangeRequest(
            key=keys.start,
            range_end=keys.end,
            revision=revision,
            limit=limit,
            keys_only=keys_only,
            count_only=count_only,
        )
        return grpc_wire.range_result(await self._call("KV/Range", request, pb.RangeResponse))

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> PutResult:
        """Write one key."""
        request = pb.PutRequest(key=key, value=value, lease=lease)
        response = await self._call("KV/Put", request, pb.PutResponse, writes=True)
        return PutResult(response.header.revision)

    async def delete(self, keys: KeyRange) -> DeleteResult:
        """Delete a range."""
        request = pb.DeleteRangeRequest(key=keys.start, range_end=keys.end)
        response = await self._call("KV/DeleteRange", request, pb.DeleteRangeResponse, writes=True)
        return DeleteResult(response.deleted, response.header.revision)

    async def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction."""
        request = grpc_wire.txn_request(txn)
        return grpc_wire.txn_result(
            await self._call("KV/Txn", request, pb.TxnResponse, writes=True)
        )

    async def compact(self, revision: int, *, physical: bool = False) -> None:
        """Drop history below ``revision``."""
        request = pb.CompactionRequest(revision=revision, physical=physical)
        await self._call("KV/Compact", request, pb.CompactionResponse, writes=True)

    async def lease_grant(self, ttl: int) -> Lease:
        """Make a lease."""
        response = await self._call(
            "Lease/LeaseGrant", pb.LeaseGrantRequest(TTL=ttl), pb.LeaseGrantResponse, writes=True
        )
        return Lease(response.ID, response.TTL)

    async def lease_keep_alive(self, lease_id: int) -> Lease:
        """Renew a lease once."""
        response = await self._call(
            "Lease/LeaseKeepAlive",
            pb.LeaseKeepAliveRequest(ID=lease_id),
            pb.LeaseKeepAliveResponse,
            streaming=True,
        )
        # etcd answers a renewal of an unknown lease with a TTL of 0 and no error.
        if response.TTL <= 0:
            raise LeaseNotFound(f"lease {lease_id:x} has expired or never was")
        return Lease(response.ID, response.TTL)

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease."""
        request = pb.LeaseRevokeRequest(ID=lease_id)
        await self._call("Lease/LeaseRevoke", request, pb.LeaseRevokeResponse, writes=True)

    async def status(self) -> Status:
        """Ask the member in use about itself."""
        response = await self._call("Maintenance/Status", pb.StatusRequest(), pb.StatusResponse)
        return Status(
            response.version,
            response.dbSize,
            response.leader,
            response.header.revision,
            response.header.cluster_id,
            response.header.member_id,
        )

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[GrpcWatchStream]:
        """Open a watch stream on the connection that the other calls use.

        When one of those is not answered in time the stream fails too.
        """
        connection = self._current()
        connection.calls += 1
        try:
            stream = GrpcWatchStream(
                connection.channel, _REQUIRE_LEADER, lambda: self._retire(connection)
            )
            connection.streams.add(stream)
            try:
                yield stream
            finally:
                connection.streams.discard(stream)
                await stream.aclose()
        finally:
            connection.calls -= 1
            connection.close_if_unused()

    async def _call(
        self,
        method: str,
        request: Message,
        response_type: type[_Response],
        *,
        writes: bool = False,
        streaming: bool = False,
    ) -> _Response:
        connection = self._current()
        multi = connection.channel.stream_unary if streaming else connection.channel.unary_unary
        stub = multi(
            f"/etcdserverpb.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response_type.FromString,
        )
        connection.calls += 1
        try:
            future = stub.future(
                iter((request,)) if streaming else request, timeout=self._request_timeout
            )
            await self._finished(cast(_Future, future))
            code = future.code()
            if code is grpc.StatusCode.OK:
                return cast(_Response, future.result())
            # A slow disk delays writes, which says nothing of the connection; reads do.
            if code is grpc.StatusCode.UNAVAILABLE or (
                code is grpc.StatusCode.DEADLINE_EXCEEDED and not writes
            ):
                self._retire(connection)
            raise grpc_errors.from_status(
                code,
                future.details() or "",
                what=f"{method} at {connection.endpoint}",
                writes=writes,
            )
        finally:
            connection.calls -= 1
            connection.close_if_unused()

    async def _finished(self, future: _Future) -> None:
        """Wait for a call; on cancellation cancel it too."""
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

    def _current(self) -> _Connection:
        if self._connection is None:
            endpoint = self._endpoints[self._next % len(self._endpoints)]
            self._connection = _Connection(endpoint)
        return self._connection

    def _retire(self, connection: _Connection | None) -> None:
        """Use another connection, to the next endpoint, from the next call on."""
        if connection is None or connection.retired:
            return
        connection.retire()
        if self._connection is connection:
            self._connection = None
            self._next += 1

    def _close(self) -> None:
        self._retire(self._connection)
