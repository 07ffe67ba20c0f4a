"""Whatever frames of HTTP/2 a client sends, in whatever order, the next client is served."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http_fuzz.served import Served, fuzz
from tests.support.hostile_http2 import ILLEGAL_FRAMES, ILLEGAL_HEADERS, MOST
from tests.support.hostile_wire import (
    HEALTH,
    REFLECTION,
    SERVICE,
    Http2,
    raw_frame,
    read_to_end,
    reset,
)

pytestmark = [pytest.mark.faults, pytest.mark.slow]

# Few streams, so that frames meet on the same one.
streams = st.sampled_from((1, 1, 1, 3, 3, 5, 7, 0, 2, 4, 99, MOST, 0x80000001))
flags = st.one_of(st.sampled_from((0, 1, 4, 5, 5, 8, 0x20, 0x25, 0x2D)), st.integers(0, 255))
paths = st.sampled_from(
    (
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/%ff",
        f"/{HEALTH}/Check",
        f"/{HEALTH}/Watch",
        f"/{SERVICE}/Enqueue",
        f"/{SERVICE}/WatchForUpdates",
        f"/{REFLECTION}/ServerReflectionInfo",
    )
)
numbers = st.one_of(
    st.sampled_from((0, 1, 2, 16_384, 65_535, MOST, MOST + 1, 2**32 - 1)),
    st.integers(0, 2**32 - 1),
)
bodies = st.one_of(
    st.sampled_from((b"", b"\0\0\0\0\0", b"{}", b"\0\0\0\0\0" * 3, b"\1\0\0\0\1\0", bytes(5000))),
    st.binary(max_size=60),
)
kinds_of_content = st.sampled_from(
    (b"application/grpc", b"application/json", b"application/connect+proto", b"text/html")
)

_FORBIDDEN: Final = sorted(ILLEGAL_FRAMES)
_ODD: Final = sorted(ILLEGAL_HEADERS)

steps = st.one_of(
    st.tuples(
        st.just("request"),
        streams,
        paths,
        kinds_of_content,
        st.one_of(st.none(), bodies),
        st.booleans(),
    ),
    st.tuples(st.just("request"), streams, paths, kinds_of_content, bodies, st.just(True)),
    st.tuples(st.just("odd"), streams, st.sampled_from(_ODD), flags),
    st.tuples(st.just("data"), streams, flags, bodies),
    st.tuples(st.just("reset"), streams, numbers),
    st.tuples(st.just("window"), streams, numbers),
    st.tuples(st.just("priority"), streams, numbers, st.integers(0, 255)),
    st.tuples(st.just("settings"), flags, st.integers(0, 9), numbers),
    st.tuples(st.just("ping"), flags, st.binary(min_size=8, max_size=8)),
    st.tuples(st.just("goaway"), numbers, numbers, st.binary(max_size=10)),
    st.tuples(st.just("continuation"), streams, flags, st.binary(max_size=30)),
    st.tuples(st.just("raw"), st.integers(0, 255), flags, streams, st.binary(max_size=50)),
    st.tuples(st.just("lies"), st.integers(0, 9), flags, streams, st.integers(0, 2**24 - 1)),
    st.tuples(st.just("forbidden"), st.sampled_from(_FORBIDDEN)),
    st.tuples(st.just("listen"), st.sampled_from((0.0, 0.002, 0.01))),
)


def _bytes_of(http2: Http2, step: Sequence[Any]) -> bytes:
    match step:
        case "request", int(stream), str(path), bytes(kind), body, bool(ends):
            return http2.request(
                stream,
                path,
                [(b"content-type", kind), (b"te", b"trailers")],
                body=body,
                ends=ends,
            )
        case "odd", int(stream), str(name), int(bits):
            return raw_frame(1, bits, stream, http2.encode(ILLEGAL_HEADERS[name]))
        case "data", int(stream), int(bits), bytes(body):
            return raw_frame(0, bits, stream, body)
        case "reset", int(stream), int(number):
            return raw_frame(3, 0, stream, struct.pack(">I", number))
        case "window", int(stream), int(number):
            return raw_frame(8, 0, stream, struct.pack(">I", number))
        case "priority", int(stream), int(number), int(weight):
            return raw_frame(2, 0, stream, struct.pack(">IB", number, weight))
        case "settings", int(bits), int(name), int(number):
            return raw_frame(4, bits, 0, struct.pack(">HI", name, number))
        case "ping", int(bits), bytes(body):
            return raw_frame(6, bits, 0, body)
        case "goaway", int(last), int(number), bytes(body):
            return raw_frame(7, 0, 0, struct.pack(">II", last, number) + body)
        case "continuation", int(stream), int(bits), bytes(body):
            return raw_frame(9, bits, stream, body)
        case "raw", int(kind), int(bits), int(stream), bytes(body):
            return raw_frame(kind, bits, stream, body)
        case "lies", int(kind), int(bits), int(stream), int(length):
            return raw_frame(kind, bits, stream, b"x" * 20, length=length)
        case "forbidden", str(name):
            return b"".join(ILLEGAL_FRAMES[name])
        case _:
            raise AssertionError(step)


def _converse(served: Served, kind: str, sequence: Sequence[Sequence[Any]], end: str) -> None:
    served.start()
    with Http2(served.targets[kind]) as http2:
        for step in sequence:
            if step[0] == "listen":
                http2.read(lambda: False, seconds=step[1])
            elif not http2.send(_bytes_of(http2, step)):
                break
        if end == "reset":
            reset(http2.sock)
        elif end == "listen":
            read_to_end(http2.sock, seconds=0.02)
    served.check(kind)


@pytest.mark.parametrize("kind", ["service", "monitoring"])
def test_any_frames_leave_the_server_to_others(served: Served, kind: str) -> None:
    @fuzz(900)
    @given(st.lists(steps, min_size=1, max_size=15), st.sampled_from(("close", "reset", "listen")))
    def throw(sequence: list[tuple[Any, ...]], end: str) -> None:
        _converse(served, kind, sequence, end)

    throw()
