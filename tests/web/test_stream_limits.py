"""What the streams of one HTTP/2 connection may cost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest
import trio
from h2.connection import H2Connection

from etcd_actions.web import HttpLimits, Message, Receive, Send
from etcd_actions.web.http2_sending import SendBuffer
from tests.support.waiting import eventually
from tests.web.listeners import (
    H2,
    PREFACE,
    SETTINGS,
    Small,
    connect,
    h2_client,
    rest,
    served,
)

_PATIENCE = 600.0


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


@pytest.mark.parametrize(
    "most", [200, pytest.param(HttpLimits().streams_per_connection, marks=pytest.mark.slow)]
)
async def test_the_promised_number_of_streams_is_true_for_grpc(most: int) -> None:
    """By grpcio, on one channel: it sends one call more as soon as one has ended.

    The largest number takes seconds of processor time, which on a busy machine are minutes.
    """
    application = Small()

    def call(address: str) -> int:
        with grpc.insecure_channel(address) as channel:
            method = channel.unary_unary("/wait")
            futures = [method.future(b"", timeout=_PATIENCE) for _ in range(most + 1)]
            trio.from_thread.run(eventually_waiting)
            return sum(future.exception() is not None for future in futures)

    async def eventually_waiting() -> None:
        await eventually(lambda: application.waiting == most, within=_PATIENCE)
        application.go.set()

    async with served(application, HttpLimits(streams_per_connection=most)) as server:
        address = f"{server.address[0]}:{server.address[1]}"
        # No gRPC is answered, but each call is.
        assert await trio.to_thread.run_sync(call, address) == most + 1
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
