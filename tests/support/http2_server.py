"""A server of the tests' own, on trio and the library h2."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import trio

from etcd_actions.http2 import Target
from tests.support.http2_peer import Peer

Script: TypeAlias = Callable[["Served"], None]


class Served:
    """One connection of a client.

    Attributes:
        peer: The server's side of it.
        number: Which connection it is, from 1 on.
        mute: Whether nothing is read or written any more.
    """

    def __init__(self, stream: trio.abc.Stream, number: int, settings: dict[int, int]) -> None:
        self.peer = Peer(settings)
        self.number = number
        self.mute = False
        self._stream = stream
        self._gone = trio.Event()

    @property
    def open_calls(self) -> list[int]:
        """Calls that are complete and that nobody answered."""
        requests = self.peer.requests.items()
        answered = self.peer.answered
        return [
            each
            for each, got in requests
            if got.ended and got.reset is None and each not in answered
        ]

    def cut(self) -> None:
        """Close the connection, when what is to be sent was sent."""
        self._gone.set()

    def cut_at_once(self) -> None:
        """Close the connection without a turn of the loop, so that nobody has seen it yet."""
        stream = self._stream
        assert isinstance(stream, trio.SocketStream)
        stream.socket.shutdown(socket.SHUT_RDWR)

    async def run(self, script: Script) -> None:
        try:
            await self.send()
            while not self._gone.is_set():
                data = await self._stream.receive_some(65_536)
                if not data:
                    return
                if self.mute:
                    await trio.sleep_forever()
                self.peer.receive(bytes(data))
                script(self)
                await self.send()
        finally:
            await trio.aclose_forcefully(self._stream)

    async def send(self) -> None:
        """Write what the peer has to say."""
        if data := self.peer.take():
            await self._stream.send_all(data)


class Server:
    """What listens.

    Attributes:
        target: Where.
        connections: What has connected.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.connections: list[Served] = []

    @property
    def last(self) -> Served:
        """The newest connection."""
        return self.connections[-1]


def answering(served: Served) -> None:
    """Send each message back."""
    for number in served.open_calls:
        served.peer.answer(number, bytes(served.peer.requests[number].body))


def silent(_: Served) -> None:
    """Hear, and say nothing."""


@asynccontextmanager
async def serving(
    script: Script,
    *,
    settings: dict[int, int] | None = None,
    host: str = "127.0.0.1",
    unix: Path | None = None,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[Server]:
    """Listen, and do after each read what the script says."""
    listeners: list[trio.SocketListener]
    if unix is None:
        listeners = await trio.open_tcp_listeners(0, host=host)
        port: int = listeners[0].socket.getsockname()[1]
        server = Server(Target(host=host, port=port))
    else:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(unix))
        sock.listen()
        listeners = [trio.SocketListener(sock)]
        server = Server(Target(host=str(unix)))

    async def serve(stream: trio.SocketStream) -> None:
        wire: trio.abc.Stream = stream
        if context is not None:
            wire = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        served = Served(wire, len(server.connections) + 1, settings or {})
        server.connections.append(served)
        try:
            await served.run(script)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel("seen enough")
