"""What a client may take: time, connections, streams, and never the descriptors of the rest."""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from h2.connection import H2Connection
from structlog.testing import capture_logs

from etcd_actions.errors import ConfigError
from etcd_actions.monitoring.monitoring import _LIMITS as PROBES
from etcd_actions.web import HttpLimits, Message, Receive, Send, descriptors
from etcd_actions.web.http2_sending import SendBuffer
from etcd_actions.web.open_connections import Connections
from tests.support.waiting import eventually
from tests.web.listeners import (
    H2,
    PREFACE,
    SETTINGS,
    Served,
    Small,
    connect,
    get,
    h2_client,
    parsed,
    request,
    rest,
    served,
    sockets,
    whole,
)

DESCRIPTORS = Path("/proc/self/fd")
HASTY = HttpLimits(header_timeout=0.2, idle_timeout=600, body_timeout=600, stall_timeout=600)


async def nothing(_: trio.SocketStream) -> None:
    """Connect and say nothing."""


async def half_a_header(stream: trio.SocketStream) -> None:
    await stream.send_all(b"GET /ok HTTP/1.1\r\nhost: loc")


async def a_slow_header(stream: trio.SocketStream) -> None:
    await stream.send_all(b"GET /ok HTTP/1.1\r\n")
    while True:
        await stream.send_all(b"a: b\r\n")
        await trio.sleep(0.05)


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
    async with served(limits=HASTY) as server, h2_client(server.address) as client:
        await client.until(lambda: server.listener.statistics().open_connections == 1)
        with trio.move_on_after(0.5):
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
        await eventually(lambda: application.waiting == 1)
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
        await eventually(lambda: application.waiting == 1)
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
        await trio.sleep(0.1)
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


@pytest.mark.slow
async def test_as_many_streams_as_promised_are_served_on_one_connection() -> None:
    application = Small()
    async with served(application) as server, h2_client(server.address) as client:
        await client.until(lambda: client.connection.remote_settings.max_concurrent_streams < 2**31)
        promised = client.connection.remote_settings.max_concurrent_streams
        assert promised == HttpLimits().streams_per_connection
        numbers = [await client.ask("/wait") for _ in range(1_200)]
        await eventually(lambda: application.waiting == len(numbers))
        application.go.set()
        await client.until(lambda: client.ended.issuperset(numbers))
        assert {client.statuses[number] for number in numbers} == {200}


@pytest.mark.slow
async def test_the_promised_number_of_streams_is_true_for_grpc() -> None:
    """By grpcio, on one channel."""
    most = 10_000
    application = Small()

    def call(address: str) -> int:
        with grpc.insecure_channel(address) as channel:
            method = channel.unary_unary("/wait")
            futures = [method.future(b"", timeout=120) for _ in range(most)]
            trio.from_thread.run(eventually_waiting)
            return sum(future.exception() is not None for future in futures)

    async def eventually_waiting() -> None:
        await eventually(lambda: application.waiting == most, within=120)
        application.go.set()

    async with served(application) as server:
        address = f"{server.address[0]}:{server.address[1]}"
        # No gRPC is answered, but each call is.
        assert await trio.to_thread.run_sync(call, address) == most
        assert server.listener.statistics().protocol_errors == 0


async def test_more_requests_than_promised_are_refused_not_the_connection() -> None:
    """A client that resets its streams has more of them under way than HTTP/2 counts."""
    application = Small()
    limits = HttpLimits(streams_per_connection=10)
    async with served(application, limits) as server, h2_client(server.address) as client:
        for _ in range(10):
            number = await client.ask("/wait")
            client.connection.reset_stream(number)
            await client.flush()
        refused = await client.ask("/ok")
        await client.until(lambda: refused in client.resets)
        assert client.resets[refused] == 7
        application.go.set()
        await eventually(lambda: application.waiting == 0)
        assert await client.is_answered(await client.ask("/ok")) == 200


ABUSES: dict[str, Callable[[int], bytes]] = {
    "reset at once": lambda number: headers_frame(number) + frame(3, number, b"\0\0\0\x08"),
    # It makes this side reset the stream.
    "made to reset": lambda number: headers_frame(number) + frame(8, number, bytes(4)),
    "settings": lambda number: frame(4, 0, b"\0\4" + number.to_bytes(4, "big")),
}


def frame(kind: int, number: int, payload: bytes, flags: int = 0) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big")
    return head + payload


def headers_frame(number: int, flags: int = 5) -> bytes:
    # GET, http and a path and authority as they are.
    return frame(1, number, b"\x82\x86\4\5/wait\1\x09localhost", flags)


@pytest.mark.parametrize("abuse", ABUSES.values(), ids=ABUSES)
async def test_frames_that_cost_the_server_more_than_the_client_have_an_end(
    abuse: Callable[[int], bytes],
) -> None:
    application = Small()
    served_requests = 0

    def count() -> None:
        nonlocal served_requests
        served_requests += 1

    application.hook = count
    async with served(application) as server, await connect(server.address) as stream:
        await stream.send_all(PREFACE + SETTINGS)
        data = b"".join(abuse(number) for number in range(1, 8_000, 2))
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)
        # GOAWAY. Of a window that grows by nothing h2 says it by itself.
        assert b"\0\0\x08\x07\0" in await rest(stream)
        application.go.set()
        await eventually(lambda: server.listener.statistics().open_connections == 0)
        assert served_requests < 1_000
        await server.is_well()
        assert server.containment.failures == {}


async def test_calls_that_are_given_up_later_are_no_abuse() -> None:
    async def begin(_scope: Message, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await trio.sleep_forever()

    async with served(begin, grace=0.1) as server, h2_client(server.address) as client:
        for _ in range(450):
            number = await client.ask("/")
            await client.until(lambda number=number: number in client.statuses)  # type: ignore[misc]
            client.connection.reset_stream(number)
            await client.flush()
        assert not client.is_over


async def test_a_new_stream_costs_no_look_at_all_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    count = H2Connection._open_streams

    def counted(self: H2Connection, remainder: int) -> int:
        nonlocal looks
        if not self.config.client_side:
            looks += 1
        return count(self, remainder)

    monkeypatch.setattr(H2Connection, "_open_streams", counted)
    application = Small()
    async with served(application) as server, h2_client(server.address) as client:
        for number in range(1, 2_000, 2):
            await client.stream.send_all(headers_frame(number))
        await eventually(lambda: application.waiting == 1_000, within=60)
        assert looks < 10
        application.go.set()
        await client.stream.aclose()


async def test_the_bound_of_streams_counts_those_that_are_open() -> None:
    limits = HttpLimits(streams_per_connection=10)
    application = Small()
    async with served(application, limits) as server, h2_client(server.address) as client:
        for _ in range(50):
            assert await client.is_answered(await client.ask("/ok")) == 200
        numbers = [await client.ask("/wait") for _ in range(10)]
        await eventually(lambda: application.waiting == 10)
        application.go.set()
        await client.until(lambda: client.ended.issuperset(numbers))
        application.go = trio.Event()
        await client.stream.send_all(b"".join(headers_frame(n) for n in range(1_001, 1_031, 2)))
        await client.until(lambda: client.is_over)
        assert application.waiting <= 10


async def test_the_streams_of_a_closed_connection_send_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = 0
    send_headers = H2Connection.send_headers

    def counted(self: H2Connection, *args: Any, **more: Any) -> None:
        nonlocal late
        late += not self.config.client_side
        send_headers(self, *args, **more)

    application = Small()
    async with served(application) as server:
        async with h2_client(server.address) as client:
            for _ in range(100):
                await client.ask("/wait")
            await eventually(lambda: application.waiting == 100)
            monkeypatch.setattr(H2Connection, "send_headers", counted)
            await client.stream.send_all(b"\xff\xff\xff\0\0\0\0\0\1")
            await client.until(lambda: client.is_over)
        application.go.set()
        await eventually(lambda: application.waiting == 0)
        await eventually(lambda: server.listener.statistics().open_connections == 0)
        assert late == 0


async def ok(stream: trio.SocketStream, sent: bytes = request("/ok")) -> bool:
    """Whether a request is answered on a connection that is kept."""
    await stream.send_all(sent)
    data = b""
    with trio.fail_after(10):
        while not data.endswith((b"\r\n\r\nok", b"\r\n\r\nwaited")):
            part = await stream.receive_some()
            if not part:
                return False
            data += part
    return data.startswith(b"HTTP/1.1 200")


async def test_a_new_connection_replaces_the_oldest_without_a_request() -> None:
    application = Small()
    limits = HttpLimits(connections=4, connections_per_address=4)
    async with served(application, limits) as server, AsyncExitStack() as stack:
        busy = await stack.enter_async_context(await connect(server.address))
        await busy.send_all(request("/wait"))
        await eventually(lambda: application.waiting == 1)
        served_once = await stack.enter_async_context(await connect(server.address))
        assert await ok(served_once)
        with sockets(server.address, 50) as idle:
            await server.is_well()
            statistics = server.listener.statistics()
            assert statistics.open_connections <= 4
            assert statistics.closed["replaced"] >= 48
            assert len(idle) == 50
        application.go.set()
        assert await ok(busy, b"")


async def test_where_all_have_requests_a_new_connection_is_closed_and_counted() -> None:
    application = Small()
    limits = HttpLimits(connections=2, connections_per_address=2)
    with capture_logs() as logs:
        async with served(application, limits) as server, AsyncExitStack() as stack:
            for _ in range(2):
                stream = await stack.enter_async_context(await connect(server.address))
                await stream.send_all(request("/wait"))
            await eventually(lambda: application.waiting == 2)
            with sockets(server.address, 30) as refused:
                await eventually(lambda: server.listener.statistics().refused == {"address": 30})
                assert all(each.recv(1) == b"" for each in refused)
            application.go.set()
            await eventually(lambda: application.waiting == 0)
            await server.is_well()
    lines = [line for line in logs if line["event"] == "connections_refused"]
    assert [(line["reason"], line["listener"]) for line in lines] == [("address", "--listen")]


async def test_where_requests_are_short_a_new_connection_replaces_a_busy_one() -> None:
    application = Small()
    limits = HttpLimits(connections=2, connections_per_address=2, replaces_busy=True)
    async with served(application, limits) as server, AsyncExitStack() as stack:
        for _ in range(2):
            stream = await stack.enter_async_context(await connect(server.address))
            await stream.send_all(request("/wait"))
        await eventually(lambda: application.waiting == 2)
        await server.is_well()
        application.go.set()


async def test_addresses_are_counted_apart_and_a_network_of_ipv6_as_one() -> None:
    connections = Connections(10, 2, replaces_busy=False)
    for number in range(2):
        connections.add("peer", f"2001:db8::{number}", lambda: None)
    full = connections.limit_for("2001:db8::ffff")
    assert full is not None
    assert full[0] == "address"
    assert connections.limit_for("2001:db8:0:1::1") is None
    assert connections.limit_for("10.0.0.1") is None


async def test_what_makes_room_for_a_new_connection(autojump_clock: object) -> None:
    """Unused ones first, then the longest idle; what is young or has a request, last."""
    connections = Connections(5, 5, replaces_busy=True)
    slots = {}
    for name in ("idle", "busy", "unused"):
        slots[name] = connections.add(name, "10.0.0.1", lambda: None)
    slots["idle"].busy()
    slots["idle"].idle()
    slots["busy"].busy()
    await trio.sleep(2)
    for name in ("young idle", "young"):
        slots[name] = connections.add(name, "10.0.0.1", lambda: None)
    slots["young idle"].busy()
    slots["young idle"].idle()
    order = []
    while (slot := connections.replaceable("10.0.0.1")) is not None:
        order.append(slot.peer)
        slot.replace()
    assert order == ["unused", "idle", "young", "young idle", "busy"]
    assert len(connections) == 0


async def test_an_address_does_not_push_out_one_that_has_fewer(autojump_clock: object) -> None:
    connections = Connections(6, 5, replaces_busy=False)
    for number in range(4):
        connections.add(f"many {number}", "10.0.0.1", lambda: None).busy()
    few = [connections.add(f"few {number}", "10.0.0.2", lambda: None) for number in range(2)]
    for slot in few:
        slot.busy()
        slot.idle()
    await trio.sleep(2)
    assert connections.limit_for("10.0.0.1") == ("total", None)
    assert connections.limit_for("10.0.0.3") == ("total", few[0])
    few[0].replace()
    few[1].replace()
    unused = connections.add("unused", "10.0.0.2", lambda: None)
    connections.add("other", "10.0.0.4", lambda: None).busy()
    await trio.sleep(2)
    assert connections.limit_for("10.0.0.1") == ("total", unused)


async def test_a_connection_that_is_not_counted_is_not_open() -> None:
    """Also one whose place was taken before it was looked at for the first time."""
    application = Small()
    limits = HttpLimits(connections=6, connections_per_address=4)
    async with served(application, limits) as server:
        used = []
        with sockets(server.address, 4) as found:
            for each in found:
                each.setblocking(False)
                each.send(request("/ok"))
            await eventually(lambda: server.listener.statistics().accepted == 4)
            await trio.testing.wait_all_tasks_blocked(0.05)
            used.extend(found)
            with sockets(server.address, 40) as more:
                for each in more:
                    each.setblocking(False)
                    with suppress(OSError):
                        each.send(request("/ok"))
                statistics = server.listener.statistics
                await eventually(lambda: statistics().accepted == 44)
                await trio.testing.wait_all_tasks_blocked(0.2)
                still_open = [each for each in used + more if is_open(each)]
                assert len(still_open) == statistics().open_connections <= 4


def is_open(sock: socket.socket) -> bool:
    try:
        while sock.recv(2**16):
            continue
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """A process that may have few more descriptors than it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = taken() + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def taken() -> int:
    return len(list(DESCRIPTORS.iterdir()))


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="needs /proc")
async def test_connections_leave_descriptors_to_the_rest(few_descriptors: int) -> None:
    """Both ends are in this process here, so that the limit is met from both sides."""
    async with served() as server, AsyncExitStack() as stack:
        limit = descriptors.ceiling(HttpLimits())
        open_ones = 0
        while taken() < limit + 5 and open_ones < 400:
            stream = await stack.enter_async_context(await connect(server.address))
            assert stream is not None
            open_ones += 1
        statistics = server.listener.statistics
        await eventually(lambda: statistics().refused.get("descriptors", 0) > 0)
        assert few_descriptors - taken() > 20


@pytest.mark.parametrize("most", [16, 64, 128, 200, 256, 257, 300, 1024, 10_240, 2**20])
def test_probes_have_descriptors_that_the_service_cannot_take(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "limit", lambda: most)
    service, probes = descriptors.ceiling(HttpLimits()), descriptors.ceiling(PROBES)
    assert most // 2 <= service < probes < most
    assert probes - service >= most // 10


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        assert descriptors.raise_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_more_connections_than_descriptors_are_refused_with_the_flag() -> None:
    limits = HttpLimits(connections=2**31)
    with pytest.raises(ConfigError, match="--listen: 2147483648 connections"):
        async with served(limits=limits):
            raise AssertionError("it serves")


@pytest.mark.parametrize("many", [100])
async def test_an_idle_flood_does_not_keep_others_out(many: int) -> None:
    limits = HttpLimits(connections=20)
    async with served(limits=limits) as server:
        with sockets(server.address, many):
            for _ in range(5):
                assert await get(server.address, "/ok") == (200, b"ok")
        await _is_empty(server)


async def _is_empty(server: Served) -> None:
    await eventually(lambda: server.listener.statistics().open_connections == 0)


async def test_a_shared_window_that_grows_by_little_costs_no_look_at_all_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that it holds back are sent in turn, and all of it once it has grown enough."""
    looks = 0
    look = SendBuffer.__bool__

    def counted(self: SendBuffer) -> bool:
        nonlocal looks
        looks += 1
        return look(self)

    async def large(_scope: Message, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 1_000})

    streams, updates = 200, 1_000
    async with served(large) as server, h2_client(server.address) as client:

        def size() -> int:
            return sum(map(len, client.bodies.values()))

        client.gives_back = False
        numbers = [await client.ask("/") for _ in range(streams)]
        await client.until(lambda: client.statuses.keys() >= set(numbers))
        monkeypatch.setattr(SendBuffer, "__bool__", counted)
        for _ in range(updates):
            client.connection.increment_flow_control_window(1)
        await client.flush()
        await client.until(lambda: size() == 65_535 + updates)
        assert looks < 10 * (streams + updates)
        client.connection.increment_flow_control_window(2**20)
        await client.flush()
        await client.until(lambda: client.ended.issuperset(numbers))
        assert size() == 1_000 * streams


async def test_settings_cost_more_where_there_are_many_streams() -> None:
    """Each frame of them has h2 look at all."""
    application = Small()
    async with served(application) as server, h2_client(server.address) as client:
        for number in range(1, 2_000, 2):
            await client.stream.send_all(headers_frame(number))
        await eventually(lambda: application.waiting == 1_000)
        await client.stream.send_all(frame(4, 0, b"\0\4\0\1\0\0") * 400)
        await client.until(lambda: client.is_over)
        application.go.set()
        await server.is_well()


async def test_settings_that_nobody_knows_are_not_remembered_without_an_end() -> None:
    async with served() as server, await connect(server.address) as stream:
        unknown = b"".join(b"%b\0\0\0\1" % n.to_bytes(2, "big") for n in range(100, 2_800))
        await stream.send_all(PREFACE + SETTINGS + frame(4, 0, unknown))
        with suppress(trio.BrokenResourceError):
            # GOAWAY, since it is too much.
            assert b"\0\0\0\x0b" in await rest(stream)
        await server.is_well()


async def test_answers_that_are_not_taken_have_requests_refused() -> None:
    """A client that lets nothing in gets no more of them made, until it takes what there is."""
    asked = 0

    async def large(_scope: Message, _receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 2**20})

    async with served(large) as server, h2_client(server.address, window=0) as client:
        for _ in range(100):
            number = await client.ask("/")
            await client.until(lambda n=number: n in client.statuses or n in client.resets)  # type: ignore[misc]
        assert set(client.resets.values()) == {7}
        assert 32 <= asked <= 40
        held = client.statuses.keys() - client.resets.keys()
        for number in held:
            client.connection.increment_flow_control_window(2**20, number)
        client.connection.increment_flow_control_window(2**26)
        await client.flush()
        await client.until(lambda: client.ended.issuperset(held))
        assert await server_answers(client)


async def server_answers(client: H2) -> bool:
    """Whether a new request is not refused."""
    number = await client.ask("/")
    client.connection.increment_flow_control_window(2**20, number)
    await client.flush()
    return await client.is_answered(number) == 200
