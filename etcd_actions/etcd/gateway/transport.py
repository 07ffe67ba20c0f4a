"""Connections over etcd's JSON gateway, HTTP/1.1: for networks that pass nothing else.

Calls run in threads, whose number a limiter of their own bounds. The socket of a call that is
cancelled, or that times out, is shut down, so its thread ends, too.

The gateway authenticates by token only: etcd ignores the common name of a client's certificate
there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from etcd_actions._internal.containment import describe
from etcd_actions.errors import ConfigError, InvalidRequest
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.gateway import errors, wire
from etcd_actions.etcd.gateway.errors import CallInfo, Failed
from etcd_actions.etcd.gateway.wire import Refusal
from etcd_actions.etcd.rpc import Request, Result, Rpc
from etcd_actions.etcd.transport import Connection, MemberConnection

try:
    from etcd_actions.etcd.gateway.http import Exchange, HttpSession, call_headers
    from etcd_actions.etcd.gateway.watch import GatewayWatchStream
except ModuleNotFoundError as missing:
    if (missing.name or "").startswith("etcd_actions"):
        raise
    raise ConfigError(
        f"transport gateway: the package {missing.name} is missing: "
        "pip install 'etcd-actions[gateway]'"
    ) from missing

_CALLS = 32
"""The most calls at a time; a write that waits for a slow disk keeps its thread."""

_SPARE_SECONDS = 1.0
"""Seconds by which the socket's timeout is longer than trio's deadline."""


def gateway_connections(settings: ConnectionSettings) -> Callable[[Endpoint], Connection]:
    """The function that makes connections over the gateway. They share the limit of threads."""
    limiter = trio.CapacityLimiter(_CALLS)
    return lambda endpoint: GatewayConnection(endpoint, settings, limiter)


class GatewayConnection(MemberConnection):
    """A connection to one member over the gateway.

    Raises:
        ConfigError: A file of the TLS settings cannot be used; the message names it.
    """

    def __init__(
        self, endpoint: Endpoint, settings: ConnectionSettings, limiter: trio.CapacityLimiter
    ) -> None:
        super().__init__(endpoint)
        self._settings = settings
        self._limiter = limiter
        self._session = HttpSession(endpoint, settings, connections=_CALLS)

    async def call(
        self, rpc: Rpc[Request, Result], request: Request, *, token: str, within: float
    ) -> Result:
        """Do one call; see the protocol."""
        info = CallInfo(f"{rpc.name} at {self.endpoint}", rpc.writes)
        try:
            body = wire.encode(rpc, request)
        except Exception as error:
            text = f"{info.what}: the request cannot be written: {describe(error)}"
            raise InvalidRequest(text) from error
        headers = call_headers(token, leader=rpc.needs_leader)
        exchange = Exchange(within + _SPARE_SECONDS)

        def call() -> Result | Failed:
            try:
                return self._answer(rpc, info, exchange, body, headers)
            finally:
                exchange.finish()

        with trio.move_on_after(within):
            try:
                result = await trio.to_thread.run_sync(
                    call, limiter=self._limiter, abandon_on_cancel=True
                )
            except trio.Cancelled:
                exchange.cut()
                raise
            except Exception as error:
                # No thread can be started, or the call raised an unexpected exception.
                reason = f"failed unexpectedly: {describe(error)}"
                raise errors.lost(info, reason, sent=exchange.sent) from error
            if isinstance(result, Failed):
                self.broken = self.broken or result.broken
                raise result.error
            return result
        # A slow disk delays writes, so only a slow read shows a broken connection.
        if exchange.dialled if not exchange.sent else not rpc.writes:
            self.broken = True
        raise errors.lost(info, f"no answer within {within:.3g} s", sent=exchange.sent)

    @asynccontextmanager
    async def watch(self, *, token: str) -> AsyncIterator[GatewayWatchStream]:
        """Open a watch stream; see the protocol."""
        stream = GatewayWatchStream(
            self._session,
            self._settings,
            call_headers(token, leader=True),
            f"watch at {self.endpoint}",
            self.note_broken,
        )
        try:
            yield stream
        finally:
            await stream.aclose()

    def close(self) -> None:
        """Free the connection."""
        self._session.close()

    def _answer(
        self,
        rpc: Rpc[Request, Result],
        info: CallInfo,
        exchange: Exchange,
        body: bytes,
        headers: dict[str, str],
    ) -> Result | Failed:
        """The thread's part: send, read, decode."""
        try:
            response = self._session.post(exchange, rpc.path, body, headers=headers)
            # It is read to its end, so that the connection can be used again.
            answer: bytes = response.raw.read(decode_content=True)
        except Exception as error:
            return errors.from_exception(error, info, sent=exchange.sent)
        if response.status_code != 200:
            refusal = wire.decode_refusal(answer)
            if refusal is None:
                return errors.from_status(response.status_code, answer, info)
            return errors.from_refusal(refusal, info)
        try:
            result = wire.decode(rpc, answer)
        except Exception as error:
            return errors.from_unreadable(info, describe(error))
        if isinstance(result, Refusal):
            return errors.from_refusal(result, info)
        return result
