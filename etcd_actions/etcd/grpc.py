"""Connections over grpcio, bridged to trio: the default transport.

Unary calls are grpcio futures, whose completions :mod:`etcd_actions.grpc_bridge` hands to
trio; no call has a thread of its own.

A connection that stopped answering (a stopped process, a dropped network path) looks healthy
to TCP for minutes. Three things find it: HTTP/2 pings with all of gRPC's time-outs set (any
one left at its default makes the others useless), a deadline on each call, and the watcher's
own probe.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, cast

import grpc
import trio

from etcd_actions.containment import describe
from etcd_actions.errors import ConfigError, Unavailable
from etcd_actions.etcd import grpc_errors, grpc_wire
from etcd_actions.etcd.connection import ConnectionSettings
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.grpc_watch import GrpcWatchStream
from etcd_actions.etcd.reasons import asks_elsewhere
from etcd_actions.etcd.rpc import Request, Result, Rpc
from etcd_actions.etcd.tls import look_at_certificate, read_pem
from etcd_actions.etcd.transport import Connection
from etcd_actions.grpc_bridge import Bell, Future, finished

_REQUIRE_LEADER = ("hasleader", "true")


def grpc_connections(settings: ConnectionSettings) -> Callable[[Endpoint], Connection]:
    """What makes connections over gRPC. They share the way back from gRPC's threads."""
    bell = Bell()
    return lambda endpoint: GrpcConnection(endpoint, settings, bell)


class _Stub(Protocol):
    """What grpcio's untyped stubs offer."""

    def future(
        self, request: object, *, timeout: float, metadata: Sequence[tuple[str, str]]
    ) -> Future: ...


class GrpcConnection:
    """Implements :class:`~etcd_actions.etcd.transport.Connection`."""

    def __init__(self, endpoint: Endpoint, settings: ConnectionSettings, bell: Bell) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._bell = bell
        self._broken = False
        self._looking = trio.Lock()
        self._channel: grpc.Channel | None = None
        self._stubs: dict[str, _Stub] = {}
        options = _channel_options(settings)
        tls = settings.tls_for(endpoint)
        if tls is None:
            self._channel = grpc.insecure_channel(str(endpoint), options=options)
        elif not tls.skip_verify:
            self._channel = self._secure_channel(read_pem(tls).roots, tls.server_name)

    @property
    def endpoint(self) -> Endpoint:
        """The member's address."""
        return self._endpoint

    @property
    def broken(self) -> bool:
        """Whether a call or a stream has found that the member cannot be reached."""
        return self._broken

    async def call(
        self, rpc: Rpc[Request, Result], request: Request, *, token: str, within: float
    ) -> Result:
        """Do one call; see the protocol."""
        encode, decode = grpc_wire.messages(rpc)
        what = f"{rpc.name} at {self._endpoint}"
        stub = self._stubs.get(rpc.name)
        if stub is None:
            channel = self._channel or await self._unverified_channel()
            stub = self._stubs[rpc.name] = _stub(channel, rpc)
        try:
            message = encode(request).SerializeToString()
        except Exception as error:
            raise grpc_errors.unwritable(error, what=what) from error
        try:
            future = stub.future(
                iter((message,)) if rpc.streams else message,
                timeout=within,
                metadata=_metadata(token, leader=rpc.needs_leader),
            )
        except Exception as error:
            # The channel is closed, or there can be no thread for the request.
            raise Unavailable(f"{what}: it cannot be sent: {describe(error)}") from error
        await finished(future, self._bell)
        code = future.code()
        if code is grpc.StatusCode.OK:
            try:
                return decode(future.result())
            except Exception as error:
                self._broken = True
                raise grpc_errors.unreadable(error, what=what, writes=rpc.writes) from error
        # A slow disk delays writes, which says nothing of the connection; reads do.
        details = future.details() or ""
        if (
            code is grpc.StatusCode.UNAVAILABLE
            or (code is grpc.StatusCode.DEADLINE_EXCEEDED and not rpc.writes)
            or asks_elsewhere(details)
        ):
            self._broken = True
        raise grpc_errors.from_status(code, details, what=what, writes=rpc.writes)

    @asynccontextmanager
    async def watch(self, *, token: str) -> AsyncIterator[GrpcWatchStream]:
        """Open a watch stream; see the protocol."""
        channel = self._channel or await self._unverified_channel()
        stream = GrpcWatchStream(
            channel, _metadata(token, leader=True), f"watch at {self._endpoint}", self._break
        )
        try:
            yield stream
        finally:
            await stream.aclose()

    def close(self) -> None:
        """Free the connection."""
        if self._channel is not None:
            self._channel.close()

    def _break(self) -> None:
        self._broken = True

    def _secure_channel(self, roots: bytes, name: str | None) -> grpc.Channel:
        tls = self._settings.tls_for(self._endpoint)
        assert tls is not None
        pem = read_pem(tls)
        options = _channel_options(self._settings)
        if name is not None:
            options += (("grpc.ssl_target_name_override", name),)
        credentials = grpc.ssl_channel_credentials(roots, pem.key, pem.cert)
        return grpc.secure_channel(str(self._endpoint), credentials, options=options)

    async def _unverified_channel(self) -> grpc.Channel:
        tls = self._settings.tls_for(self._endpoint)
        assert tls is not None
        async with self._looking:
            if self._channel is None:
                try:
                    pem, name = await trio.to_thread.run_sync(
                        look_at_certificate,
                        self._endpoint,
                        tls,
                        self._settings.dial_timeout,
                        abandon_on_cancel=True,
                    )
                    self._channel = self._secure_channel(pem, tls.server_name or name)
                except Unavailable:
                    self._broken = True
                    raise
                except ConfigError as error:
                    # The files were good at the start; they are being replaced, perhaps.
                    raise Unavailable(f"connecting to {self._endpoint}: {error}") from None
        return self._channel


def _stub(channel: grpc.Channel, rpc: Rpc[Request, Result]) -> _Stub:
    """Sends and receives bytes: encoding and decoding are no affair of gRPC's threads."""
    multi = channel.stream_unary if rpc.streams else channel.unary_unary
    return cast(_Stub, multi(f"/etcdserverpb.{rpc.name}"))


def _metadata(token: str, *, leader: bool) -> tuple[tuple[str, str], ...]:
    if not token:
        return (_REQUIRE_LEADER,) if leader else ()
    return (_REQUIRE_LEADER, ("token", token)) if leader else (("token", token),)


def _channel_options(settings: ConnectionSettings) -> tuple[tuple[str, int | str], ...]:
    keepalive_timeout = round(settings.keepalive_timeout * 1000)
    dial_timeout = round(settings.dial_timeout * 1000)
    return (
        ("grpc.keepalive_time_ms", round(settings.keepalive_time * 1000)),
        ("grpc.keepalive_timeout_ms", keepalive_timeout),
        ("grpc.http2.ping_timeout_ms", keepalive_timeout),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # The least time between tries is also the most that one may take.
        ("grpc.min_reconnect_backoff_ms", dial_timeout),
        ("grpc.max_reconnect_backoff_ms", max(2_000, dial_timeout)),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # Channels must not share a connection: a new one is made when the old one is dead.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    )
