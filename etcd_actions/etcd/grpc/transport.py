"""Connections over gRPC, by :mod:`etcd_actions.http2`: the default transport.

TCP does not detect for minutes that a connection does not answer any more, as after a stop of the
process or a broken network path. Three mechanisms do: HTTP/2 pings, a deadline on each call, and
the probe of the reflector.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from etcd_actions.etcd import messages
from etcd_actions.etcd.bearer_token import read_bearer_token
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.grpc import errors
from etcd_actions.etcd.grpc.watch import GrpcWatchStream
from etcd_actions.etcd.reasons import is_member_error
from etcd_actions.etcd.rpc import Request, Result, Rpc
from etcd_actions.etcd.tls import client_context
from etcd_actions.etcd.transport import Connection, MemberConnection
from etcd_actions.http2 import (
    CallFailed,
    Channel,
    ChannelSettings,
    Code,
    KeepAlive,
    Metadata,
    Target,
)

_LEADER: Metadata = (("hasleader", "true"),)
_WATCH = "/etcdserverpb.Watch/Watch"
# A service has no part of etcd for workers, or does not accept the token: another service may, and
# the file may have another token by now.
_OF_THE_SERVICE = (Code.FAILED_PRECONDITION, Code.UNAUTHENTICATED)


def grpc_connections(
    settings: ConnectionSettings, nursery: trio.Nursery
) -> Callable[[Endpoint], Connection]:
    """The function that makes connections over gRPC. Their tasks run in the nursery."""
    return lambda endpoint: GrpcConnection(endpoint, settings, nursery)


class GrpcConnection(MemberConnection):
    """A connection to one member over gRPC."""

    def __init__(
        self, endpoint: Endpoint, settings: ConnectionSettings, nursery: trio.Nursery
    ) -> None:
        super().__init__(endpoint)
        self._patience = settings.request_timeout
        self._shown: Metadata = ()
        if settings.token_file is not None:
            token = read_bearer_token(settings.token_file)
            self._shown = (("authorization", f"Bearer {token}"),)
        tls = settings.tls_for(endpoint)
        self._channel = Channel(
            nursery,
            Target(
                host=endpoint.host,
                port=endpoint.port,
                tls=None if tls is None else partial(client_context, tls),
                server_name=None if tls is None else tls.server_name,
            ),
            _channel_settings(settings),
        )

    async def call(
        self, rpc: Rpc[Request, Result], request: Request, *, token: str, within: float
    ) -> Result:
        """Do one call; see the protocol."""
        encode, decode = messages.of_method(rpc)
        what = f"{rpc.name} at {self.endpoint}"
        try:
            message = encode(request).SerializeToString()
        except Exception as error:
            raise errors.unwritable(error, what=what) from error
        try:
            answer = await self._channel.unary(
                f"/etcdserverpb.{rpc.name}",
                message,
                within=within,
                metadata=self._metadata(token, leader=rpc.needs_leader),
            )
        except CallFailed as failure:
            # A slow disk delays writes, so only a slow read shows a broken connection.
            if (
                failure.code is Code.UNAVAILABLE
                or not failure.connected
                or (failure.code is Code.DEADLINE_EXCEEDED and not rpc.writes)
                or is_member_error(failure.details)
                or (self._shown and failure.code in _OF_THE_SERVICE)
            ):
                self.broken = True
            raise errors.from_failure(failure, what=what, writes=rpc.writes) from None
        try:
            return decode(answer)
        except Exception as error:
            self.broken = True
            raise errors.unreadable(error, what=what, writes=rpc.writes) from error

    @asynccontextmanager
    async def watch(self, *, token: str) -> AsyncIterator[GrpcWatchStream]:
        """Open a watch stream; see the protocol."""
        what = f"watch at {self.endpoint}"
        try:
            # The stream has no deadline; the attempt to connect has.
            await self._channel.connect(within=self._patience)
            exchange = await self._channel.open_stream(
                _WATCH, metadata=self._metadata(token, leader=True)
            )
        except CallFailed as failure:
            # The reader of the stream gets the error, as if the stream had failed later.
            error = errors.from_failure(failure, what=what)
            yield GrpcWatchStream(None, what, self.note_broken, error)
            return
        try:
            yield GrpcWatchStream(exchange, what, self.note_broken)
        finally:
            exchange.close()

    def close(self) -> None:
        """Free the connection."""
        self._channel.close()

    def _metadata(self, token: str, *, leader: bool) -> Metadata:
        if self._shown:
            return self._shown
        if not token:
            return _LEADER if leader else ()
        return (*_LEADER, ("token", token)) if leader else (("token", token),)


def _channel_settings(settings: ConnectionSettings) -> ChannelSettings:
    default = ChannelSettings(
        dial_timeout=settings.dial_timeout,
        keepalive=KeepAlive(time=settings.keepalive_time, timeout=settings.keepalive_timeout),
    )
    return replace(
        default,
        largest_answer=settings.largest_answer or default.largest_answer,
        stream_window=settings.stream_window or default.stream_window,
    )
