"""Listeners with a small application, and clients that send what they like."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.web import (
    Application,
    Bind,
    HttpLimits,
    Listener,
    Message,
    Receive,
    Send,
    open_listener,
    take_long_body,
)

LOOPBACK = Bind("127.0.0.1", 0)
DEADLINE = 30.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


async def answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def whole(receive: Receive) -> bytes | None:
    """The body of a request; None where the client left."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


class Small:
    """An application: /ok, /body and /long (how long it is), /wait (until let go), /large.

    Attributes:
        waiting: How many requests of /wait and /large are under way.
        begun: How many of /large have begun, also if they have ended.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.begun = 0
        self.left = 0
        self.go = trio.Event()
        self.hook: Callable[[], None] = lambda: None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.hook()
        match scope["path"]:
            case "/ok":
                await answer(send, 200, b"ok")
            case "/body" | "/long":
                if scope["path"] == "/long":
                    take_long_body(scope)
                body = await whole(receive)
                await answer(send, 200 if body is not None else 400, b"%d" % len(body or b""))
            case "/wait":
                await self._wait(receive, send)
            case "/large":
                await self._large(send)
            case _:
                await answer(send, 404, b"nothing")

    async def _wait(self, receive: Receive, send: Send) -> None:
        self.waiting += 1
        try:
            await whole(receive)
            await self.go.wait()
            await answer(send, 200, b"waited")
        finally:
            self.waiting -= 1

    async def _large(self, send: Send) -> None:
        self.begun += 1
        self.waiting += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(10_000):
                part = {"type": "http.response.body", "body": b"x" * 30_000, "more_body": True}
                await send(part)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.waiting -= 1


class Served:
    """A listener under test."""

    def __init__(
        self, listener: Listener, application: Application, containment: Containment
    ) -> None:
        self.listener = listener
        self.application = application
        self.containment = containment
        self.address = (listener.address.host, listener.address.port)

    async def is_well(self) -> None:
        """It still answers a new client."""
        assert (await get(self.address, "/ok"))[0] == 200


@asynccontextmanager
async def served(
    application: Application | None = None, limits: HttpLimits | None = None, **more: Any
) -> AsyncIterator[Served]:
    containment = Containment()
    application = Small() if application is None else application
    async with open_listener(
        application,
        more.pop("bind", LOOPBACK),
        flag="--listen",
        limits=limits or HttpLimits(),
        containment=containment,
        **more,
    ) as listener:
        yield Served(listener, application, containment)


async def connect(address: tuple[str, int]) -> trio.SocketStream:
    return await trio.open_tcp_stream(*address)


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *headers, "", ""]).encode()


async def get(address: tuple[str, int], path: str, *headers: str) -> tuple[int, bytes]:
    """Status and body, over HTTP/1.1."""
    async with await connect(address) as stream:
        await stream.send_all(request(path, "connection: close", *headers))
        return parsed(await rest(stream))


def parsed(data: bytes) -> tuple[int, bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def rest(stream: trio.SocketStream, within: float = DEADLINE) -> bytes:
    """All that comes until the other side has enough; a reset counts as that."""
    data = b""
    with trio.fail_after(within):
        while True:
            try:
                part = await stream.receive_some()
            except trio.BrokenResourceError:
                return data
            if not part:
                return data
            data += part


class H2:
    """A client of HTTP/2 that knows what it does."""

    def __init__(self, stream: trio.SocketStream, window: int | None = None) -> None:
        self.stream = stream
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        if window is not None:
            self.connection.local_settings = h2.settings.Settings(
                client=True,
                initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window},
            )
        self.statuses: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.is_over = False
        self.sends_no_more = False
        self.gives_back = True

    async def greet(self) -> None:
        self.connection.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        await self.stream.send_all(self.connection.data_to_send())

    async def ask(
        self,
        path: str | bytes,
        *headers: tuple[str, str],
        method: str | bytes = "GET",
        end: bool = True,
    ) -> int:
        number = self.connection.get_next_available_stream_id()
        self.connection.send_headers(
            number,
            [
                (b":method", method),
                (b":path", path),
                (b":scheme", b"http"),
                (b":authority", b"localhost"),
                *headers,
            ],
            end_stream=end,
        )
        await self.flush()
        return number

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until something holds, or the other side ends the connection."""
        with trio.fail_after(DEADLINE):
            while not condition() and not self.is_over:
                await self._read()

    async def is_answered(self, number: int) -> int:
        await self.until(lambda: number in self.ended or number in self.resets)
        return self.statuses[number]

    async def _read(self) -> None:
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.is_over = True
            return
        for event in self.connection.receive_data(data):
            self._note(event)
        try:
            await self.flush()
        except trio.BrokenResourceError:
            self.is_over = True
        except trio.ClosedResourceError:
            # It has said that it sends no more.
            assert self.sends_no_more

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            fields: dict[Any, Any] = dict(event.headers or ())
            self.statuses[event.stream_id or 0] = int(fields[":status"])
        elif isinstance(event, h2.events.DataReceived):
            number = event.stream_id or 0
            self.bodies[number] = self.bodies.get(number, b"") + (event.data or b"")
            size = event.flow_controlled_length or 0
            if self.gives_back:
                self.connection.acknowledge_received_data(size, number)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id or 0)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id or 0] = int(event.error_code or 0)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.is_over = True


@asynccontextmanager
async def h2_client(address: tuple[str, int], window: int | None = None) -> AsyncIterator[H2]:
    async with await connect(address) as stream:
        client = H2(stream, window)
        await client.greet()
        yield client


@contextmanager
def sockets(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    """So many connections that send nothing."""
    found: list[socket.socket] = []
    try:
        for _ in range(count):
            found.append(socket.create_connection(address, timeout=DEADLINE))
        yield found
    finally:
        for each in found:
            each.close()
