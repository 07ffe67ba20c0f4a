"""Whatever bytes come, in whatever pieces: nothing fails, no task stays, others are served."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.waiting import eventually
from tests.web.listeners import PREFACE, SETTINGS, Served, connect, request, rest, served

PIECES = [
    request("/ok"),
    request("/ok", method="HEAD"),
    request("/ok", "connection: close"),
    request("/ok", "upgrade: h2c", "connection: upgrade"),
    request("/body", "content-length: 5", method="POST") + b"hello",
    request("/body", "content-length: 5", "expect: 100-continue", method="POST"),
    request("/body", "transfer-encoding: chunked", method="POST") + b"5\r\nhello\r\n0\r\n\r\n",
    b"GET /ok HTTP/1.0\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
    PREFACE,
    SETTINGS,
    # A request of HTTP/2 for /ok, one with a body that does not come, and a ping.
    b"\0\0\x13\1\5\0\0\0\1\x82\x86\4\3/ok\1\x09localhost",
    b"\0\0\x13\1\4\0\0\0\3\x83\x86\4\3/ok\1\x09localhost",
    b"\0\0\x08\6\0\0\0\0\0" + bytes(8),
    b"\0\0\4\x08\0\0\0\0\0\0\1\0\0",
]


@st.composite
def transcripts(draw: st.DrawFn) -> bytes:
    """Requests and frames in any order, some bytes of them changed."""
    pieces = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=20)), max_size=5)
    data = bytearray(b"".join(draw(pieces)))
    changes = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))
    for where, value in draw(st.lists(changes, max_size=3)):
        if data:
            data[int(where * len(data))] = value
    return bytes(data)


async def send(server: Served, data: bytes, cuts: list[int], end: str) -> None:
    """Send in pieces, and end in one of the ways that there are."""
    stream = await connect(server.address)
    async with stream:
        with suppress(trio.BrokenResourceError):
            at = 0
            for size in [*cuts, len(data)]:
                await stream.send_all(data[at : at + size])
                at += size
                await trio.lowlevel.checkpoint()
            if end == "fin":
                await stream.send_eof()
                await rest(stream)
            elif end == "listen":
                await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    several=st.lists(transcripts(), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 100), max_size=8),
    end=st.sampled_from(["fin", "listen", "close"]),
)
def test_any_bytes_in_any_pieces_end_in_order(
    several: list[bytes], cuts: list[int], end: str
) -> None:
    async def main() -> None:
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with served() as server:
            await server.is_well()
            await trio.testing.wait_all_tasks_blocked()
            listening = trio.lowlevel.current_statistics().tasks_living
            async with trio.open_nursery() as nursery:
                for data in several:
                    nursery.start_soon(send, server, data, cuts, end)
            # The listener's own tasks are left, and no request's or connection's.
            await eventually(lambda: trio.lowlevel.current_statistics().tasks_living == listening)
            assert server.listener.statistics().open_connections == 0
            await server.is_well()
            assert server.containment.failures == {}
        assert trio.lowlevel.current_statistics().tasks_living == tasks

    trio.run(main)
