"""Accepts connections within the budget; each has its own boundary."""

from __future__ import annotations

import errno
import socket
from typing import Any, Final

import trio

from etcd_actions.web import descriptors
from etcd_actions.web.asgi import is_protocol_error
from etcd_actions.web.bind import plain_address
from etcd_actions.web.connection import Connection, Shared
from etcd_actions.web.open_connections import Connections, Slot
from etcd_actions.web.peers import Address, Peers

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_WAIT: Final = 0.1
"""Seconds before the next accept, after the descriptors or the memory were exhausted."""


class Admission:
    """Checks which users of this machine may connect."""

    def __init__(self, peers: Peers, uids: frozenset[int]) -> None:
        self._peers = peers
        self._uids = uids

    def refusal(self, peer: Address, here: Address) -> dict[str, object] | None:
        """Why a connection is refused, as details of a log line; None if it is allowed."""
        uid = self._peers.uid(peer, here)
        if uid in self._uids:
            return None
        return {"uid": "unknown" if uid is None else uid, "allowed": sorted(self._uids)}


class Acceptor:
    """The accept loop of one listener.

    Args:
        listening: The listening socket.
        shared: The parts that all connections share.
        connections: The budget of connections.
        admission: Which users may connect; None for all.
        flag: The listener's name in logs.
    """

    def __init__(
        self,
        listening: socket.socket,
        shared: Shared,
        connections: Connections,
        admission: Admission | None,
        flag: str,
    ) -> None:
        self._listening = trio.socket.from_stdlib_socket(listening)
        self._shared = shared
        self._connections = connections
        self._admission = admission
        self._flag = flag
        self._ceiling = descriptors.ceiling(shared.answering.limits)
        self._open: set[Connection] = set()
        self._leaving = trio.CancelScope()

    async def run(self, nursery: trio.Nursery) -> None:
        """Accept connections until :meth:`leave`; the nursery serves them."""

        async def accept() -> None:
            while True:
                await self._accept(nursery)

        with self._leaving:
            await self._shared.answering.containment.keep("listener", self._flag, accept)

    def leave(self) -> None:
        """Accept no more connections and requests; requests in progress may finish."""
        self._leaving.cancel("the listener ends")
        self._listening.close()
        self._shared.is_leaving = True
        for connection in self._open:
            connection.leave()

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in self._open:
            connection.abort()

    async def _accept(self, nursery: trio.Nursery) -> None:
        answering = self._shared.answering
        try:
            accepted, address = await self._listening.accept()
        except OSError as error:
            # Any other error is about one connection, which is closed already.
            if error.errno in _EXHAUSTED:
                answering.counts.refused["descriptors"] += 1
                answering.log_limits.report("connections_refused", "descriptors", error=str(error))
                _replace(self._connections.replaceable())
                await trio.sleep(_WAIT)
            return
        # The connection reads and writes without trio's wrapper.
        kind = accepted.family, accepted.type, accepted.proto
        sock = socket.socket(*kind, fileno=accepted.detach())
        try:
            sock.setblocking(False)
            host = _plain(address[0])
            peer = f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
            ends = (host, address[1]), _end(sock.getsockname())
            refusal = self._refusal(sock, ends)
        except BaseException:
            sock.close()
            raise
        if refusal is not None:
            reason, details = refusal
            sock.close()
            answering.counts.refused[reason] += 1
            answering.log_limits.report("connections_refused", reason, peer=peer, **details)
            return
        answering.counts.accepted += 1

        def close() -> None:
            answering.counts.closed["replaced"] += 1
            sock.close()

        slot = self._connections.add(peer, host, close)
        nursery.start_soon(self._serve, sock, slot, ends)

    def _refusal(
        self, sock: socket.socket, ends: tuple[Address, Address]
    ) -> tuple[str, dict[str, object]] | None:
        """Why a connection is refused; None if it is accepted, perhaps in place of another one."""
        if self._admission is not None and (why := self._admission.refusal(*ends)) is not None:
            return "user", why
        if (full := self._connections.limit_for(ends[0][0])) is not None:
            reason, replaceable = full
            if replaceable is None:
                return reason, {"open": len(self._connections), "most": self._connections.most}
            replaceable.replace()
        if sock.fileno() >= self._ceiling:
            _replace(self._connections.replaceable(ends[0][0]))
            return "descriptors", {"limit": descriptors.limit()}
        return None

    async def _serve(self, sock: socket.socket, slot: Slot, ends: tuple[Address, Address]) -> None:
        if slot.is_replaced:
            # Another connection replaced it before it started.
            return
        answering = self._shared.answering
        try:
            with answering.containment.unit("connection", f"{self._flag} {slot.peer}"):
                try:
                    await self._run(sock, slot, ends)
                except BaseException as error:
                    if not is_protocol_error(error):
                        raise
                    answering.protocol_error(error)
        finally:
            sock.close()
            slot.release()

    async def _run(self, sock: socket.socket, slot: Slot, ends: tuple[Address, Address]) -> None:
        plain = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = plain
        if self._shared.context is not None:
            stream = trio.SSLStream(
                plain, self._shared.context, server_side=True, https_compatible=True
            )
        connection = Connection(stream, sock, slot, ends, self._shared)
        slot.close = connection.replace
        self._open.add(connection)
        try:
            if self._shared.is_leaving:
                return
            await connection.run()
        finally:
            self._open.discard(connection)


def _replace(slot: Slot | None) -> None:
    if slot is not None:
        slot.replace()


def _plain(host: str) -> str:
    """An address without its zone; a mapped IPv4 address as such."""
    address = plain_address(host)
    return host if address is None else str(address)


def _end(address: Any) -> Address:
    return _plain(address[0]), address[1]
