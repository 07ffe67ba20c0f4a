"""A TCP proxy in front of etcd that breaks connections on demand.

It has no HTTP/2: it forwards bytes, and cuts, stalls, drops, divides or changes them.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from enum import Enum
from typing import TypeAlias

import trio

from etcd_actions._internal.argument_types import checks_types
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.testing.etcd_server import lasting_port

_CHUNK = 65536
_FRAME_HEAD = 9
_LOST = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class Direction(Enum):
    """The direction of bytes."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


Tamper: TypeAlias = Callable[[Direction, bytes], bytes]
"""Returns changed bytes, of one connection and direction."""


class _Connection:
    """One accepted connection, with its connection to the server."""

    def __init__(self, tamper: Tamper | None) -> None:
        self.scope = trio.CancelScope()
        self.reset = True
        self.tamper = tamper


class Proxy:
    """Forwards to one port of the loopback interface; created by :func:`open_proxy`.

    Attributes:
        port: The port that it listens on, also after it was down.
        accepted: Number of accepted connections.
        cuts: Number of cut connections.
        forwarded: Bytes forwarded in each direction.
        chunk: Divides bytes into the pieces to forward; None forwards them as received.
        delay: Seconds by which received bytes are delayed.
        tamper: Called for each connection; returns the function that changes its bytes. None
            changes none.
    """

    def __init__(self, nursery: trio.Nursery, target: int) -> None:
        self._nursery = nursery
        self._target = target
        self._serving = trio.CancelScope()
        self._stopped = trio.Event()
        self._connections: set[_Connection] = set()
        self._open = {direction: trio.Event() for direction in Direction}
        for gate in self._open.values():
            gate.set()
        self._budgets: deque[int] = deque()
        self._needle: bytes | None = None
        self._held = trio.Event()
        self.port: int = lasting_port()
        self.accepted: int = 0
        self.cuts: int = 0
        self.forwarded: dict[Direction, int] = dict.fromkeys(Direction, 0)
        self.chunk: Callable[[bytes], Iterable[bytes]] | None = None
        self.delay: float = 0.0
        self.tamper: Callable[[], Tamper] | None = None

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def is_open(self) -> bool:
        """Whether there is a connection now."""
        return bool(self._connections)

    def cut(self, *, reset: bool = True) -> None:
        """End all connections now: with RST, or with FIN."""
        for connection in tuple(self._connections):
            connection.reset = reset
            connection.scope.cancel("the test cuts")

    async def go_down(self, *, reset: bool = True) -> None:
        """Cut everything and refuse new connections."""
        self._serving.cancel("the proxy is down")
        await self._stopped.wait()
        self.cut(reset=reset)
        while self._connections:
            await trio.lowlevel.checkpoint()

    async def come_up(self) -> None:
        """Accept connections again, on the same port."""
        self._serving = trio.CancelScope()
        self._stopped = trio.Event()
        await self._nursery.start(self._serve)

    def stall(self, *directions: Direction) -> None:
        """Stop forwarding in these directions, by default in both; connections stay open."""
        for direction in directions or Direction:
            if self._open[direction].is_set():
                self._open[direction] = trio.Event()

    def unstall(self) -> None:
        """Forward again in both directions, first the bytes that were received in between."""
        for gate in self._open.values():
            gate.set()

    def cut_after(self, *sizes: int) -> None:
        """Cut after so many bytes to the client, again after the next size, and so on."""
        self._budgets = deque(sizes)

    @property
    def cuts_left(self) -> int:
        """The number of sizes of :meth:`cut_after` that are not reached yet."""
        return len(self._budgets)

    def hold_answers_after(self, needle: bytes) -> trio.Event:
        """Forward nothing to the client after the next request with ``needle``, until :meth:`cut`.

        Returns:
            An event that is set when the request has been forwarded.
        """
        self._needle = needle
        self._held = trio.Event()
        return self._held

    async def _serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self._serving:
            listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
            await trio.serve_listeners(
                self._connect,
                listeners,
                handler_nursery=self._nursery,
                task_status=_Once(task_status),
            )
        self._stopped.set()

    async def _connect(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        connection = _Connection(None if self.tamper is None else self.tamper())
        self._connections.add(connection)
        try:
            async with client:
                try:
                    server = await trio.open_tcp_stream("127.0.0.1", self._target)
                except OSError:
                    _reset(client)
                    return
                async with server:
                    with connection.scope:
                        async with trio.open_nursery() as nursery:
                            for source, sink, direction in (
                                (client, server, Direction.TO_SERVER),
                                (server, client, Direction.TO_CLIENT),
                            ):
                                nursery.start_soon(
                                    self._pump, connection, nursery, source, sink, direction
                                )
                    if connection.scope.cancel_called:
                        self.cuts += 1
                        if connection.reset:
                            _reset(client)
                            _reset(server)
        finally:
            self._connections.discard(connection)

    async def _pump(
        self,
        connection: _Connection,
        nursery: trio.Nursery,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        direction: Direction,
    ) -> None:
        with contextlib.suppress(*_LOST):
            while True:
                await self._open[direction].wait()
                data = await source.receive_some(_CHUNK)
                if not data:
                    break
                await self._open[direction].wait()
                if connection.tamper is not None:
                    data = connection.tamper(direction, data)
                if direction is Direction.TO_CLIENT:
                    await self._answer(connection, sink, data)
                    continue
                needle, self._needle = self._needle, None
                found = needle is not None and needle in data
                if found:
                    self._open[Direction.TO_CLIENT] = trio.Event()
                else:
                    self._needle = needle
                await self._send(sink, data, direction)
                if found:
                    self._held.set()
        # One side has ended: so does the other.
        nursery.cancel_scope.cancel("the other side closed")

    async def _answer(self, connection: _Connection, sink: trio.SocketStream, data: bytes) -> None:
        if self._budgets and len(data) >= self._budgets[0]:
            await self._send(sink, data[: self._budgets.popleft()], Direction.TO_CLIENT)
            connection.reset = False
            connection.scope.cancel("the allowance is used up")
            await trio.lowlevel.checkpoint()
        if self._budgets:
            self._budgets[0] -= len(data)
        await self._send(sink, data, Direction.TO_CLIENT)

    async def _send(self, sink: trio.SocketStream, data: bytes, direction: Direction) -> None:
        if self.delay:
            await trio.sleep(self.delay)
        for piece in self.chunk(data) if self.chunk is not None else (data,):
            await sink.send_all(piece)
            self.forwarded[direction] += len(piece)


class _Once:
    """Forwards ``started`` without the listeners."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status = status

    def started(self, _listeners: object = None) -> None:
        self._status.started()


@checks_types
@asynccontextmanager
async def open_proxy(target: int) -> AsyncIterator[Proxy]:
    """Listen on a port of its own, and forward to the loopback port ``target``.

    Leaving the context cuts all connections.
    """
    async with owned_tasks("the proxy") as nursery:
        proxy = Proxy(nursery, target)
        await proxy.come_up()
        yield proxy
        nursery.cancel_scope.cancel("the test has ended")


def _reset(stream: trio.SocketStream) -> None:
    """Have the stream's close send RST instead of FIN."""
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def flipping(
    direction: Direction, every: int, *, seed: int = 0, first: int = 0
) -> Callable[[], Tamper]:
    """For :attr:`Proxy.tamper`: flip about one bit in ``every`` bytes of one direction.

    With TLS each flip ends the connection. Without TLS it may change a value without an error:
    only TCP's checksum, which the proxy computes again, protects it.

    Args:
        direction: The direction.
        every: The mean distance of two flips, in bytes.
        seed: Of the random places.
        first: Bytes of each connection that are not changed, for example a handshake.
    """
    places = random.Random(seed)

    def make() -> Tamper:
        spared = first

        def tamper(to: Direction, data: bytes) -> bytes:
            nonlocal spared
            if to is not direction:
                return data
            begin, spared = min(spared, len(data)), max(0, spared - len(data))
            flips = sum(places.random() * every < 1 for _ in range(len(data) - begin))
            changed = bytearray(data)
            for _ in range(flips):
                changed[places.randrange(begin, len(data))] ^= 1 << places.randrange(8)
            return bytes(changed)

        return tamper

    return make


def saying_goaway(
    error: int, debug: bytes = b"", *, after: int, last_stream: int = 2**31 - 1
) -> Callable[[], Tamper]:
    """For :attr:`Proxy.tamper`: add a GOAWAY of the server (RFC 9113, 6.8) to each connection.

    Args:
        error: HTTP/2's code: 0 as at the end of a connection's age, 11 (ENHANCE_YOUR_CALM) with
            ``b"too_many_pings"`` as gRPC's servers do.
        debug: Its debug data.
        after: The least number of the server's bytes before it; it is put between two frames.
        last_stream: The last stream that the server will serve.
    """
    payload = struct.pack(">II", last_stream, error) + debug
    goaway = len(payload).to_bytes(3, "big") + b"\x07\x00" + bytes(4) + payload

    def make() -> Tamper:
        seen = 0
        # Of the current frame: the bytes of its head so far, and the payload bytes that follow.
        head = b""
        left = 0
        said = False

        def tamper(to: Direction, data: bytes) -> bytes:
            nonlocal seen, head, left, said
            if to is not Direction.TO_CLIENT or said:
                return data
            at = 0
            while at < len(data):
                if left:
                    taken = min(left, len(data) - at)
                    left -= taken
                    at += taken
                else:
                    taken = min(_FRAME_HEAD - len(head), len(data) - at)
                    head += data[at : at + taken]
                    at += taken
                    if len(head) == _FRAME_HEAD:
                        left, head = int.from_bytes(head[:3], "big"), b""
                if not left and not head and seen + at >= after:
                    said = True
                    return data[:at] + goaway + data[at:]
            seen += len(data)
            return data

        return tamper

    return make


def pieces_of(size: int) -> Callable[[bytes], Iterable[bytes]]:
    """For :attr:`Proxy.chunk`: pieces of ``size`` bytes."""
    return lambda data: (data[at : at + size] for at in range(0, len(data), size))
