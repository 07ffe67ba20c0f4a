"""Connections to the store: a call with its latency, its faults and its timeout."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from etcd_actions.errors import EtcdError, InvalidRequest, OutcomeUnknown, Unavailable
from etcd_actions.etcd import messages
from etcd_actions.etcd.client import EtcdClient
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.grpc import errors
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.etcd.rpc import Request, Result, Rpc
from etcd_actions.etcd.transport import Connection, MemberConnection
from etcd_actions.testing.memory.engine import Engine
from etcd_actions.testing.memory.faults import Call, ConnectionBroken, Faults
from etcd_actions.testing.memory.keyspace import Refused
from etcd_actions.testing.memory.streams import MemoryWatchStream


class MemoryClient(EtcdClient):
    """A client of a store in memory; created by ``MemoryStore.client``.

    All code above a connection is the same as over a network: the repetition of calls, the
    effect of a failed call on streams, and the texts of errors.

    Attributes:
        faults: The faults between this client and the store.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        connect: Callable[[Endpoint], Connection],
        faults: Faults,
    ) -> None:
        super().__init__(settings, connect)
        self.faults = faults


class MemoryConnection(MemberConnection):
    """A connection to the store in memory."""

    def __init__(
        self,
        engine: Engine,
        endpoint: Endpoint,
        faults: Faults,
        settings: ConnectionSettings,
    ) -> None:
        super().__init__(endpoint)
        self._engine = engine
        self._faults = faults
        self._silence = settings.keepalive_time + settings.keepalive_timeout

    async def call(
        self, rpc: Rpc[Request, Result], request: Request, *, token: str, within: float
    ) -> Result:
        """Do one call; see the protocol. The token is not checked."""
        what = f"{rpc.name} at {self.endpoint}"
        await trio.lowlevel.checkpoint()
        if self._is_refused():
            self.broken = True
            raise Unavailable(f"{what}: the connection is refused")
        lost = OutcomeUnknown if rpc.writes else Unavailable
        with trio.move_on_after(within):
            try:
                return await self._exchange(rpc, request, what)
            except ConnectionBroken:
                self.broken = True
                raise lost(f"{what}: the connection was lost") from None
        # A read without an answer is a sign of a broken connection; a slow write is none.
        self.broken = self.broken or not rpc.writes
        raise lost(f"{what}: no answer in {within:g} s")

    async def _exchange(self, rpc: Rpc[Request, Result], request: Request, what: str) -> Result:
        encode, _ = messages.of_method(rpc)
        try:
            size = len(encode(request).SerializeToString())
        except Exception as error:
            raise errors.unwritable(error, what=what) from error
        faults, epoch = self._faults, self._faults.epoch
        call = Call(rpc.name, rpc.writes, request)
        await faults.travel(epoch)
        script = faults.next_script(call)
        lost = (OutcomeUnknown if rpc.writes else Unavailable)(f"{what}: the answer was lost")
        if script is not None and script.held is not None:
            await script.held.wait(call)
            script = None
        if script is not None and script.error is not None:
            raise script.error
        if script is not None and not script.applied:
            raise lost
        try:
            result = self._engine.do(rpc, request, size)
        except Refused as refused:
            raise _error(str(refused), what) from None
        if script is not None:
            raise lost
        for _ in range(self._engine.pauses("events_first")):
            await trio.lowlevel.checkpoint()
        await faults.travel(epoch)
        return result

    @asynccontextmanager
    async def watch(self, *, token: str) -> AsyncIterator[MemoryWatchStream]:
        """Open a watch stream; see the protocol."""
        await trio.lowlevel.checkpoint()
        stream = MemoryWatchStream(
            self._engine, self._faults, silence=self._silence, on_unavailable=self.note_broken
        )
        if self._is_refused():
            stream.fail(Unavailable(f"watch at {self.endpoint}: the connection is refused"))
        with self._engine.watched_by(stream), self._faults.ringing(stream.look):
            yield stream

    def close(self) -> None:
        """There is nothing to free."""

    def _is_refused(self) -> bool:
        return self._faults.is_cut or not self._engine.serves(self.endpoint)


def _error(text: str, what: str) -> EtcdError:
    """The error of this package for etcd's text."""
    return (error_kind(text) or InvalidRequest)(f"{what}: {text}")
