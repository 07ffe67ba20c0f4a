"""Attacks with HTTP/2: floods of frames, streams without end, and frames that are no good."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Final

from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.support.hostile_registry import BOTH, PLAIN, Observed, attack
from tests.support.hostile_wire import (
    HEALTH,
    PREFACE,
    REFLECTION,
    Headers,
    Http2,
    Target,
    pour,
    raw_frame,
    read_to_end,
)

FLOOD: Final = 20_000
MOST: Final = 2**31 - 1


def _ask(http2: Http2, target: Target, stream: int) -> bytes:
    """A request that is answered shortly."""
    if target.kind == "monitoring":
        return http2.request(stream, target.good_path, method=b"GET")
    return http2.grpc(stream, target.good_path.decode())


def _open(http2: Http2, target: Target, stream: int) -> bytes:
    """A request that does not end."""
    if target.kind == "monitoring":
        return http2.request(stream, b"/healthz", ends=False)
    return http2.grpc(stream, f"/{REFLECTION}/ServerReflectionInfo", body=None, ends=False)


@attack(BOTH)
def late_data(target: Target) -> Iterator[Observed]:
    """The body comes when the request was answered long ago."""
    with Http2(target) as http2:
        paths = [b"/nowhere", b"/", target.good_path, b"/metrics"]
        for number, path in enumerate(paths):
            stream = 2 * number + 1
            http2.send(http2.request(stream, path, ends=False))
        http2.read(lambda: len(http2.answered) == len(paths), seconds=1.0)
        for _ in range(3):
            for number in range(len(paths)):
                http2.send(DataFrame(2 * number + 1, b"late"))
            time.sleep(0.2)  # The pace of the late frames.
        for number in range(len(paths)):
            http2.send(DataFrame(2 * number + 1, b"later", flags=["END_STREAM"]))
        yield {"statuses": [http2.status(2 * number + 1) for number in range(len(paths))]}


@attack(BOTH)
def many_streams(target: Target) -> Iterator[Observed]:
    """1,500 open streams on each of two connections."""
    with ExitStack() as stack:
        connections = [stack.enter_context(Http2(target)) for _ in range(2)]
        for http2 in connections:
            pour(http2.sock, (_open(http2, target, stream) for stream in range(1, 3001, 2)))
            http2.read(lambda: False, seconds=1.0)
        yield {"goaway": [each.goaway for each in connections]}


@attack(BOTH)
def rapid_reset(target: Target) -> Iterator[Observed]:
    """Requests that are reset at once."""
    with Http2(target) as http2:
        streams = range(1, 2 * FLOOD, 2)
        asks = (
            _open(http2, target, stream) + bytes(RstStreamFrame(stream, error_code=8).serialize())
            for stream in streams
        )
        yield {"sent": pour(http2.sock, asks)}


@attack(PLAIN)
def made_to_reset(target: Target) -> Iterator[Observed]:
    """Requests that make the server reset them: a window update of nothing."""
    with Http2(target) as http2:
        asks = (
            _open(http2, target, stream) + raw_frame(8, 0, stream, bytes(4))
            for stream in range(1, 2 * FLOOD, 2)
        )
        yield {"sent": pour(http2.sock, asks)}


_FLOODS: Final[Mapping[str, Callable[[int], bytes]]] = {
    "settings": lambda n: bytes(SettingsFrame(0, settings={4: 65535 + n % 7}).serialize()),
    "settings acks": lambda n: raw_frame(4, 1, 0, b""),
    "pings": lambda n: bytes(PingFrame(0, struct.pack(">Q", n)).serialize()),
    "ping acks": lambda n: raw_frame(6, 1, 0, struct.pack(">Q", n)),
    "windows": lambda n: bytes(WindowUpdateFrame(0, window_increment=1).serialize()),
    "priorities": lambda n: bytes(
        PriorityFrame(2 * n + 1, depends_on=2 * (n // 2) + 1 if n else 0).serialize()
    ),
    "exclusive priorities": lambda n: bytes(
        PriorityFrame(2 * n + 1, depends_on=max(0, 2 * n - 1), exclusive=True).serialize()
    ),
    "unknown frames": lambda n: raw_frame(0xEE, 0xFF, n, b"x" * 20),
    "resets of closed streams": lambda n: bytes(RstStreamFrame(1, error_code=8).serialize()),
    "empty data": lambda n: raw_frame(0, 0, 3, b""),
    "padded data": lambda n: raw_frame(0, 8, 3, b"\x0f" + bytes(15)),
}


@attack(BOTH)
def floods_of_frames(target: Target) -> Iterator[Observed]:
    """Each kind that costs nothing to send, from a client that reads and one that does not."""
    sent = {}
    for name, frame in _FLOODS.items():
        with Http2(target) as http2:
            http2.send(_ask(http2, target, 1), _open(http2, target, 3))
            chunks = (
                b"".join(frame(n) for n in range(at, at + 100)) for at in range(0, FLOOD, 100)
            )
            sent[name] = pour(http2.sock, chunks, seconds=1.0)
            read_to_end(http2.sock, seconds=0.1)
    yield {"sent": sent}


@attack(PLAIN)
def floods_of_continuations(target: Target) -> Iterator[Observed]:
    """A header that goes on for ever, in empty frames and in full ones."""
    sent = []
    for payload in (b"", b"\x00\x01a\x01b" * 2000):
        with Http2(target) as http2:
            http2.send(HeadersFrame(1, http2.encode(http2.pseudo(b"/"))))
            frame = bytes(ContinuationFrame(1, payload).serialize())
            sent.append(pour(http2.sock, (frame for _ in range(FLOOD)), seconds=2.0))
            read_to_end(http2.sock, seconds=0.2)
    yield {"sent": sent}


@attack(PLAIN)
def hpack_bombs(target: Target) -> Iterator[Observed]:
    """A few bytes that stand for many megabytes of headers, and blocks that are no HPACK."""
    bomb = b"\x40\x01a\x7f" + b"\xa1\x1e" + b"b" * 4000 + b"\xbe" * 16_000
    blocks = [
        bomb,
        b"\x3f\xff\xff\xff\xff\x7f",
        b"\xff" * 100,
        b"\xff\x80" + b"\x80" * 50_000,
        b"\x00\xff\xff\xff\xff\xff\xff\x00",
        b"\x20" * 10_000,
        b"\x00\x84\xff\xff\xff\xff\x84\xff\xff\xff\xff",
        os.urandom(500),
    ]
    gone = 0
    for block in blocks:
        for _ in range(3):
            with Http2(target) as http2:
                pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
                frames = [raw_frame(1, 1, 1, pieces[0])]
                frames += [raw_frame(9, 0, 1, piece) for piece in pieces[1:]]
                frames.append(raw_frame(9, 4, 1, b""))
                http2.send(*frames)
                http2.read(lambda: http2.gone or http2.is_over(1), seconds=2.0)
                gone += http2.gone
    yield {"gone": gone}


def _headers(*more: tuple[bytes, bytes], **replaced: bytes | None) -> Headers:
    wanted: dict[str, bytes | None] = {
        "method": b"GET",
        "scheme": b"http",
        "authority": b"127.0.0.1",
        "path": b"/healthz",
        **replaced,
    }
    pseudo = [(f":{name}".encode(), value) for name, value in wanted.items() if value is not None]
    return [*pseudo, *more]


ILLEGAL_HEADERS: Final[Mapping[str, Headers]] = {
    "bytes in the path": _headers(path=b"/\xff\xfe\x80"),
    "escaped bytes in the path": _headers(path=b"/%ff%00%0a"),
    "NUL in the path": _headers(path=b"/a\0b"),
    "CRLF in the path": _headers(path=b"/a\r\nhost: evil"),
    "bytes in the query": _headers(path=b"/healthz?\xff=\xfe"),
    "empty path": _headers(path=b""),
    "asterisk": _headers(path=b"*", method=b"OPTIONS"),
    "no slash": _headers(path=b"healthz"),
    "long path": _headers(path=b"/" + b"a" * 14_000),
    "no path": _headers(path=None),
    "no method": _headers(method=None),
    "no scheme": _headers(scheme=None),
    "no authority": _headers(authority=None),
    "another authority": _headers(authority=b"evil.example"),
    "bytes in the authority": _headers(authority=b"\xff\xfe"),
    "bytes in the method": _headers(method=b"\xff\xfe"),
    "empty method": _headers(method=b""),
    "lower method": _headers(method=b"get"),
    "bytes in the scheme": _headers(scheme=b"\xff"),
    "CONNECT": _headers(method=b"CONNECT"),
    "CONNECT without a path": _headers(method=b"CONNECT", path=None, scheme=None),
    "extended CONNECT": _headers((b":protocol", b"websocket"), method=b"CONNECT"),
    "websocket": _headers(
        (b":protocol", b"websocket"), (b"sec-websocket-version", b"13"), method=b"CONNECT"
    ),
    "protocol of bytes": _headers((b":protocol", b"\xff"), method=b"CONNECT"),
    "protocol with GET": _headers((b":protocol", b"websocket")),
    "two paths": _headers((b":path", b"/metrics")),
    "pseudo behind": [(b"x", b"y"), *_headers()],
    "unknown pseudo": _headers((b":evil", b"x")),
    "status": _headers((b":status", b"200")),
    "upper case": _headers((b"X-Upper", b"x")),
    "connection": _headers((b"connection", b"close")),
    "transfer encoding": _headers((b"transfer-encoding", b"chunked")),
    "te": _headers((b"te", b"gzip")),
    "empty name": _headers((b"", b"x")),
    "bytes in a name": _headers((b"\xff\xfe", b"x")),
    "NUL in a value": _headers((b"x", b"a\0b")),
    "CRLF in a value": _headers((b"x", b"a\r\nb: c")),
    "spaces around a value": _headers((b"x", b"  a  ")),
    "host of another": _headers((b"host", b"evil.example")),
    "no number as length": _headers((b"content-length", b"abc")),
    "negative length": _headers((b"content-length", b"-1")),
    "length of 5,000 digits": _headers((b"content-length", b"9" * 5000)),
    "length without a body": _headers((b"content-length", b"10")),
    "two lengths": _headers((b"content-length", b"0"), (b"content-length", b"5")),
    "many cookies": _headers(*[(b"cookie", b"a=b")] * 300),
    "many headers": _headers(*[(b"x-%d" % n, b"y") for n in range(900)]),
    "expectation": _headers((b"expect", b"100-continue")),
    "upgrade": _headers((b"upgrade", b"h2c")),
}
"""Headers that HTTP/2 forbids, or that nobody expects."""


@attack(PLAIN)
def illegal_headers(target: Target) -> Iterator[Observed]:
    """Each alone on a connection, and all of them on one."""
    seen: dict[str, tuple[int, int | None, int | None, bool]] = {}
    for name, headers in ILLEGAL_HEADERS.items():
        with Http2(target) as http2:
            head = HeadersFrame(1, http2.encode(headers), flags=["END_HEADERS", "END_STREAM"])
            http2.send(head, http2.request(3, b"/healthz", method=b"GET"))
            answered = http2.read(lambda: http2.is_over(1) and http2.is_over(3), seconds=1.5)
            seen[name] = (http2.status(1), http2.resets.get(1), http2.goaway, answered)
    with Http2(target) as http2:
        for number, headers in enumerate(ILLEGAL_HEADERS.values()):
            data = http2.encode(headers)
            http2.send(HeadersFrame(2 * number + 1, data, flags=["END_HEADERS", "END_STREAM"]))
    open_still = [name for name, (*_, answered) in seen.items() if not answered]
    assert not open_still, f"neither answered nor closed: {open_still}"
    errors = {name: found for name, found in seen.items() if found[0] >= 500 and found[0] != 501}
    assert not errors, errors
    yield {"seen": seen}


_PRIORITY_OF_ITSELF: Final = struct.pack(">IB", 1, 15)
ILLEGAL_FRAMES: Final[Mapping[str, list[bytes]]] = {
    "data on stream 0": [raw_frame(0, 0, 0, b"x")],
    "data on an idle stream": [raw_frame(0, 0, 99, b"x")],
    "headers on stream 0": [raw_frame(1, 5, 0, b"\x82")],
    "headers on an even stream": [raw_frame(1, 5, 2, b"\x82\x86\x84\x41\x01a")],
    "smaller stream": [raw_frame(1, 5, 9, b"\x82\x86\x84"), raw_frame(1, 5, 3, b"\x82\x86\x84")],
    "second headers": [raw_frame(1, 4, 9, b"\x82\x86\x84")] * 3,
    "reset of an idle stream": [raw_frame(3, 0, 99, bytes(4))],
    "short reset": [raw_frame(3, 0, 1, bytes(3))],
    "short ping": [raw_frame(6, 0, 0, bytes(7))],
    "ping on a stream": [raw_frame(6, 0, 1, bytes(8))],
    "odd settings": [raw_frame(4, 0, 0, bytes(5))],
    "settings on a stream": [raw_frame(4, 0, 1, b"")],
    "ack with settings": [raw_frame(4, 1, 0, bytes(6))],
    "unasked acks": [raw_frame(4, 1, 0, b"")] * 50,
    "push of the client": [raw_frame(5, 4, 1, struct.pack(">I", 2) + b"\x82\x86\x84")],
    "short priority": [raw_frame(2, 0, 1, bytes(4))],
    "priority of itself": [raw_frame(2, 0, 1, _PRIORITY_OF_ITSELF)],
    "headers with a priority of itself": [
        raw_frame(1, 0x25, 1, _PRIORITY_OF_ITSELF + b"\x82\x86\x84")
    ],
    "priority on stream 0": [raw_frame(2, 0, 0, bytes(5))],
    "priority of an even stream": [
        raw_frame(2, 0, 2, bytes(5)),
        raw_frame(1, 5, 1, b"\x82\x86\x84"),
    ],
    "priority of a cycle": [
        raw_frame(2, 0, 1, struct.pack(">IB", 3, 1)),
        raw_frame(2, 0, 3, struct.pack(">IB", 5, 1)),
        raw_frame(2, 0, 5, struct.pack(">IB", 1, 1)),
        raw_frame(2, 0, 1, struct.pack(">IB", 0x80000005, 1)),
    ],
    "window of nothing": [raw_frame(8, 0, 0, bytes(4))],
    "window of a stream of nothing": [
        raw_frame(1, 4, 1, b"\x82\x86\x84"),
        raw_frame(8, 0, 1, bytes(4)),
    ],
    "window overflow": [raw_frame(8, 0, 0, struct.pack(">I", MOST))] * 2,
    "window overflow of a stream": [
        raw_frame(1, 4, 1, b"\x82\x86\x84"),
        *[raw_frame(8, 0, 1, struct.pack(">I", MOST))] * 2,
    ],
    "window of an idle stream": [raw_frame(8, 0, 99, struct.pack(">I", 5))],
    "short window": [raw_frame(8, 0, 0, bytes(3))],
    "continuation of nothing": [raw_frame(9, 4, 1, b"\x82")],
    "continuation of another": [raw_frame(1, 0, 1, b"\x82"), raw_frame(9, 4, 3, b"\x86")],
    "data in a header": [raw_frame(1, 0, 1, b"\x82"), raw_frame(0, 0, 1, b"x")],
    "padding beyond the end": [raw_frame(1, 4, 1, b"\x82\x86\x84"), raw_frame(0, 8, 1, b"\xffabc")],
    "padded headers beyond the end": [raw_frame(1, 0x0C, 1, b"\xff\x82")],
    "no room for padding": [raw_frame(0, 8, 1, b"")],
    "too long": [raw_frame(0, 0, 1, b"x" * 70_000)],
    "said to be huge": [raw_frame(0, 0, 1, b"x" * 100, length=2**24 - 1)],
    "reserved bit": [raw_frame(6, 0, 0x80000000, bytes(8))],
    "goaway on a stream": [raw_frame(7, 0, 1, bytes(8))],
    "short goaway": [raw_frame(7, 0, 0, bytes(3))],
    "goaway with a text": [raw_frame(7, 0, 0, bytes(8) + b"\xff" * 10_000)],
    "alternative service": [raw_frame(0xA, 0, 0, b"\0\3abc\xff\xff")],
    "origin": [raw_frame(0xC, 0, 0, b"\0\3a")],
    "all flags": [raw_frame(kind, 0xFF, 1, bytes(40)) for kind in range(12)],
    "push allowed twice": [raw_frame(4, 0, 0, struct.pack(">HI", 2, 2))],
    "window too large": [raw_frame(4, 0, 0, struct.pack(">HI", 4, 2**31))],
    "frames too small": [raw_frame(4, 0, 0, struct.pack(">HI", 5, 0))],
    "frames too large": [raw_frame(4, 0, 0, struct.pack(">HI", 5, 2**32 - 1))],
    "no streams": [raw_frame(4, 0, 0, struct.pack(">HI", 3, 0))],
    "huge table": [raw_frame(4, 0, 0, struct.pack(">HI", 1, 2**32 - 1))],
    "no header list": [raw_frame(4, 0, 0, struct.pack(">HI", 6, 0))],
    "unknown setting": [raw_frame(4, 0, 0, struct.pack(">HI", 0xFFFF, 7))],
    "window to and fro": [raw_frame(1, 4, 1, b"\x82\x86\x84")]
    + [raw_frame(4, 0, 0, struct.pack(">HI", 4, value)) for value in (0, MOST, 0, 1, 65535)],
    "no preface": [],
}
"""Frames that HTTP/2 forbids, or that nobody sends; after a preface, and beside good ones."""


@attack(PLAIN)
def illegal_frames(target: Target) -> Iterator[Observed]:
    """On a new connection, in the middle of requests, and behind those that are over."""
    seen = {}
    for name, frames in ILLEGAL_FRAMES.items():
        for when in ("first", "between", "behind"):
            with Http2(target) as http2:
                if when != "first":
                    http2.send(_ask(http2, target, 1), _open(http2, target, 3))
                if when == "behind":
                    http2.read(lambda: http2.is_over(1), seconds=1.0)
                http2.send(*frames)
                http2.send(_ask(http2, target, 101))
                http2.read(lambda: http2.is_over(101), seconds=0.1)
                seen[f"{name} {when}"] = [http2.status(101), http2.goaway]
    yield {"seen": seen}


@attack(PLAIN)
def traffic_after_goaway(target: Target) -> Iterator[Observed]:
    """A client that says that it leaves, and goes on."""
    with Http2(target) as http2:
        http2.send(_ask(http2, target, 1), _open(http2, target, 3))
        http2.send(GoAwayFrame(0, last_stream_id=0, error_code=0))
        pour(http2.sock, (_ask(http2, target, stream) for stream in range(5, 1000, 2)), seconds=1.0)
        read_to_end(http2.sock, seconds=0.5)
        yield {}


@attack(PLAIN)
def preface_in_pieces(target: Target) -> Iterator[Observed]:
    """Byte by byte is legal: it is answered."""
    with target.connect("h2") as sock, Http2(target) as encoder:
        words = PREFACE + raw_frame(4, 0, 0, b"") + _ask(encoder, target, 1)
        for byte in words:
            sock.sendall(bytes([byte]))
            time.sleep(0.002)  # So that each byte comes alone.
        encoder.sock.close()
        encoder.sock = sock
        assert encoder.read(lambda: encoder.is_over(1)), "no answer"
        assert encoder.status(1) == 200, encoder.answered
        yield {}


@attack(BOTH)
def windows_closed(target: Target) -> Iterator[Observed]:
    """Streams whose answers may not be sent, or a byte at a time."""
    with ExitStack() as stack:
        connections = [stack.enter_context(Http2(target, {4: window})) for window in (0, 1)]
        path = b"/metrics" if target.kind == "monitoring" else f"/{HEALTH}/Watch".encode()
        headers = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        for http2 in connections:
            for stream in range(1, 400, 2):
                if target.kind == "monitoring":
                    ask = http2.request(stream, path, method=b"GET")
                else:
                    ask = http2.request(stream, path, headers, body=b"\0\0\0\0\0")
                http2.send(ask)
        for _ in range(200):
            connections[1].send(raw_frame(8, 0, 1, struct.pack(">I", 1)))
        yield {}


@attack(BOTH)
def bodies_beyond_the_window(target: Target) -> Iterator[Observed]:
    """More DATA than the server allows, on a stream and on many."""
    with Http2(target) as http2:
        sent = 0
        for stream in range(1, 41, 2):
            http2.send(_open(http2, target, stream))
        for _ in range(20):
            frames = (raw_frame(0, 0, stream, bytes(16_384)) for stream in range(1, 41, 2))
            sent += pour(http2.sock, frames, seconds=1.0)
        read_to_end(http2.sock, seconds=0.5)
        yield {"sent": sent}
