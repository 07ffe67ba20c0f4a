"""How long a client may take: for headers, bodies, responses, and after its end."""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from etcd_actions.web import HttpLimits, Message, Receive, Send
from tests.support.waiting import eventually
from tests.web.listeners import (
    PREFACE,
    SETTINGS,
    Small,
    connect,
    h2_client,
    parsed,
    request,
    rest,
    served,
    whole,
)

HASTY = HttpLimits(header_timeout=0.2, idle_timeout=600, body_timeout=600, stall_timeout=600)


async def nothing(_: trio.SocketStream) -> None:
    """Connect and say nothing."""


async def half_a_header(stream: trio.SocketStream) -> None:
    await stream.send_all(b"GET /ok HTTP/1.1\r\nhost: loc")


async def a_slow_header(stream: trio.SocketStream) -> None:
    await stream.send_all(b"GET /ok HTTP/1.1\r\n")
    while True:
        await stream.send_all(b"a: b\r\n")
        await trio.sleep(0.05)  # The pace of a slow client.


async def a_preface_alone(stream: trio.SocketStream) -> None:
    await stream.send_all(PREFACE)


async def half_a_frame(stream: trio.SocketStream) -> None:
    await stream.send_all(PREFACE + SETTINGS + b"\0\0\x10\1\4\0\0\0\1half")


async def headers_without_an_end(stream: trio.SocketStream) -> None:
    await stream.send_all(PREFACE + SETTINGS + b"\0\0\1\1\0\0\0\0\1\x82")


async def half_a_header_after_a_request(stream: trio.SocketStream) -> None:
    await stream.send_all(request("/ok") + b"GET /ok HTTP/1.1\r\nhost: loc")


SILENCE: list[Callable[[trio.SocketStream], Awaitable[None]]] = [
    nothing,
    half_a_header,
    a_slow_header,
    a_preface_alone,
    half_a_frame,
    headers_without_an_end,
    half_a_header_after_a_request,
]


@pytest.mark.parametrize("begin", SILENCE, ids=lambda each: each.__name__)
async def test_headers_have_a_time_out(
    begin: Callable[[trio.SocketStream], Awaitable[None]],
) -> None:
    async with served(limits=HASTY) as server, await connect(server.address) as stream:

        async def run() -> None:
            try:
                await begin(stream)
            except trio.BrokenResourceError:
                assert begin is a_slow_header

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await rest(stream)
            nursery.cancel_scope.cancel()
        assert server.listener.statistics().closed == {"header_timeout": 1}
        await eventually(lambda: server.listener.statistics().open_connections == 0)


async def test_a_client_that_has_greeted_may_be_idle_for_longer() -> None:
    """A channel of gRPC's may be opened before it is used."""
    # So long that a process which is held up greets in time.
    limits = replace(HASTY, header_timeout=2)
    async with served(limits=limits) as server, h2_client(server.address) as client:
        await client.until(lambda: server.listener.statistics().open_connections == 1)
        with trio.move_on_after(2.3):
            await client.until(lambda: False)
        assert await client.is_answered(await client.ask("/ok")) == 200


@pytest.mark.parametrize("kind", ["http/1.1", "h2"])
async def test_an_idle_connection_is_closed(kind: str) -> None:
    limits = HttpLimits(idle_timeout=0.1)
    async with served(limits=limits) as server:
        if kind == "h2":
            async with h2_client(server.address) as client:
                assert await client.is_answered(await client.ask("/ok")) == 200
                await client.until(lambda: client.is_over)
        else:
            async with await connect(server.address) as stream:
                await stream.send_all(request("/ok"))
                assert parsed(await rest(stream)) == (200, b"ok")
        await eventually(lambda: server.listener.statistics().open_connections == 0)
        assert server.listener.statistics().closed == {"idle": 1}


@pytest.mark.parametrize("kind", ["http/1.1", "h2"])
async def test_a_body_has_a_time_out(kind: str) -> None:
    limits = HttpLimits(body_timeout=0.2)
    async with served(limits=limits) as server:
        if kind == "h2":
            async with h2_client(server.address) as client:
                number = await client.ask("/body", method="POST", end=False)
                client.connection.send_data(number, b"x")
                await client.flush()
                assert await client.is_answered(number) == 400
        else:
            async with await connect(server.address) as stream:
                await stream.send_all(request("/body", "content-length: 100", method="POST"))
                assert parsed(await rest(stream))[0] == 400
        await server.is_well()


@pytest.mark.parametrize("window", [0, 1000, None])
async def test_a_client_of_http_2_that_takes_nothing_is_given_up(window: int | None) -> None:
    application = Small()
    limits = HttpLimits(stall_timeout=0.3)
    async with (
        served(application, limits) as server,
        h2_client(server.address, window) as client,
    ):
        number = await client.ask("/large")
        await eventually(lambda: application.begun == 1)
        await eventually(lambda: application.waiting == 0)
        await client.until(lambda: number in client.resets)
        await server.is_well()


async def test_a_short_answer_that_is_not_taken_is_given_up() -> None:
    limits = HttpLimits(stall_timeout=0.3)
    async with served(limits=limits) as server, h2_client(server.address, 0) as client:
        number = await client.ask("/ok")
        await client.until(lambda: number in client.resets)
        assert server.listener.statistics().protocol_errors == 1


async def test_a_client_of_http_1_that_takes_nothing_is_given_up() -> None:
    application = Small()
    async with (
        served(application, HttpLimits(stall_timeout=0.3)) as server,
        await connect(server.address) as stream,
    ):
        await stream.send_all(request("/large"))
        await eventually(lambda: application.begun == 1)
        await eventually(lambda: application.waiting == 0)
        await eventually(lambda: server.listener.statistics().open_connections == 0)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /ok HT", request("/ok"), PREFACE + SETTINGS, PREFACE[:10]],
    ids=["nothing", "half", "all", "h2", "preface"],
)
async def test_a_client_that_sends_no_more_and_waits_for_nothing_is_let_go(sent: bytes) -> None:
    limits = HttpLimits(header_timeout=600, idle_timeout=600)
    async with served(limits=limits) as server, await connect(server.address) as stream:
        await stream.send_all(sent)
        if sent == request("/ok"):
            await stream.receive_some()
        await stream.send_eof()
        await rest(stream, within=10)
        await eventually(lambda: server.listener.statistics().open_connections == 0, within=10)


@pytest.mark.parametrize("kind", ["http/1.1", "h2"])
async def test_a_client_that_sends_no_more_still_gets_its_answer(kind: str) -> None:
    application = Small()
    async with served(application) as server:
        async with h2_client(server.address) as client:
            number = 0
            if kind == "h2":
                number = await client.ask("/wait")
            else:
                await client.stream.aclose()
                client.stream = await connect(server.address)
                await client.stream.send_all(request("/wait"))
            await eventually(lambda: application.waiting == 1)
            await client.stream.send_eof()
            client.sends_no_more = True
            await trio.testing.wait_all_tasks_blocked(0.05)
            application.go.set()
            if kind == "h2":
                await client.until(lambda: number in client.ended)
                assert client.bodies[number] == b"waited"
            else:
                assert parsed(await rest(client.stream)) == (200, b"waited")
            await client.stream.aclose()
        await eventually(lambda: server.listener.statistics().open_connections == 0)


@pytest.mark.parametrize("kind", ["http/1.1", "h2"])
async def test_an_answer_that_has_begun_is_finished(kind: str) -> None:
    """The client's end comes in the middle of it."""
    go = trio.Event()
    told = False

    async def in_two_parts(_scope: Message, receive: Receive, send: Send) -> None:
        nonlocal told

        async def watch() -> None:
            nonlocal told
            while (await receive())["type"] != "http.disconnect":
                continue
            told = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a" * 300_000, "more_body": True})
            await send({"type": "http.response.body", "body": b"b"})
            assert not told
            nursery.cancel_scope.cancel()
        go.set()

    async with served(in_two_parts) as server, h2_client(server.address, 2**20) as client:
        client.connection.increment_flow_control_window(2**20)
        number = 0
        if kind == "h2":
            number = await client.ask("/")
            await client.stream.send_eof()
            client.sends_no_more = True
            await client.until(lambda: number in client.ended)
            assert len(client.bodies[number]) == 300_001
        else:
            async with await connect(server.address) as stream:
                await stream.send_all(request("/"))
                await stream.send_eof()
                data = await rest(stream)
                assert data.endswith(b"0\r\n\r\n")
                assert data.count(b"a") > 300_000
        await go.wait()
        assert server.containment.failures == {}
        assert server.listener.statistics().protocol_errors == 0


async def test_the_end_of_a_stream_is_sent_to_a_client_that_sends_no_more() -> None:
    async def stream_until_left(_scope: Message, receive: Receive, send: Send) -> None:
        await whole(receive)
        await trio.sleep(0.1)  # A slow answer: the client has shut its side before it begins.
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            continue
        await send({"type": "http.response.body", "body": b"end"})

    async with served(stream_until_left) as server, h2_client(server.address) as client:
        number = await client.ask("/")
        await client.stream.send_eof()
        client.sends_no_more = True
        await client.until(lambda: number in client.ended)
        assert client.bodies[number] == b"aend"


async def test_an_answer_without_an_end_is_cut_off_once_its_client_has_ended() -> None:
    async def deaf(_scope: Message, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await trio.sleep_forever()

    limits = HttpLimits(stall_timeout=0.2)
    async with served(deaf, limits, grace=0.2) as server, h2_client(server.address) as client:
        await client.ask("/")
        await client.stream.send_eof()
        client.sends_no_more = True
        await client.until(lambda: client.is_over)


async def test_a_stream_is_told_when_its_client_leaves() -> None:
    told = trio.Event()

    async def stream_until_left(_scope: object, receive: object, send: object) -> None:
        assert callable(receive)
        assert callable(send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            continue
        told.set()

    async with served(stream_until_left) as server, await connect(server.address) as stream:
        await stream.send_all(request("/"))
        await stream.receive_some()
        await stream.send_eof()
        with trio.fail_after(10):
            await told.wait()
        await eventually(lambda: server.listener.statistics().open_connections == 0)


async def test_a_client_that_resets_while_it_waits_is_let_go() -> None:
    application = Small()
    async with served(application) as server:
        sock = socket.create_connection(server.address)
        sock.sendall(request("/wait"))
        await eventually(lambda: application.waiting == 1)
        sock.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked(0.05)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        statistics = server.listener.statistics
        await eventually(lambda: statistics().open_connections == 1)
        application.go.set()
        await eventually(lambda: statistics().open_connections == 0)
