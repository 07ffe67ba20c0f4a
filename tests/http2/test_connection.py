"""HTTP/2 without a network: every rule that a server may test, break or make use of."""

from __future__ import annotations

import struct
from contextlib import suppress

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_actions.http2 import CallFailed, Code, ProtocolError, frames
from etcd_actions.http2.connection import STREAM_WINDOW, ClientConnection
from etcd_actions.http2.errors import ErrorCode
from etcd_actions.http2.headers import LARGEST_BLOCK
from etcd_actions.http2.messages import MessageReader, answer, framed
from etcd_actions.http2.stream import Stream
from tests.support.http2_peer import HEADERS, OK, Peer, exchange, greeted, open_call

few = settings(max_examples=60)


def block(*fields: tuple[str, str]) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(list(fields))


ANSWER = block(*HEADERS)
DONE = block(*OK)


def headers(number: int, data: bytes = ANSWER, flags: int = frames.END_HEADERS) -> bytes:
    return frames.frame(frames.HEADERS, flags, number, data)


def trailers(number: int, data: bytes = DONE) -> bytes:
    return headers(number, data, frames.END_HEADERS | frames.END_STREAM)


def data(number: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, flags, number, payload)


def whole(number: int, message: bytes) -> bytes:
    return headers(number) + data(number, framed(message)) + trailers(number)


def sent_kinds(written: bytes) -> list[tuple[int, int, int]]:
    """Kind, stream and length of all frames that were written."""
    found, position = [], 0
    while position < len(written):
        word, _, number = frames.HEADER.unpack_from(written, position)
        found.append((word & 0xFF, number, word >> 8))
        position += frames.HEADER_LENGTH + (word >> 8)
    return found


class TestWithAnotherImplementation:
    @few
    @given(
        bodies=st.lists(
            st.tuples(st.integers(0, 200_000), st.integers(0, 200_000)), min_size=1, max_size=8
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
            client.taken(stream, room)
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
            written.append(client.take())
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
    client.take()
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
    written = client.take()
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
        before = client.queued
        one = open_call(client)
        two = open_call(client)
        client.lost("gone", written=before + 1)
        assert one.failure is not None
        assert two.failure is not None
        assert (one.failure.not_done, two.failure.not_done) == (False, True)
        assert client.woken == [one, two]


class TestBounds:
    def test_no_more_streams_than_the_server_allows(self) -> None:
        client = greeted({frames.MAX_CONCURRENT_STREAMS: 1})
        stream = open_call(client)
        assert not client.can_open
        client.receive(whole(stream.id, b""))
        assert client.can_open

    def test_the_numbers_of_streams_are_used_up(self) -> None:
        client = greeted()
        client._next_id = frames.LAST_STREAM
        assert client.can_open
        stream = open_call(client)
        assert stream.id == frames.LAST_STREAM
        assert not client.can_open

    def test_a_window_may_come_to_be_below_zero(self) -> None:
        client = greeted()
        stream = open_call(client, bytes(100_000))
        assert stream.send_window == 0
        client.take()
        client.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        assert stream.send_window == -frames.FIRST_WINDOW
        client.receive(
            frames.window_update(0, 10) + frames.window_update(stream.id, frames.FIRST_WINDOW)
        )
        assert frames.DATA not in [kind for kind, _, _ in sent_kinds(client.take())]
        client.receive(frames.window_update(stream.id, 7))
        assert (frames.DATA, stream.id, 7) in sent_kinds(client.take())

    def test_an_answer_that_is_too_large(self) -> None:
        """Its stream alone is ended, before all of it is here."""
        client = greeted()
        large, other = open_call(client, largest=1000), open_call(client)
        client.receive(headers(large.id) + data(large.id, framed(bytes(50_000))[:2000]))
        assert large.failure is not None
        assert large.failure.code is Code.RESOURCE_EXHAUSTED
        assert (frames.RST_STREAM, large.id, 4) in sent_kinds(client.take())
        client.receive(data(large.id, bytes(1000)) + whole(other.id, b"x"))
        assert answer(other) == b"x"

    def test_more_than_the_window(self) -> None:
        """A server that does not keep to it loses the stream."""
        client = greeted()
        stream = open_call(client, gathers=False)
        client.receive(headers(stream.id))
        frame = data(stream.id, bytes(65_536))
        for _ in range(STREAM_WINDOW // 65_536):
            client.receive(frame)
        assert not stream.ended
        client.receive(data(stream.id, b"x"))
        assert stream.failure is not None
        assert "window" in stream.failure.details

    def test_pings_that_nobody_can_answer(self) -> None:
        client = greeted()
        with pytest.raises(ProtocolError, match="faster than their answers"):
            client.receive(frames.frame(frames.PING, 0, 0, bytes(8)) * 2000)
        assert len(client.take()) < 100_000

    @pytest.mark.parametrize("size", [0, 1000])
    def test_a_header_block_without_an_end(self, size: int) -> None:
        client = greeted()
        stream = open_call(client)
        client.receive(headers(stream.id, b"", 0))
        with pytest.raises(ProtocolError, match="header block of more than"):
            client.receive(frames.frame(frames.CONTINUATION, 0, stream.id, bytes(size)) * 10_000)

    def test_a_header_list_that_is_small_only_when_it_is_encoded(self) -> None:
        client = greeted()
        stream = open_call(client)
        encoder = hpack.Encoder()
        bomb = encoder.encode([("x", "y" * 3000)]) + b"\xbe" * 60_000
        with pytest.raises(ProtocolError, match=f"more than {LARGEST_BLOCK}"):
            client.receive(headers(stream.id, bomb[:60_000]))

    def test_different_header_blocks_are_not_remembered_for_ever(self) -> None:
        client = greeted()
        for number in range(2000):
            stream = open_call(client)
            client.receive(trailers(stream.id, block(*HEADERS, ("n", str(number)), *OK)))
            assert stream.trailers is not None
            assert stream.trailers["n"] == str(number)
        assert len(client._decoder._known) <= 256

    def test_a_server_that_keeps_its_table_is_understood(self) -> None:
        """Equal blocks mean other things then, and none is remembered."""
        client = greeted()
        encoder = hpack.Encoder()
        for number in range(40):
            stream = open_call(client)
            fields = [*HEADERS, ("n", str(number // 3)), *OK]
            client.receive(trailers(stream.id, encoder.encode(fields)))
            assert stream.trailers == dict(fields)
        assert not client._decoder._known


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks HTTP/1.1 only"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "no HTTP/2"),
        (frames.frame(frames.SETTINGS, frames.ACK, 0), "no HTTP/2"),
        (frames.frame(frames.PING, 0, 0, bytes(8)), "no HTTP/2"),
    ],
)
def test_a_server_of_another_kind(server: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        ClientConnection().receive(server)


@pytest.mark.parametrize(
    ("server", "code"),
    [
        (frames.frame(frames.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (frames.frame(frames.SETTINGS, frames.ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (frames.frame(frames.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frames.settings({frames.ENABLE_PUSH: 1}), ErrorCode.PROTOCOL_ERROR),
        (frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.settings({frames.MAX_FRAME_SIZE: 100}), ErrorCode.PROTOCOL_ERROR),
        (frames.settings({frames.MAX_FRAME_SIZE: 2**24}), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.window_update(3, 1), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.WINDOW_UPDATE, 0, 0, b"1"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.frame(frames.PING, 0, 0, b"1"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.frame(frames.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.GOAWAY, 0, 0, b"1"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.frame(frames.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.RST_STREAM, 0, 1, b"1"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.rst_stream(3, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.rst_stream(0, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.PRIORITY, 0, 1, b"1"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.frame(frames.PUSH_PROMISE, frames.END_HEADERS, 1), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.CONTINUATION, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (headers(1, ANSWER, 0) + frames.frame(frames.PING, 0, 0, bytes(8)), None),
        (headers(1, ANSWER, 0) + frames.frame(frames.CONTINUATION, 0, 3), None),
        (headers(3), ErrorCode.PROTOCOL_ERROR),
        (headers(2), ErrorCode.PROTOCOL_ERROR),
        (headers(1, b"\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (headers(1, b"\xc0"), ErrorCode.COMPRESSION_ERROR),
        (headers(1, b"\x00\x05ab"), ErrorCode.COMPRESSION_ERROR),
        (headers(1, b"1", frames.END_HEADERS | frames.WITH_PRIORITY), ErrorCode.FRAME_SIZE_ERROR),
        (headers(1, b"", frames.END_HEADERS | frames.PADDED), ErrorCode.FRAME_SIZE_ERROR),
        (headers(1, b"\x09ab", frames.END_HEADERS | frames.PADDED), ErrorCode.PROTOCOL_ERROR),
        (data(3, b""), ErrorCode.PROTOCOL_ERROR),
        (data(0, b""), ErrorCode.PROTOCOL_ERROR),
        (data(1, b"", frames.PADDED), ErrorCode.FRAME_SIZE_ERROR),
        (data(1, b"\x02a", frames.PADDED), ErrorCode.PROTOCOL_ERROR),
        (data(1, bytes(70_000)), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_a_server_that_breaks_the_rules(server: bytes, code: ErrorCode | None) -> None:
    """One exception, which says what was wrong; the server is told; and it stays so."""
    client = greeted()
    open_call(client)
    client.take()
    with pytest.raises(ProtocolError) as caught:
        client.receive(server)
    assert caught.value.code == (code or ErrorCode.PROTOCOL_ERROR)
    assert sent_kinds(client.take())[-1][0] == frames.GOAWAY
    with pytest.raises(ProtocolError):
        client.receive(frames.frame(frames.PING, 0, 0, bytes(8)))


@pytest.mark.parametrize(
    "server",
    [
        data(1, b"x"),
        headers(1, block(("content-type", "application/grpc"))),
        headers(1) + headers(1),
        frames.window_update(1, 0),
        frames.window_update(1, 2**31 - 1),
    ],
)
def test_a_stream_that_breaks_the_rules_ends_alone(server: bytes) -> None:
    client = greeted()
    stream, other = open_call(client), open_call(client)
    client.receive(server)
    assert stream.failure is not None
    assert (frames.RST_STREAM, stream.id, 4) in sent_kinds(client.take())
    client.receive(whole(stream.id, b"") + whole(other.id, b"x"))
    assert answer(other) == b"x"


def test_a_call_that_is_given_up_is_forgotten() -> None:
    client = greeted()
    stream = open_call(client, bytes(100_000))
    client.reset(stream)
    assert sent_kinds(client.take())[-1] == (frames.RST_STREAM, stream.id, 4)
    assert client.streams == 0
    # What was on its way is no error, and what waited for a window is gone.
    client.receive(whole(stream.id, b"late") + frames.window_update(stream.id, 1000))
    client.receive(frames.window_update(0, 100_000))
    assert client.take() == b""
    assert client.woken == []


def test_an_answer_before_the_request_was_sent() -> None:
    """As for a request that is too large: the rest is not sent any more."""
    client = greeted()
    stream = open_call(client, bytes(100_000))
    client.take()
    refusal = block(*HEADERS, ("grpc-status", "8"), ("grpc-message", "too large"))
    client.receive(trailers(stream.id, refusal))
    with pytest.raises(CallFailed, match="too large"):
        answer(stream)
    assert sent_kinds(client.take()) == [(frames.RST_STREAM, stream.id, 4)]
    client.receive(frames.window_update(0, 100_000))
    assert client.take() == b""


def test_a_long_header_block_is_continued() -> None:
    client, peer = ClientConnection(), Peer()
    head = b"\x83\x86\x01\x01h\x04\x01/" + b"".join(
        b"\x10\x02x%c\x7f\xa1\x0f" % letter + b"y" * 2080 for letter in b"abcdefghijklmnop"
    )
    stream = client.open(head, b"", end=True, largest=1, gathers=True)
    exchange(client, peer)
    assert peer.requests[stream.id].headers["xp"] == "y" * 2080


frame_bytes = st.builds(
    frames.frame,
    st.one_of(st.integers(0, 9), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 0x0C, 0x20, 0x2D]), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 3, 5]), st.integers(0, 2**32 - 1)),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([ANSWER, DONE, framed(b"x"), frames.NUMBER.pack(1), bytes(8), bytes(5)]),
        st.binary(max_size=40).map(lambda each: ANSWER + each),
    ),
)


@settings(max_examples=400)
@given(
    server=st.lists(st.one_of(frame_bytes, st.binary(max_size=30)), max_size=40),
    cuts=st.lists(st.integers(1, 50), max_size=40),
)
def test_whatever_a_server_sends(server: list[bytes], cuts: list[int]) -> None:
    """Nothing but the one exception comes out, and nothing grows."""
    client = greeted()
    streams = [open_call(client, bytes(70_000)), open_call(client, gathers=False)]
    client.take()
    raw, start = b"".join(server), 0
    reader = MessageReader(streams[1])
    for size in [*cuts, len(raw) or 1]:
        try:
            client.receive(raw[start : start + size])
        except ProtocolError:
            client.lost("broken", written=client.queued)
            break
        finally:
            start += size
    try:
        while reader.take()[0]:
            continue
    except CallFailed:
        streams[1].chunks.clear()
    assert len(client.take()) < 200_000
    for stream in streams:
        assert sum(map(len, stream.chunks)) <= len(raw)
        if stream.ended and stream.gathers:
            with suppress(CallFailed):
                answer(stream)
