"""Servers that greet and then grant nothing, and ends that come at any checkpoint."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
import trio.testing

from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.grpc.transport import grpc_connections
from etcd_actions.http2 import CallFailed, Channel, Code, Target, frames, live_connection
from etcd_actions.http2 import open_channel as opened
from etcd_actions.http2.errors import ErrorCode
from tests.support.http2_peer import HEADERS
from tests.support.http2_server import Served, answering, serving, silent
from tests.support.waiting import eventually

PATIENCE = 30.0


@asynccontextmanager
async def saying(*what: bytes) -> AsyncIterator[tuple[Target, list[None]]]:
    """A server that says this to everybody at once, reads nothing, and closes the connection."""
    connections: list[None] = []

    async def serve(stream: trio.SocketStream) -> None:
        connections.append(None)
        async with stream:
            await stream.send_all(b"".join(what))
            await stream.send_eof()
            async for _ in stream:
                pass

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        yield Target(host="127.0.0.1", port=port), connections
        nursery.cancel_scope.cancel("seen enough")


GOAWAY = frames.goaway(ErrorCode.NO_ERROR, b"")


async def test_a_server_that_greets_and_leaves_is_not_stormed() -> None:
    """A call that gets no stream fails after the retry, and does not dial until its deadline."""
    async with saying(frames.settings({}), GOAWAY) as (target, connections):
        async with opened(target) as channel:
            with pytest.raises(CallFailed) as caught:
                await channel.unary("/s/m", b"", within=1.0)
            assert (caught.value.code, caught.value.not_done) == (Code.UNAVAILABLE, True)
        assert len(connections) <= 4


async def test_a_channel_that_is_closed_before_its_first_task_runs_leaves_nothing() -> None:
    async with serving(answering) as server:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                channel = Channel(nursery, server.target)

                class Close(trio.abc.Instrument):
                    def task_spawned(self, task: trio.lowlevel.Task) -> None:
                        trio.lowlevel.remove_instrument(self)
                        channel.close()

                trio.lowlevel.add_instrument(Close())
                try:
                    with pytest.raises(CallFailed, match="closed"):
                        await channel.connect()
                finally:
                    channel.close()
        assert not server.connections


async def test_calls_go_elsewhere_when_the_numbers_of_streams_are_used_up() -> None:
    """Though a stream that never ends keeps the connection open."""
    async with (
        serving(answering) as server,
        opened(server.target) as channel,
        channel.stream("/s/m") as exchange,
    ):
        link = channel._live
        assert link is not None
        link.connection._next_id = frames.LAST_STREAM
        drained: list[None] = []
        exchange.when_draining(lambda: drained.append(None))
        with trio.fail_after(PATIENCE):
            for _ in range(3):
                assert await channel.unary("/s/m", b"x", within=PATIENCE) == b"x"
        assert [len(each.peer.requests) for each in server.connections] == [2, 2]
        assert drained
        assert not exchange.ended


async def test_a_call_that_runs_out_of_time_passes_its_turn_on() -> None:
    """One stream at a time; the first in the line finds that no time is left."""
    async with (
        serving(answering, settings={frames.MAX_CONCURRENT_STREAMS: 1}) as server,
        opened(server.target) as channel,
        trio.open_nursery() as nursery,
    ):
        exchange = await channel.open_stream("/s/m")
        until = trio.current_time() + 0.2

        async def in_vain() -> None:
            with pytest.raises(CallFailed, match="no time") as caught:
                await channel.unary("/s/m", b"", within=until - trio.current_time())
            assert caught.value.not_done

        async def call() -> None:
            assert await channel.unary("/s/m", b"x", within=PATIENCE) == b"x"

        nursery.start_soon(in_vain)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        exchange.close()
        # The loop is held up until it is too late for the first one.
        time.sleep(max(0.0, until - trio.current_time() + 0.01))  # noqa: ASYNC251
        await eventually(lambda: not nursery.child_tasks, within=PATIENCE / 3)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_refusal_of_what_was_answered_is_not_believed(times: int) -> None:
    """A server that sent headers has begun with the call, whatever it says after that."""

    def script(served: Served) -> None:
        for number in served.open_calls:
            served.peer.answered.add(number)
            served.peer.h2.send_headers(number, HEADERS)
            if times == 1:
                served.peer.h2.reset_stream(number, ErrorCode.REFUSED_STREAM)
            else:
                served.peer.h2.close_connection(last_stream_id=0)

    async with serving(script) as server, opened(server.target) as channel:
        with pytest.raises(CallFailed) as caught:
            await channel.unary("/s/m", b"", within=PATIENCE)
        assert not caught.value.not_done
        assert sum(len(each.peer.requests) for each in server.connections) == 1


async def test_a_watch_that_gets_no_stream_fails_in_time() -> None:
    """Its reader is told, so that another member is tried."""
    async with (
        serving(silent, settings={frames.MAX_CONCURRENT_STREAMS: 0}) as server,
        owned_tasks("a test") as nursery,
    ):
        endpoint = Endpoint(server.target.host, server.target.port)
        settings = ConnectionSettings(endpoints=(endpoint,), request_timeout=0.1)
        connection = grpc_connections(settings, nursery)(endpoint)
        try:
            with trio.fail_after(PATIENCE / 3):
                async with connection.watch(token="") as stream:
                    with pytest.raises(Unavailable, match="busy"):
                        await stream.receive()
            assert connection.broken
        finally:
            connection.close()


async def _unary(channel: Channel) -> None:
    await channel.unary("/s/m", bytes(200_000), within=PATIENCE)


async def _stream(channel: Channel) -> None:
    async with channel.stream("/s/m") as exchange:
        exchange.send(bytes(200_000))
        await exchange.all_sent()
        exchange.end()
        await exchange.receive()


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("call", [_unary, _stream])
async def test_a_cancellation_at_any_checkpoint_leaves_nothing(
    call: Callable[[Channel], Awaitable[None]], fresh: bool
) -> None:
    """No stream, no waiter, no deadline; others have their turn, and the channel its end."""
    settings = {frames.MAX_CONCURRENT_STREAMS: 2}

    async def cancelled(channel: Channel, scope: trio.CancelScope) -> None:
        with scope:
            await call(channel)

    for steps in range(60):
        with trio.fail_after(PATIENCE):
            async with (
                serving(answering, settings=settings) as server,
                opened(server.target) as channel,
            ):
                if not fresh:
                    await channel.connect()
                async with trio.open_nursery() as nursery:
                    scopes = [trio.CancelScope() for _ in range(4)]
                    for scope in scopes:
                        nursery.start_soon(cancelled, channel, scope)
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    for scope in scopes[1:]:
                        scope.cancel("enough")
                link = channel._live
                assert link is not None
                assert not link.connection.streams
                left = (link._waiting, link._senders, link._time.by_stream, link._drainers)
                assert not any(left)
                assert not link.connection.sending.blocked
                assert await channel.unary("/s/m", b"x", within=PATIENCE) == b"x"
                assert len(server.connections) == 1


async def test_an_end_that_the_reader_has_yet_to_see_costs_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What would be written on it certainly reaches nobody: it goes over another connection."""
    monkeypatch.setattr(live_connection, "_SILENT", -1.0)
    async with serving(answering) as server, opened(server.target) as channel:
        assert await channel.unary("/s/m", b"first", within=PATIENCE)
        server.last.cut_at_once()
        assert await channel.unary("/s/m", b"second", within=PATIENCE, resend=False)
        assert len(server.connections) == 2
