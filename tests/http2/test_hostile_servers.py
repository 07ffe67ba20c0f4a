"""Servers that send too much, or what nobody may send; and whatever else they can."""

from __future__ import annotations

from contextlib import suppress

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_actions.http2 import CallFailed, Code, ProtocolError, frames
from etcd_actions.http2.connection import STREAM_WINDOW, ClientConnection
from etcd_actions.http2.errors import ErrorCode
from etcd_actions.http2.grpc_messages import MessageReader, answer, framed
from etcd_actions.http2.headers import LARGEST_BLOCK
from tests.support.everyday import examples
from tests.support.http2_peer import (
    ANSWER,
    DONE,
    HEADERS,
    OK,
    block,
    data,
    greeted,
    headers,
    open_call,
    sent_kinds,
    trailers,
    whole,
)
from tests.support.table import table


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
        client.sending.take()
        client.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        assert stream.send_window == -frames.FIRST_WINDOW
        client.receive(
            frames.window_update(0, 10) + frames.window_update(stream.id, frames.FIRST_WINDOW)
        )
        assert frames.DATA not in [kind for kind, _, _ in sent_kinds(client.sending.take())]
        client.receive(frames.window_update(stream.id, 7))
        assert (frames.DATA, stream.id, 7) in sent_kinds(client.sending.take())

    def test_an_answer_that_is_too_large(self) -> None:
        """Its stream alone is ended, before all of it is here."""
        client = greeted()
        large, other = open_call(client, largest=1000), open_call(client)
        client.receive(headers(large.id) + data(large.id, framed(bytes(50_000))[:2000]))
        assert large.failure is not None
        assert large.failure.code is Code.RESOURCE_EXHAUSTED
        assert (frames.RST_STREAM, large.id, 4) in sent_kinds(client.sending.take())
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
        assert len(client.sending.take()) < 100_000

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
        assert len(client._decoder._cache) <= 256

    def test_a_server_that_uses_a_table_again_is_understood(self) -> None:
        """What was remembered without one would leave a field out of it."""
        client = greeted()
        fields = [*HEADERS, *OK]
        encoder = hpack.Encoder()
        encoder.header_table_size = 0
        plain = encoder.encode(fields)
        again = encoder.encode(fields)
        assert plain[1:] == again
        encoder.header_table_size = 4096
        blocks = [plain, again, again, *(encoder.encode(fields) for _ in range(3))]
        for each in blocks:
            stream = open_call(client)
            client.receive(trailers(stream.id, each))
            assert stream.trailers == dict(fields)
        assert not client._decoder._cache

    def test_a_server_that_keeps_its_table_is_understood(self) -> None:
        """Equal blocks mean other things then, and none is remembered."""
        client = greeted()
        encoder = hpack.Encoder()
        for number in range(40):
            stream = open_call(client)
            fields = [*HEADERS, ("n", str(number // 3)), *OK]
            client.receive(trailers(stream.id, encoder.encode(fields)))
            assert stream.trailers == dict(fields)
        assert not client._decoder._cache


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks HTTP/1.1 only"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "not HTTP/2"),
        (frames.frame(frames.SETTINGS, frames.ACK, 0), "not HTTP/2"),
        (frames.frame(frames.PING, 0, 0, bytes(8)), "not HTTP/2"),
    ],
)
def test_a_server_of_another_kind(server: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        ClientConnection().receive(server)


@table(
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
    client.sending.take()
    with pytest.raises(ProtocolError) as caught:
        client.receive(server)
    assert caught.value.code == (code or ErrorCode.PROTOCOL_ERROR)
    assert sent_kinds(client.sending.take())[-1][0] == frames.GOAWAY
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
    assert (frames.RST_STREAM, stream.id, 4) in sent_kinds(client.sending.take())
    client.receive(whole(stream.id, b"") + whole(other.id, b"x"))
    assert answer(other) == b"x"


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


@settings(max_examples=examples(400))
@given(
    server=st.lists(st.one_of(frame_bytes, st.binary(max_size=30)), max_size=40),
    cuts=st.lists(st.integers(1, 50), max_size=40),
)
def test_whatever_a_server_sends(server: list[bytes], cuts: list[int]) -> None:
    """Nothing but the one exception comes out, and nothing grows."""
    client = greeted()
    streams = [open_call(client, bytes(70_000)), open_call(client, gathers=False)]
    client.sending.take()
    raw, start = b"".join(server), 0
    reader = MessageReader(streams[1])
    for size in [*cuts, len(raw) or 1]:
        try:
            client.receive(raw[start : start + size])
        except ProtocolError:
            client.fail("broken", written=client.sending.queued)
            break
        finally:
            start += size
    try:
        while reader.take()[0]:
            continue
    except CallFailed:
        streams[1].chunks.clear()
    assert len(client.sending.take()) < 200_000
    for stream in streams:
        assert sum(map(len, stream.chunks)) <= len(raw)
        if stream.ended and stream.gathers:
            with suppress(CallFailed):
                answer(stream)
