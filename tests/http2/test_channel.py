"""Calls on trio, to a server that does what it should, or does not."""

from __future__ import annotations

import traceback

import pytest
import trio
import trio.testing
from h2.settings import SettingCodes

from etcd_actions.http2 import (
    CallFailed,
    Channel,
    ChannelSettings,
    Code,
    KeepAlive,
    Target,
    frames,
    open_channel,
)
from etcd_actions.http2.errors import ErrorCode
from etcd_actions.http2.grpc_messages import PREFIX, framed
from etcd_actions.http2.stream import Stream
from tests.support.http2_peer import HEADERS
from tests.support.http2_server import Served, answering, serving, silent
from tests.support.waiting import eventually

PATIENCE = 30.0


async def echo(channel: Channel, message: bytes = b"message", within: float = PATIENCE) -> None:
    assert await channel.unary("/s/m", message, within=within) == message


async def test_a_call() -> None:
    """The server is told what is called, by when, and the metadata; the connection stays."""
    async with serving(answering) as server, open_channel(server.target) as channel:
        metadata = (("hasleader", "true"), ("token", "secret"))
        assert await channel.unary("/s/m", b"x", within=5, metadata=metadata) == b"x"
        await echo(channel, b"")
        await echo(channel, b"y" * 3_000_000)
        assert len(server.connections) == 1
        headers = server.last.peer.requests[1].headers
        assert headers[":path"] == "/s/m"
        assert headers[":authority"] == str(server.target)
        assert (headers["hasleader"], headers["token"]) == ("true", "secret")
        assert 4_000 <= int(headers["grpc-timeout"].removesuffix("m")) <= 5_000


async def test_many_calls_at_once() -> None:
    async with serving(answering) as server, open_channel(server.target) as channel:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(echo, channel, b"%d" % number * 2_000)
        assert len(server.connections) == 1


@pytest.mark.parametrize("value", ["a\r\nb: c", "\x00", "é"])
async def test_metadata_that_no_header_may_have(value: str) -> None:
    """And the error does not show it."""
    async with serving(answering) as server, open_channel(server.target) as channel:
        with pytest.raises(ValueError, match="token") as caught:
            await channel.unary("/s/m", b"", within=5, metadata=(("token", value),))
        assert value not in str(caught.value)


class TestStreams:
    async def test_messages_in_both_directions(self) -> None:
        """The server answers each at once, and ends well when the client has ended."""

        def script(served: Served) -> None:
            for number, got in served.peer.requests.items():
                if number not in served.peer.answered:
                    served.peer.answered.add(number)
                    served.peer.h2.send_headers(number, HEADERS)
                if got.body:
                    served.peer.h2.send_data(number, bytes(got.body))
                    got.body.clear()
                if got.ended and got.reset is None:
                    served.peer.h2.send_headers(number, [("grpc-status", "0")], end_stream=True)
                    got.reset = 0

        async with (
            serving(script) as server,
            open_channel(server.target) as channel,
            channel.stream("/s/m", within=PATIENCE) as exchange,
        ):
            for number in range(5):
                exchange.send(b"%d" % number)
                assert await exchange.receive() == [b"%d" % number]
            exchange.end()
            with pytest.raises(trio.EndOfChannel):
                await exchange.receive()
            assert exchange.ended

    async def test_leaving_one_ends_it_at_the_server(self) -> None:
        async with serving(silent) as server, open_channel(server.target) as channel:
            async with channel.stream("/s/m") as exchange:
                exchange.send(b"x")
                await eventually(lambda: 1 in server.last.peer.requests)
            await eventually(lambda: server.last.peer.requests[1].reset == ErrorCode.CANCEL)

    async def test_it_is_failed_from_outside(self) -> None:
        """Its reader is woken."""
        async with (
            serving(silent) as server,
            open_channel(server.target) as channel,
            channel.stream("/s/m") as exchange,
            trio.open_nursery() as nursery,
        ):

            async def read() -> None:
                with pytest.raises(ValueError, match="given up"):
                    await exchange.receive()

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            exchange.fail(ValueError("given up"))

    async def test_its_deadline(self) -> None:
        async with (
            serving(silent) as server,
            open_channel(server.target) as channel,
            channel.stream("/s/m", within=0.1) as exchange,
        ):
            with pytest.raises(CallFailed) as caught:
                await exchange.receive()
            assert caught.value.code is Code.DEADLINE_EXCEEDED


async def test_a_deadline() -> None:
    """The server is told; it may have done it; the connection is good for others."""

    def script(served: Served) -> None:
        if len(served.peer.requests) > 1:
            answering(served)

    async with serving(script) as server, open_channel(server.target) as channel:
        # On a busy machine it takes a part of that until the call is sent.
        with pytest.raises(CallFailed) as caught:
            await channel.unary("/s/m", b"", within=1)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        assert not caught.value.not_done
        await eventually(lambda: server.last.peer.requests[1].reset == ErrorCode.CANCEL)
        server.last.peer.answered.add(1)
        await echo(channel)
        assert len(server.connections) == 1


async def test_a_cancelled_call_is_reset_at_the_server() -> None:
    async with serving(silent) as server, open_channel(server.target) as channel:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, channel)
            await eventually(lambda: bool(server.connections) and bool(server.last.open_calls))
            nursery.cancel_scope.cancel("not wanted")
        await eventually(lambda: server.last.peer.requests[1].reset == ErrorCode.CANCEL)


async def test_a_call_that_is_cancelled_before_is_not_made() -> None:
    async with serving(answering) as server, open_channel(server.target) as channel:
        with trio.CancelScope() as scope:
            scope.cancel("not wanted")
            await echo(channel)
        await echo(channel)
        assert list(server.last.peer.requests) == [1]


async def test_calls_in_a_shielded_scope_work_in_a_cancelled_one() -> None:
    """A lease is given back while all around is cancelled."""
    async with serving(answering) as server:
        with trio.CancelScope() as around:
            async with open_channel(server.target) as channel:
                await echo(channel)
                around.cancel("stop")
                with trio.CancelScope(shield=True):
                    await echo(channel)
                    await echo(channel, b"x" * 100_000)
        assert around.cancel_called


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    async def body(target: Target) -> None:
        async with open_channel(target) as channel:
            await echo(channel)
            raise KeyError("mine")

    async with serving(answering) as server:
        with pytest.raises(KeyError, match="mine"):
            await body(server.target)


class TestSilence:
    KEEPALIVE = KeepAlive(time=0.1, timeout=0.1)

    async def test_a_server_that_stopped_is_found(self) -> None:
        """Though its socket stays open. A write may have been done."""

        def script(served: Served) -> None:
            served.mute = served.number == 1 and bool(served.peer.requests)
            answering(served) if not served.mute else None

        settings = ChannelSettings(keepalive=self.KEEPALIVE)
        async with serving(script) as server, open_channel(server.target, settings) as channel:
            with trio.fail_after(PATIENCE), pytest.raises(CallFailed, match="silent") as caught:
                await channel.unary("/s/m", b"", within=1_000)
            assert (caught.value.code, caught.value.not_done) == (Code.UNAVAILABLE, False)
            await echo(channel)
            assert len(server.connections) == 2

    async def test_a_server_that_stopped_is_found_by_calls_that_time_out_before(self) -> None:
        """Each is over before the answer to the ping is late; all of them together find it."""

        def script(served: Served) -> None:
            served.mute = served.number == 1 and bool(served.peer.requests)
            answering(served) if not served.mute else None

        settings = ChannelSettings(keepalive=self.KEEPALIVE)
        async with serving(script) as server, open_channel(server.target, settings) as channel:
            failures: list[CallFailed] = []
            with trio.fail_after(PATIENCE):
                while len(server.connections) < 2:
                    try:
                        await echo(channel, within=0.03)
                    except CallFailed as failure:
                        failures.append(failure)
            assert {each.code for each in failures} <= {Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE}

    async def test_a_server_that_is_only_slow_is_kept(self) -> None:
        """It answers pings. Without a call there are none."""
        pings = 0
        settings = ChannelSettings(keepalive=self.KEEPALIVE)

        def script(served: Served) -> None:
            nonlocal pings
            pings += 1
            if pings > 5:
                answering(served)

        async with serving(script) as server, open_channel(server.target, settings) as channel:
            await echo(channel)
            assert pings > 5
            await trio.sleep(0.3)  # Long enough for a dozen pings, of which there may be none.
            heard = pings
            await echo(channel)
            assert pings <= heard + 3
            assert len(server.connections) == 1


class TestWhatWasDone:
    async def test_a_call_that_a_goaway_excludes_is_made_anew(self) -> None:
        """On another connection, and nobody notices."""

        def script(served: Served) -> None:
            if served.number == 1 and served.open_calls:
                served.peer.h2.close_connection(last_stream_id=0)
            elif served.number > 1:
                answering(served)

        async with serving(script) as server, open_channel(server.target) as channel:
            await echo(channel)
            assert len(server.connections) == 2

    async def test_calls_before_a_goaway_are_finished(self) -> None:
        def script(served: Served) -> None:
            if served.number == 1 and len(served.open_calls) == 2:
                one, two = served.open_calls
                served.peer.h2.send_headers(one, HEADERS)
                served.peer.h2.send_data(one, framed(b"message"))
                goaway = frames.frame(
                    frames.GOAWAY, 0, 0, frames.NUMBER.pack(one) + frames.NUMBER.pack(0)
                )
                served.peer.h2.send_headers(one, [("grpc-status", "0")], end_stream=True)
                served.peer.before = goaway
                served.peer.answered |= {one, two}
            elif served.number > 1:
                answering(served)

        async with serving(script) as server, open_channel(server.target) as channel:
            await channel.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo, channel)
                nursery.start_soon(echo, channel)
            assert len(server.connections) == 2
            assert len(server.connections[0].peer.requests) == 2
            assert len(server.connections[1].peer.requests) == 1

    @pytest.mark.parametrize("times", [1, 2])
    async def test_a_refused_call_is_made_anew_once(self, times: int) -> None:
        def script(served: Served) -> None:
            for number in served.open_calls:
                if len(served.peer.answered) < times:
                    served.peer.answered.add(number)
                    served.peer.h2.reset_stream(number, ErrorCode.REFUSED_STREAM)
            answering(served)

        async with serving(script) as server, open_channel(server.target) as channel:
            if times == 1:
                await echo(channel)
            else:
                with pytest.raises(CallFailed, match="REFUSED_STREAM") as caught:
                    await echo(channel)
                assert caught.value.not_done
            assert len(server.last.peer.requests) == 2

    async def test_a_connection_that_breaks_after_the_call_was_sent(self) -> None:
        """It may have been done, and is not made anew; the next one gets a new connection."""

        def script(served: Served) -> None:
            if served.number == 1 and served.open_calls:
                served.cut()
            elif served.number > 1:
                answering(served)

        async with serving(script) as server, open_channel(server.target) as channel:
            with pytest.raises(CallFailed) as caught:
                await echo(channel)
            assert (caught.value.code, caught.value.not_done) == (Code.UNAVAILABLE, False)
            await echo(channel)
            assert [len(each.peer.requests) for each in server.connections] == [1, 1]

    async def test_a_call_that_never_left_this_machine(self) -> None:
        """A server that reads nothing, a full socket, and a connection that is then cut."""

        def script(served: Served) -> None:
            served.mute = bool(served.peer.requests)

        settings = ChannelSettings(keepalive=KeepAlive(time=0.3, timeout=0.1))
        async with serving(script, settings={frames.INITIAL_WINDOW_SIZE: 2**31 - 1}) as server:
            async with open_channel(server.target, settings) as channel:
                await channel.connect()
                failures: dict[str, CallFailed] = {}

                async def call(name: str, size: int) -> None:
                    with pytest.raises(CallFailed) as caught:
                        await channel._unary(
                            channel._head("/s/m", ()), bytes(size), trio.current_time() + 100
                        )
                    failures[name] = caught.value

                link = channel._live
                assert link is not None
                link.connection.sending.window = 2**31 - 1
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call, "large", 60_000_000)
                    await eventually(lambda: link._wire.pending)
                    nursery.start_soon(call, "behind", 1)
            assert (failures["large"].not_done, failures["behind"].not_done) == (False, True)


class TestLimits:
    async def test_calls_wait_for_a_stream(self) -> None:
        """A server that allows two at a time gets all, two at a time."""
        most = 0

        def script(served: Served) -> None:
            nonlocal most
            most = max(most, len(served.open_calls))
            answering(served)

        async with (
            serving(script, settings={frames.MAX_CONCURRENT_STREAMS: 2}) as server,
            open_channel(server.target) as channel,
            trio.open_nursery() as nursery,
        ):
            for _ in range(50):
                nursery.start_soon(echo, channel)
            while nursery.child_tasks:
                await trio.testing.wait_all_tasks_blocked()
        assert 0 < most <= 2

    async def test_a_server_may_allow_more_later(self) -> None:
        """Nothing ends meanwhile."""
        async with (
            serving(silent, settings={frames.MAX_CONCURRENT_STREAMS: 1}) as server,
            open_channel(server.target) as channel,
            channel.stream("/s/m"),
            trio.open_nursery() as nursery,
        ):
            for _ in range(5):
                nursery.start_soon(echo, channel)
            await trio.testing.wait_all_tasks_blocked()
            served = server.last
            served.peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 6})
            await served.send()
            await eventually(lambda: len(served.open_calls) == 5)
            answering(served)
            await served.send()

    async def test_a_call_that_waits_in_vain_was_not_done(self) -> None:
        async with (
            serving(silent, settings={frames.MAX_CONCURRENT_STREAMS: 1}) as server,
            open_channel(server.target) as channel,
            channel.stream("/s/m"),
        ):
            with pytest.raises(CallFailed, match="busy") as caught:
                await channel.unary("/s/m", b"", within=0.1)
            assert (caught.value.code, caught.value.not_done) == (Code.DEADLINE_EXCEEDED, True)

    async def test_an_answer_above_the_limit(self) -> None:
        settings = ChannelSettings(largest_answer=1_000)
        async with serving(answering) as server, open_channel(server.target, settings) as channel:
            await echo(channel, bytes(1_000))
            with pytest.raises(CallFailed) as caught:
                await channel.unary("/s/m", bytes(1_001), within=PATIENCE)
            assert caught.value.code is Code.RESOURCE_EXHAUSTED
            await echo(channel)
            # The traceback is a cycle with the stream, which keeps no data until it is collected.
            frames_of_it = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
            streams = [
                each
                for frame in frames_of_it
                for each in frame.f_locals.values()
                if isinstance(each, Stream)
            ]
            assert streams
            assert not any(each.chunks for each in streams)


@pytest.mark.parametrize(
    ("headers", "body", "trailers", "code", "said"),
    [
        ({}, PREFIX.pack(1, 1) + b"x", {}, Code.INTERNAL, "compressed message (gzip)"),
        ({}, b"", {}, Code.INTERNAL, "without a message"),
        ({}, framed(b"a") + framed(b"b"), {}, Code.INTERNAL, "for one message of 1"),
        ({}, framed(b"abc")[:-1], {}, Code.INTERNAL, "for one message of 3"),
        ({":status": "503"}, b"no", {"grpc-status": ""}, Code.UNAVAILABLE, "HTTP status '503'"),
        ({"content-type": "text/html"}, b"no", {"grpc-status": ""}, Code.UNKNOWN, "text/html"),
        ({}, framed(b""), {"grpc-status": ""}, Code.INTERNAL, "without a status"),
        ({}, b"", {"grpc-status": "14", "grpc-message": "50%25"}, Code.UNAVAILABLE, "50%"),
        ({}, b"", {"grpc-status": "99", "grpc-message": "%zz%ff"}, Code.UNKNOWN, "unknown status"),
        ({}, b"", {"grpc-status": "no"}, Code.UNKNOWN, "unknown status 'no'"),
    ],
)
async def test_answers_that_are_none(
    headers: dict[str, str], body: bytes, trailers: dict[str, str], code: Code, said: str
) -> None:
    """Each says what it is instead, and the connection stays."""

    def script(served: Served) -> None:
        for number in served.open_calls:
            if number > 1:
                answering(served)
                continue
            served.peer.answered.add(number)
            fields = {**dict(HEADERS), "grpc-encoding": "gzip", **headers}
            ending = {"grpc-status": "0", **trailers}
            served.peer.h2.send_headers(number, list(fields.items()))
            served.peer.h2.send_data(number, body, end_stream=not ending["grpc-status"])
            if ending["grpc-status"]:
                served.peer.h2.send_headers(number, list(ending.items()), end_stream=True)

    async with serving(script) as server, open_channel(server.target) as channel:
        with pytest.raises(CallFailed) as caught:
            await channel.unary("/s/m", b"", within=PATIENCE)
        assert caught.value.code is code
        assert said in caught.value.details
        assert not caught.value.not_done
        await echo(channel)
        assert len(server.connections) == 1
