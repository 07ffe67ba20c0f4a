"""What goes wrong in a connection ends that connection, in a request that request alone."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions.web import HttpLimits, Message, Receive, Send
from etcd_actions.web.connection import Connection
from etcd_actions.web.http2_protocol import Http2
from tests._internal.test_containment import UNEXPECTED
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually
from tests.web.listeners import (
    H2,
    LOOPBACK,
    Served,
    Small,
    connect,
    get,
    h2_client,
    parsed,
    request,
    rest,
    served,
)


async def data_for_a_stream_that_is_answered(client: H2) -> None:
    number = await client.ask("/nothing", method="POST", end=False)
    assert await client.is_answered(number) == 404
    # Its client may not know yet that the stream is closed.
    await client.stream.send_all(b"\0\0\4\0\0" + number.to_bytes(4, "big") + b"late")
    assert await client.is_answered(await client.ask("/ok")) == 200


async def a_path_that_is_no_text(client: H2) -> None:
    number = await client.ask(b"/\xff\xfe")
    await client.until(lambda: number in client.resets)
    assert await client.is_answered(await client.ask("/ok")) == 200


async def a_method_that_is_no_text(client: H2) -> None:
    number = await client.ask("/ok", method=b"G\xc3\x28T")
    await client.until(lambda: number in client.resets)
    assert await client.is_answered(await client.ask("/ok")) == 200


async def a_connect_without_a_path(client: H2) -> None:
    number = client.connection.get_next_available_stream_id()
    headers = [(":method", "CONNECT"), (":authority", "localhost")]
    client.connection.send_headers(number, headers, end_stream=True)
    await client.flush()
    await client.until(lambda: number in client.resets)
    assert await client.is_answered(await client.ask("/ok")) == 200


async def priorities_of_many_streams(client: H2) -> None:
    for number in range(1, 2 * 1_100, 2):
        client.connection.prioritize(number, weight=10, depends_on=number + 2)
    await client.flush()
    assert await client.is_answered(await client.ask("/ok")) == 200


async def a_stream_that_depends_on_itself(client: H2) -> None:
    await client.stream.send_all(b"\0\0\5\2\0\0\0\0\1" + b"\0\0\0\1\x10")
    await client.until(lambda: client.is_over)


async def a_frame_that_is_too_large(client: H2) -> None:
    await client.stream.send_all(b"\xff\xff\xff\0\0\0\0\0\1")
    await client.until(lambda: client.is_over)


async def more_body_than_is_read_for_a_request_that_is_answered(client: H2) -> None:
    number = await client.ask("/nothing", method="POST", end=False)
    for _ in range(30):
        client.connection.send_data(number, b"x" * 100)
    await client.flush()
    assert await client.is_answered(number) == 404
    assert await client.is_answered(await client.ask("/ok")) == 200


FRAMES: list[Callable[[H2], Awaitable[None]]] = [
    data_for_a_stream_that_is_answered,
    a_path_that_is_no_text,
    a_method_that_is_no_text,
    a_connect_without_a_path,
    priorities_of_many_streams,
    a_stream_that_depends_on_itself,
    a_frame_that_is_too_large,
    more_body_than_is_read_for_a_request_that_is_answered,
]


@pytest.mark.parametrize("send", first_everyday(FRAMES, 3), ids=lambda each: each.__name__)
async def test_frames_harm_at_most_their_connection(
    send: Callable[[H2], Awaitable[None]],
) -> None:
    async with served() as server:
        async with h2_client(server.address) as client:
            await send(client)
        await server.is_well()
        assert server.containment.failures == {}


BYTES = {
    "garbage": b"\x00\xff garbage\r\n\r\n",
    "h2c with garbage": request("/ok", "upgrade: h2c", "connection: upgrade", "http2-settings: ?"),
    "websocket": request("/ok", "upgrade: websocket", "connection: upgrade"),
    "preface and garbage": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    "preface that goes wrong": b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + b"\0" * 100,
    "two lengths": request("/body", "content-length: 1", "content-length: 2", method="POST"),
    "length of no number": request("/body", "content-length: x", method="POST"),
    "chunk of no size": request("/body", "transfer-encoding: chunked", method="POST") + b"zz\r\n",
    "percent": request("/%ff%00%"),
    "method of no text": b"G\xffT / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "old": b"GET /ok HTTP/0.9\r\n\r\n",
    "garbage behind a request": request("/ok") + b"\xff" * 100,
    "garbage behind a request with a body": request("/body", "content-length: 5", method="POST")
    + b"hello\xff\r\n\r\n",
    "headers without end": b"GET /ok HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
}


@pytest.mark.parametrize("data", first_everyday(BYTES.values(), 5), ids=BYTES)
async def test_bytes_harm_at_most_their_connection(data: bytes) -> None:
    async with served() as server:
        async with await connect(server.address) as stream:
            await stream.send_all(data)
            await stream.send_eof()
            await rest(stream)
        await server.is_well()
        assert server.containment.failures == {}


HIDDEN = request("/ok")
UNCLEAR = {
    "both": request(
        "/body", f"content-length: {5 + len(HIDDEN)}", "transfer-encoding: chunked", method="POST"
    ),
    "both, turned round": request(
        "/body", "transfer-encoding: chunked", "content-length: 5", method="POST"
    ),
    "old": request("/body", "transfer-encoding: chunked", "connection: keep-alive").replace(
        b"HTTP/1.1", b"HTTP/1.0"
    ),
}


@pytest.mark.parametrize("head", UNCLEAR.values(), ids=UNCLEAR)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_body_of_unclear_length_is_refused(head: bytes, at_once: bool) -> None:
    """What follows may be a request to h11, and a body to the proxy before it."""
    async with served() as server, await connect(server.address) as stream:
        if at_once:
            await stream.send_all(head + b"0\r\n\r\n" + HIDDEN)
        else:
            await stream.send_all(head)
            await trio.testing.wait_all_tasks_blocked(0.02)
            await stream.send_all(b"0\r\n\r\n" + HIDDEN)
        data = await rest(stream)
        assert data.startswith(b"HTTP/1.1 400 ")
        assert data.count(b"HTTP/1.1 ") == 1
        assert server.listener.statistics().protocol_errors == 1
        assert server.containment.failures == {}


@pytest.mark.parametrize("error", UNEXPECTED)
async def test_an_exception_in_a_connection_ends_it_alone(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Connection.run

    async def fail_once(self: Connection) -> None:
        monkeypatch.setattr(Connection, "run", run)
        raise error

    async with served() as server, h2_client(server.address) as other:
        assert await other.is_answered(await other.ask("/ok")) == 200
        monkeypatch.setattr(Connection, "run", fail_once)
        async with await connect(server.address) as stream:
            assert await rest(stream) == b""
        assert await other.is_answered(await other.ask("/ok")) == 200
        await server.is_well()
        assert server.containment.failures == {"connection": 1}


@pytest.mark.parametrize("error", UNEXPECTED)
@pytest.mark.parametrize("where", ["parse", "_send_in_turn"])
async def test_an_exception_in_the_protocol_ends_its_connection_alone(
    error: BaseException, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served() as server, h2_client(server.address) as other:
        assert await other.is_answered(await other.ask("/ok")) == 200
        # Until what it has acknowledged is read.
        await trio.testing.wait_all_tasks_blocked(0.02)

        def fail(*_: Any) -> None:
            monkeypatch.undo()
            raise error

        async def fail_later(*_: Any) -> None:
            fail()

        monkeypatch.setattr(Http2, where, fail if where == "parse" else fail_later)
        async with h2_client(server.address) as client:
            await client.until(lambda: client.is_over)
        assert await other.is_answered(await other.ask("/ok")) == 200
        assert server.containment.failures == {"connection": 1}


@pytest.mark.parametrize("error", UNEXPECTED)
async def test_an_exception_in_a_request_ends_it_alone(error: BaseException) -> None:
    application = Small()

    def fail_once() -> None:
        application.hook = lambda: None
        raise error

    async with served(application) as server, h2_client(server.address) as client:
        waiting = await client.ask("/wait")
        await eventually(lambda: application.waiting == 1)
        application.hook = fail_once
        assert await client.is_answered(await client.ask("/ok")) == 500
        application.hook = fail_once
        assert (await get(server.address, "/ok"))[0] == 500
        application.go.set()
        assert await client.is_answered(waiting) == 200
        await server.is_well()
        assert server.containment.failures == {"request": 2}


async def test_an_answer_that_breaks_off_is_told_as_that() -> None:
    async def break_off(_scope: Message, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("in the middle")

    async with served(break_off) as server:
        async with h2_client(server.address) as client:
            number = await client.ask("/")
            await client.until(lambda: number in client.resets)
            assert number not in client.ended
        async with await connect(server.address) as stream:
            await stream.send_all(request("/"))
            assert not (await rest(stream)).endswith(b"0\r\n\r\n")


async def test_a_flood_of_failures_is_logged_a_few_times() -> None:
    application = Small()

    def fail() -> None:
        raise RuntimeError("each time")

    application.hook = fail
    async with served(application) as server, h2_client(server.address) as client:
        with capture_logs() as logs:
            for _ in range(200):
                assert await client.is_answered(await client.ask("/ok")) == 500
        assert server.containment.failures == {"request": 200}
        assert len(logs) < 50


async def test_a_client_that_breaks_the_protocol_is_counted_and_not_logged() -> None:
    async with served() as server:
        with capture_logs() as logs:
            for _ in range(50):
                async with h2_client(server.address) as client:
                    await client.stream.send_all(b"\xff\xff\xff\0\0\0\0\0\1")
                    await client.until(lambda: client.is_over)
        assert server.listener.statistics().protocol_errors == 50
        assert [line for line in logs if line["log_level"] != "debug"] == []


class Failing:
    """A socket whose next accepts fail."""

    def __init__(self, real: trio.socket.SocketType, errors: list[int]) -> None:
        self._real = real
        self._errors = errors

    async def accept(self) -> Any:
        if self._errors:
            await trio.lowlevel.checkpoint()
            raise OSError(self._errors.pop(), "it fails")
        return await self._real.accept()

    def close(self) -> None:
        self._real.close()


@pytest.mark.parametrize(
    "number",
    [
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
    ],
    ids=lambda number: errno.errorcode[number],
)
async def test_the_listener_survives_what_accept_can_say(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trio.socket.from_stdlib_socket

    def failing(sock: socket.socket) -> Any:
        return Failing(real(sock), [number] * 3)

    monkeypatch.setattr(trio.socket, "from_stdlib_socket", failing)
    async with served() as server:
        monkeypatch.undo()
        await server.is_well()
        assert server.containment.failures == {}


@pytest.mark.parametrize("error", UNEXPECTED)
async def test_the_listener_survives_an_exception_of_its_own(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served() as server:
        await server.is_well()
        from etcd_actions.web.open_connections import Connections  # noqa: PLC0415

        def fail(*_: object) -> None:
            monkeypatch.undo()
            raise error

        monkeypatch.setattr(Connections, "limit_for", fail)
        async with await connect(server.address) as stream:
            assert await rest(stream) == b""
        await server.is_well()
        assert server.containment.failures == {"listener": 1}


@pytest.mark.parametrize("how", ["left", "cancelled"])
async def test_requests_under_way_are_finished_and_streams_are_not_cut(how: str) -> None:
    application = Small()
    async with trio.open_nursery() as nursery:
        ready = trio.Event()

        async def serve(task_status: trio.TaskStatus[Served]) -> None:
            async with served(application, on_leave=application.go.set) as server:
                task_status.started(server)
                await ready.wait()

        server = await nursery.start(serve)
        async with h2_client(server.address) as client, await connect(server.address) as stream:
            first = await client.ask("/wait")
            await stream.send_all(request("/wait"))
            await eventually(lambda: application.waiting == 2)
            if how == "left":
                ready.set()
            else:
                nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                assert await client.is_answered(first) == 200
                assert parsed(await rest(stream)) == (200, b"waited")
                await client.until(lambda: client.is_over)


async def test_what_outlasts_the_grace_is_cut_even_while_it_is_sent() -> None:
    """A send is out of a cancellation's reach, since it must not leave half a frame."""
    application = Small()
    limits = HttpLimits(stall_timeout=1000)
    stream = None
    try:
        with trio.fail_after(30):
            async with served(application, limits, grace=0.2) as server:
                stream = await connect(server.address)
                await stream.send_all(request("/large"))
                await eventually(lambda: application.waiting == 1)
                await trio.testing.wait_all_tasks_blocked(0.05)
    finally:
        if stream is not None:
            await trio.aclose_forcefully(stream)
    assert application.waiting == 0


async def test_a_request_that_comes_too_late_is_refused_so_that_it_can_be_sent_again() -> None:
    application = Small()
    late = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[Served]) -> None:
            async with served(application) as server:
                task_status.started(server)
                await late.wait()

        server = await nursery.start(serve)
        async with h2_client(server.address) as client:
            first = await client.ask("/wait")
            await eventually(lambda: application.waiting == 1)
            late.set()
            await trio.testing.wait_all_tasks_blocked(0.05)
            second = await client.ask("/ok")
            await client.until(lambda: second in client.resets)
            assert client.resets[second] == 7
            application.go.set()
            assert await client.is_answered(first) == 200


async def test_it_listens_where_it_says() -> None:
    async with served(bind=LOOPBACK) as server:
        assert server.listener.address.port
        assert (await get(server.address, "/nothing"))[0] == 404


async def test_headers_of_http_1_are_left_out_of_http_2() -> None:
    async def close(_scope: Message, _receive: Receive, send: Send) -> None:
        headers = [(b"Connection", b"close"), (b"x-a", b"b")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async with served(close) as server, h2_client(server.address) as client:
        # h2 ends the connection of a client that gets them.
        assert await client.is_answered(await client.ask("/")) == 200
        assert await client.is_answered(await client.ask("/")) == 200


async def test_a_flood_that_nobody_wants_leaves_turns_to_others() -> None:
    async with served() as server, await connect(server.address) as stream:
        await stream.send_all(b"garbage\r\n\r\n")
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def flood() -> None:
                with suppress(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(b"x" * 2**20)

            for _ in range(5):
                await server.is_well()
            nursery.cancel_scope.cancel()
