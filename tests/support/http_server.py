"""An HTTP/1.1 server that says what a test tells it to, good or bad, byte by byte."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from etcd_actions.etcd.endpoints import Endpoint

_LOST = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)

GREETED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunk(data: bytes) -> bytes:
    """One chunk of an answer whose length is not known before."""
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass
class HttpRequest:
    """What a client sent, and the connection to answer on.

    Attributes:
        method: Such as POST.
        path: Such as /v3/watch.
        headers: With names in lower case.
        body: All of it.
        number: How many requests with a POST came before it.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    stream: trio.SocketStream
    number: int = 0

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.stream.send_all(data)

    async def until_closed(self) -> None:
        """Return when the client has hung up."""
        with contextlib.suppress(*_LOST):
            while await self.stream.receive_some():
                continue

    def reset(self) -> None:
        """Have the connection end with RST."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Script: TypeAlias = Callable[[HttpRequest], Awaitable[object]]
"""Answers one POST. The connection ends afterwards unless it returns True."""


@dataclass
class ScriptedServer:
    """Made by :func:`serving_http`.

    Attributes:
        script: What answers each POST.
        greeting: What answers each GET; None to say nothing.
        answers_gets: Whether the script answers each GET, too.
        posts: What was posted so far.
        accepted: Number of connections.
    """

    script: Script
    greeting: bytes | None = GREETED
    answers_gets: bool = False
    posts: list[HttpRequest] = field(default_factory=list)
    accepted: int = 0
    port: int = 0

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint("127.0.0.1", self.port)

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        self.accepted += 1
        with contextlib.suppress(*_LOST):
            async with stream:
                while (request := await _read(stream)) is not None:
                    if request.method == "GET" and not self.answers_gets:
                        if self.greeting is None:
                            await request.until_closed()
                            return
                        await request.send(self.greeting)
                        if b"Connection: close" in self.greeting:
                            return
                        continue
                    request.number = len(self.posts)
                    if request.method != "GET":
                        self.posts.append(request)
                    if await self.script(request) is not True:
                        return


@asynccontextmanager
async def serving_http(script: Script) -> AsyncIterator[ScriptedServer]:
    """Listen on a port of its own."""
    async with trio.open_nursery() as nursery:
        server = ScriptedServer(script)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        yield server
        nursery.cancel_scope.cancel("the test is over")


async def _read(stream: trio.SocketStream) -> HttpRequest | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += await stream.receive_some()
    return HttpRequest(method, path, headers, body, stream)
