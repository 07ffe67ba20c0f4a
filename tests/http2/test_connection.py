"""HTTP/2 without a network: every rule that a server may test, break or make use of."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_actions.http2 import CallFailed, Code, frames
from etcd_actions.http2.connection import STREAM_WINDOW, ClientConnection
from etcd_actions.http2.errors import ErrorCode
from etcd_actions.http2.grpc_messages import MessageReader, answer, framed
from etcd_actions.http2.stream import Stream
from tests.support.everyday import examples
from tests.support.http2_peer import (
    ANSWER,
    HEADERS,
    Peer,
    block,
    data,
    exchange,
    greeted,
    headers,
    open_call,
    sent_kinds,
    trailers,
    whole,
)

few = settings(max_examples=examples(30))


class TestWithAnotherImplementation:
    @few
    @given(
        bodies=st.lists(
            st.tuples(st.integers(0, 40_000), st.integers(0, 40_000)), min_size=1, max_size=5
        ),
        window=st.integers(0, 100_000),
        frame_size=st.sampled_from([16_384, 20_000, 2**24 - 1]),
        cuts=st.lists(st.integers(1, 30_000), max_size=60),
    )
    def test_calls_of_any_size_arrive_whole(
        self, bodies: list[tuple[int, int]], window: int, frame_size: int, cuts: list[int]
    ) -> None:
        """With any window, which may be too small for any of it, and any cut of the bytes."""
        client = ClientConnection()
        peer = Peer({frames.INITIAL_WINDOW_SIZE: window, frames.MAX_FRAME_SIZE: frame_size})
        exchange(client, peer)
        calls: list[tuple[Stream, bytes, bytes]] = []
        for number, (asked, wanted) in enumerate(bodies):
            request = bytes([number]) * asked
            stream = open_call(client, request)
            calls.append((stream, request, bytes([100 + number]) * wanted))
        exchange(client, peer, cuts)
        if window == 0:
            # Nothing but what is empty goes, until the server opens it.
            assert not any(each.ended for each in peer.requests.values())
            peer.h2.update_settings({frames.INITIAL_WINDOW_SIZE: 40_000})
            exchange(client, peer)
        for stream, request, answered in calls:
            got = peer.requests[stream.id]
            assert got.ended
            assert bytes(got.body) == framed(request)
            peer.answer(stream.id, framed(answered))
        exchange(client, peer, cuts)
        for stream, _, answered in calls:
            assert stream.ended
            assert answer(stream) == answered
        assert client.streams == 0

    @few
    @given(
        updates=st.lists(
            st.one_of(
                st.tuples(st.just("connection"), st.integers(1, 50_000)),
                st.tuples(st.just("first"), st.integers(1, 50_000)),
                st.tuples(st.just("second"), st.integers(1, 50_000)),
                st.tuples(st.just("settings"), st.integers(0, 60_000)),
            ),
            max_size=20,
        )
    )
    def test_windows_in_any_order_are_never_exceeded(self, updates: list[tuple[str, int]]) -> None:
        """The peer fails at a byte too much; at the end all arrives."""
        client, peer = ClientConnection(), Peer()
        peer.gives_back = False
        # Its settings are acknowledged at once: a smaller window counts from then on.
        streams = [open_call(client, bytes(150_000)) for _ in range(2)]
        exchange(client, peer)
        for what, amount in updates:
            match what:
                case "connection":
                    peer.h2.increment_flow_control_window(amount)
                case "first" | "second":
                    number = streams[what == "second"].id
                    if not peer.requests[number].ended:
                        peer.h2.increment_flow_control_window(amount, number)
                case _:
                    peer.h2.update_settings({frames.INITIAL_WINDOW_SIZE: amount})
            exchange(client, peer)
        peer.h2.increment_flow_control_window(1_000_000)
        for stream in streams:
            if not peer.requests[stream.id].ended:
                peer.h2.increment_flow_control_window(1_000_000, stream.id)
        exchange(client, peer)
        for stream in streams:
            assert peer.requests[stream.id].ended
            assert len(peer.requests[stream.id].body) == 150_005

    @few
    @given(
        messages=st.lists(st.integers(0, 300_000), max_size=20),
        cuts=st.lists(st.integers(1, 100_000), max_size=60),
    )
    def test_messages_of_a_stream_come_in_order(self, messages: list[int], cuts: list[int]) -> None:
        client, peer = ClientConnection(), Peer()
        stream = open_call(client, gathers=False)
        exchange(client, peer)
        sent = [bytes([n]) * size for n, size in enumerate(messages)]
        peer.answer(stream.id, b"".join(map(framed, sent)))
        exchange(client, peer, cuts)
        assert stream.ended
        reader, got = MessageReader(stream), []
        while stream.size:
            got += reader.take()[0]
        assert got == sent

    def test_a_stream_that_is_not_read_holds_its_server_back(self) -> None:
        """And each byte that is read lets another one in; a message may be larger than all."""
        client, peer = ClientConnection(), Peer()
        stream = open_call(client, gathers=False)
        exchange(client, peer)
        sent = [bytes(STREAM_WINDOW + 5_000_000), b"x" * STREAM_WINDOW, b"end"]
        peer.answer(stream.id, b"".join(map(framed, sent)))
        exchange(client, peer)
        assert stream.size == STREAM_WINDOW
        # Another call goes on meanwhile.
        other = open_call(client)
        exchange(client, peer)
        peer.answer(other.id, framed(b"answer"))
        exchange(client, peer)
        assert answer(other) == b"answer"
        reader, got = MessageReader(stream), []
        while not stream.ended or stream.size:
            messages, room = reader.take()
            got += messages
            client.acknowledge(stream, room)
            exchange(client, peer)
            assert stream.size <= 2 * STREAM_WINDOW + 5_000_005
        assert [len(each) for each in got] == [len(each) for each in sent]
        assert got == sent

    def test_a_window_is_given_back_in_large_steps(self) -> None:
        client, peer = ClientConnection(), Peer()
        stream = open_call(client)
        exchange(client, peer)
        peer.answer(stream.id, framed(bytes(40_000_000)))
        written: list[bytes] = []
        while not stream.ended:
            client.receive(peer.take())
            written.append(client.sending.take())
            peer.receive(written[-1])
        updates = [kind for kind, _, _ in sent_kinds(b"".join(written))]
        assert updates.count(frames.WINDOW_UPDATE) <= 8
        assert answer(stream) == bytes(40_000_000)


@few
@given(cuts=st.lists(st.integers(1, 40), max_size=200))
def test_any_cut_of_the_bytes_means_the_same(cuts: list[int]) -> None:
    """A transcript with padding, priority, continuations, an interim answer and pings."""
    client = ClientConnection()
    one, two, three = (open_call(client) for _ in range(3))
    client.sending.take()
    padded = frames.frame(
        frames.HEADERS,
        frames.END_HEADERS | frames.PADDED | frames.WITH_PRIORITY,
        one.id,
        b"\x03" + b"\0\0\0\0\x10" + ANSWER + bytes(3),
    )
    transcript = b"".join(
        (
            frames.settings({frames.MAX_CONCURRENT_STREAMS: 100}),
            padded,
            frames.frame(frames.DATA, frames.PADDED, one.id, b"\x05" + framed(b"1") + bytes(5)),
            frames.frame(frames.PING, 0, 0, b"12345678"),
            headers(two.id, block((":status", "103"))),
            frames.frame(frames.PRIORITY, 0, two.id, bytes(5)),
            headers(two.id, ANSWER[:3], 0),
            frames.frame(frames.CONTINUATION, 0, two.id, ANSWER[3:5]),
            frames.frame(frames.CONTINUATION, frames.END_HEADERS, two.id, ANSWER[5:]),
            data(two.id, framed(b"2")[:4]),
            trailers(one.id),
            data(two.id, framed(b"2")[4:]),
            frames.frame(0x77, 0xFF, 1234, b"of a kind that nobody knows"),
            trailers(two.id),
            trailers(three.id, block(*HEADERS, ("grpc-status", "5"), ("grpc-message", "a%20b"))),
        )
    )
    start = 0
    for size in [*cuts, len(transcript)]:
        client.receive(transcript[start : start + size])
        start += size
    assert answer(one) == b"1"
    assert answer(two) == b"2"
    with pytest.raises(CallFailed) as caught:
        answer(three)
    assert (caught.value.code, caught.value.details) == (Code.NOT_FOUND, "a b")
    assert caught.value.answered
    written = client.sending.take()
    assert frames.frame(frames.PING, frames.ACK, 0, b"12345678") in written
    assert frames.frame(frames.SETTINGS, frames.ACK, 0) in written


class TestWhatWasDone:
    """Which calls the server has certainly not begun with."""

    def test_a_refused_stream(self) -> None:
        client = greeted()
        stream = open_call(client)
        client.receive(frames.rst_stream(stream.id, ErrorCode.REFUSED_STREAM))
        assert stream.failure is not None
        assert (stream.failure.code, stream.failure.not_done) == (Code.UNAVAILABLE, True)

    @pytest.mark.parametrize(
        ("code", "status"),
        [
            (ErrorCode.CANCEL, Code.CANCELLED),
            (ErrorCode.INTERNAL_ERROR, Code.INTERNAL),
            (ErrorCode.ENHANCE_YOUR_CALM, Code.RESOURCE_EXHAUSTED),
            (0xFFFF, Code.INTERNAL),
        ],
    )
    def test_a_stream_that_is_reset(self, code: int, status: Code) -> None:
        client = greeted()
        stream = open_call(client)
        client.receive(frames.rst_stream(stream.id, code))
        assert stream.failure is not None
        assert (stream.failure.code, stream.failure.not_done) == (status, False)

    def test_goaway_tells_apart(self) -> None:
        """What is above its last stream was not done; the others go on."""
        client = greeted()
        one, two = open_call(client), open_call(client)
        client.receive(
            frames.frame(frames.GOAWAY, 0, 0, struct.pack(">II", one.id, 0) + b"max_age")
        )
        assert client.draining is not None
        assert "max_age" in client.draining
        assert not client.can_open
        assert two.failure is not None
        assert two.failure.not_done
        assert not one.ended
        client.receive(whole(one.id, b"late"))
        assert answer(one) == b"late"

    def test_a_connection_that_is_lost(self) -> None:
        """What was not written was not done."""
        client = greeted()
        before = client.sending.queued
        one = open_call(client)
        two = open_call(client)
        client.fail("gone", written=before + 1)
        assert one.failure is not None
        assert two.failure is not None
        assert (one.failure.not_done, two.failure.not_done) == (False, True)
        assert client.woken == [one, two]


def test_a_call_that_is_given_up_is_forgotten() -> None:
    client = greeted()
    stream = open_call(client, bytes(100_000))
    client.reset(stream)
    assert sent_kinds(client.sending.take())[-1] == (frames.RST_STREAM, stream.id, 4)
    assert client.streams == 0
    # What was on its way is no error, and what waited for a window is gone.
    client.receive(whole(stream.id, b"late") + frames.window_update(stream.id, 1000))
    client.receive(frames.window_update(0, 100_000))
    assert client.sending.take() == b""
    assert client.woken == []


def test_an_answer_before_the_request_was_sent() -> None:
    """As for a request that is too large: the rest is not sent any more."""
    client = greeted()
    stream = open_call(client, bytes(100_000))
    client.sending.take()
    refusal = block(*HEADERS, ("grpc-status", "8"), ("grpc-message", "too large"))
    client.receive(trailers(stream.id, refusal))
    with pytest.raises(CallFailed, match="too large"):
        answer(stream)
    assert sent_kinds(client.sending.take()) == [(frames.RST_STREAM, stream.id, 4)]
    client.receive(frames.window_update(0, 100_000))
    assert client.sending.take() == b""


def test_a_long_header_block_is_continued() -> None:
    client, peer = ClientConnection(), Peer()
    head = b"\x83\x86\x01\x01h\x04\x01/" + b"".join(
        b"\x10\x02x%c\x7f\xa1\x0f" % letter + b"y" * 2080 for letter in b"abcdefghijklmnop"
    )
    stream = client.open(head, b"", end=True, largest=1, gathers=True)
    exchange(client, peer)
    assert peer.requests[stream.id].headers["xp"] == "y" * 2080
