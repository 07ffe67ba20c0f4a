"""HTTP/1.1 as it is answered: what follows what, how an answer ends, what is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.testing

from etcd_actions.web import HttpLimits, Message, Receive, Send
from tests.support.waiting import eventually
from tests.web.listeners import DEADLINE, Small, answer, connect, request, rest, served, whole

CONTINUE = b"HTTP/1.1 100 \r\n\r\n"


async def until(stream: trio.SocketStream, end: bytes) -> bytes:
    """What comes, up to this."""
    data = b""
    with trio.fail_after(DEADLINE):
        while not data.endswith(end):
            part = await stream.receive_some()
            assert part, data
            data += part
    return data


async def echo(_scope: Message, receive: Receive, send: Send) -> None:
    await answer(send, 200, await whole(receive) or b"")


async def test_requests_that_come_together_are_answered_in_turn() -> None:
    post = request("/", "content-length: 3", method="POST")
    async with served(echo) as server, await connect(server.address) as stream:
        await stream.send_all(post + b"one" + post + b"two" + post)
        await until(stream, b"two")
        await stream.send_all(b"333" + request("/", "connection: close"))
        assert (await rest(stream)).count(b"HTTP/1.1 200") == 2


async def test_what_is_piled_up_behind_a_request_is_not_read() -> None:
    application = Small()
    async with served(application, grace=0.1) as server, await connect(server.address) as stream:
        await stream.send_all(request("/wait"))
        await eventually(lambda: application.waiting == 1)
        sent = 0
        with trio.move_on_after(0.2):
            while True:
                await stream.send_all(request("/ok") * 1000)
                sent += 1000
        assert sent < 100_000
        assert application.waiting == 1


async def test_a_client_that_waits_for_continue_is_told_once_the_body_is_wanted() -> None:
    head = request("/", "content-length: 5", "expect: 100-continue", method="POST")
    async with served(echo) as server, await connect(server.address) as stream:
        await stream.send_all(head)
        assert await until(stream, b"\r\n\r\n") == CONTINUE
        await stream.send_all(b"hello")
        assert CONTINUE not in await until(stream, b"hello")


async def test_a_body_that_nobody_wants_is_not_asked_for() -> None:
    head = request("/nothing", "content-length: 5", "expect: 100-continue", method="POST")
    async with served() as server, await connect(server.address) as stream:
        await stream.send_all(head)
        data = await rest(stream)
        assert data.startswith(b"HTTP/1.1 404")
        assert data.count(b"HTTP/1.1") == 1


async def test_head_has_the_headers_alone_and_the_connection_goes_on() -> None:
    async with served() as server, await connect(server.address) as stream:
        await stream.send_all(request("/ok", method="HEAD"))
        assert b"\r\ncontent-length: 2\r\n" in await until(stream, b"\r\n\r\n")
        await stream.send_all(request("/ok"))
        assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200")


async def test_a_body_in_chunks_of_one_byte_arrives() -> None:
    head = request("/", "transfer-encoding: chunked", "connection: close", method="POST")
    async with served(echo) as server, await connect(server.address) as stream:
        await stream.send_all(head + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
        assert (await rest(stream)).endswith(b"\r\n\r\n" + b"x" * 20_000)


async def test_an_answer_in_one_part_has_its_length_and_others_are_in_chunks() -> None:
    async def parts(scope: Message, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/two":
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    async with served(parts) as server, await connect(server.address) as stream:
        await stream.send_all(request("/one"))
        data = await until(stream, b"b")
        assert b"\r\ncontent-length: 1\r\n" in data
        assert b"\r\ndate: " in data
        await stream.send_all(request("/two", "connection: close"))
        assert (await rest(stream)).endswith(b"\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_cannot_have_a_body_has_none(status: int) -> None:
    async def without(_scope: Message, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"too much"})

    async with served(without) as server, await connect(server.address) as stream:
        await stream.send_all(request("/", "connection: close"))
        data = await rest(stream)
        assert data.endswith(b"\r\n\r\n")
        assert b"content-length" not in data
        assert server.containment.failures == {}


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_a_request_for_another_protocol_is_answered_in_this_one(protocol: str) -> None:
    async with served() as server, await connect(server.address) as stream:
        for _ in range(2):
            await stream.send_all(request("/ok", f"upgrade: {protocol}", "connection: upgrade"))
            assert (await until(stream, b"ok")).startswith(b"HTTP/1.1 200")


async def test_no_tunnel_is_made() -> None:
    async with served() as server, await connect(server.address) as stream:
        await stream.send_all(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n")
        assert (await rest(stream)).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request("/", "content-length: 1", "content-length: 2", method="POST"), b"400"),
        (request("/", "content-length: -1", method="POST"), b"400"),
        (request("/", "transfer-encoding: gzip", method="POST"), b"501"),
        (request("/", "transfer-encoding: chunked, chunked", method="POST"), b"501"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nbad name: b\r\n\r\n", b"400"),
        (request("/", "a: " + "b" * 70_000), b"431"),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(
    head: bytes, status: bytes
) -> None:
    async with served(echo) as server, await connect(server.address) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(head)
            await stream.send_eof()
        data = await rest(stream)
        assert data.split(b" ")[1] == status
        assert b"\r\nconnection: close\r\n" in data
        await eventually(lambda: server.listener.statistics().open_connections == 0)
        assert server.containment.failures == {}


async def test_an_old_client_is_answered_and_the_connection_closed() -> None:
    async with served() as server, await connect(server.address) as stream:
        await stream.send_all(b"GET /ok HTTP/1.0\r\n\r\n")
        assert (await rest(stream)).endswith(b"\r\n\r\nok")


async def test_the_last_answer_says_that_it_is() -> None:
    application = Small()
    async with trio.open_nursery() as nursery:
        end = trio.Event()

        async def serve(task_status: trio.TaskStatus[tuple[str, int]]) -> None:
            async with served(application) as server:
                task_status.started(server.address)
                await end.wait()

        address = await nursery.start(serve)
        async with await connect(address) as stream:
            await stream.send_all(request("/wait"))
            await eventually(lambda: application.waiting == 1)
            end.set()
            await trio.testing.wait_all_tasks_blocked(0.02)
            application.go.set()
            data = await rest(stream)
            assert b"\r\nconnection: close\r\n" in data
            assert data.endswith(b"waited")


@pytest.mark.parametrize("header", [(b"a", b"b\r\nset-cookie: c"), (b"a b", b"c"), (b":a", b"b")])
async def test_an_answer_that_http_does_not_allow_is_the_applications_failure(
    header: tuple[bytes, bytes],
) -> None:
    async def split(_scope: Message, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [header]})
        await send({"type": "http.response.body", "body": b""})

    async with served(split) as server, await connect(server.address) as stream:
        await stream.send_all(request("/", "connection: close"))
        assert b"set-cookie" not in await rest(stream)
        assert server.containment.failures == {"request": 1}


async def test_a_request_in_small_pieces_is_answered() -> None:
    data = request("/body", "content-length: 5", "connection: close", method="POST") + b"hello"
    limits = HttpLimits(header_timeout=60)
    async with served(limits=limits) as server, await connect(server.address) as stream:
        for at in range(len(data)):
            await stream.send_all(data[at : at + 1])
            await trio.lowlevel.checkpoint()
        assert (await rest(stream)).endswith(b"\r\n\r\n5")
