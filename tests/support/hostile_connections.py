"""Attacks with connections: too many, too slow, half closed, reset, and no TLS where it is."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.support.hostile_registry import BOTH, PLAIN, Observed, attack
from tests.support.hostile_wire import (
    HEALTH,
    PREFACE,
    Http2,
    Target,
    is_gone,
    pour,
    raw_frame,
    read_to_end,
    reset,
    tls_context,
    wait_gone,
)

IDLE = 400
HEADER_TIMEOUT = 20.0
"""Generous: a listener gives a header about ten seconds."""

_CLIENT_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(505)


def _get(target: Target, *more: bytes) -> bytes:
    """A request that answers shortly."""
    lines = [b"host: 127.0.0.1:%d" % target.port, *more]
    if target.kind == "monitoring":
        return b"GET /healthz HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
    lines += [b"content-type: application/json", b"content-length: 2"]
    head = f"POST /{HEALTH}/Check HTTP/1.1\r\n".encode()
    return head + b"\r\n".join(lines) + b"\r\n\r\n{}"


def _try_dial(target: Target, count: int) -> list[socket.socket]:
    """As many connections as can be had."""
    made = []
    for _ in range(count):
        try:
            made.append(target.dial(1.0))
        except OSError:
            break
    return made


@contextmanager
def _held(socks: list[socket.socket]) -> Iterator[list[socket.socket]]:
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


@attack(BOTH)
def idle(target: Target) -> Iterator[Observed]:
    """More connections from one address than the process has descriptors; none says a word."""
    with _held(_try_dial(target, IDLE)) as socks:
        yield {"made": len(socks)}


@attack(BOTH)
def idle_from_many_addresses(target: Target) -> Iterator[Observed]:
    """The same from fifty addresses, eight each: no bound per address helps."""
    socks = []
    for number in range(50):
        socks += _try_dial(target.from_address(f"127.0.9.{number + 1}"), IDLE // 50)
    with _held(socks):
        yield {"made": len(socks)}


@attack(BOTH)
def idle_after_a_request(target: Target) -> Iterator[Observed]:
    """Connections that were used once and are kept."""
    socks = _try_dial(target, IDLE)
    if target.tls:
        for number, sock in enumerate(socks):
            try:
                socks[number] = tls_context("http/1.1").wrap_socket(sock)
            except OSError:
                # Another one has taken its place.
                continue
    answered = 0
    with _held(socks):
        for sock in socks:
            try:
                sock.sendall(_get(target))
            except OSError:
                continue
        for sock in socks:
            try:
                sock.settimeout(3.0)
                answered += sock.recv(65536).startswith(b"HTTP/1.1 ")
            except OSError:
                continue
        assert answered, "nobody was answered"
        yield {"answered": answered}


@attack(BOTH)
def connect_and_reset(target: Target) -> Iterator[Observed]:
    """A flood of connections that are reset at once, some in the middle of a request."""
    words = itertools.cycle([b"", b"GET / HT", _get(target), PREFACE])
    made = 0
    give_up = time.monotonic() + 3.0
    while made < 2000 and time.monotonic() < give_up:
        try:
            sock = target.dial(1.0)
        except OSError:
            continue
        made += 1
        pour(sock, [next(words)])
        reset(sock)
    yield {"made": made}


@attack(BOTH)
def half_closed_while_idle(target: Target) -> Iterator[Observed]:
    """A FIN from a client that keeps its end: the server closes, too, at once."""
    socks = _try_dial(target, 40)
    with _held(socks):
        for sock in socks:
            sock.shutdown(socket.SHUT_WR)
        left = wait_gone(socks, seconds=5.0)
        assert not left, f"{left} of {len(socks)} connections are still open"
        yield {}


@attack(PLAIN)
def half_closed_after_a_request(target: Target) -> Iterator[Observed]:
    """A request with a FIN behind it is answered, in both protocols, whenever the FIN comes."""
    waits = (0, 0.0002, 0.0005, 0.001, 0.002, 0.01)
    lost = []
    for wait in waits * 3:
        with target.dial() as sock:
            sock.sendall(_get(target))
            time.sleep(wait)  # The moment that is tried.
            sock.shutdown(socket.SHUT_WR)
            got, ended = read_to_end(sock, seconds=3.0)
            if not (got.startswith(b"HTTP/1.1 200") and ended):
                lost.append(f"HTTP/1.1, FIN after {wait:g} s: {bytes(got[:100])!r}")
        with Http2(target) as http2:
            if target.kind == "monitoring":
                http2.send(http2.request(1, target.good_path, method=b"GET"))
            else:
                http2.send(http2.grpc(1, target.good_path.decode()))
            time.sleep(wait)  # The moment that is tried.
            http2.end()
            http2.read(lambda http2=http2: http2.is_over(1))  # type: ignore[misc]
            if http2.status(1) != 200 or 1 not in http2.ended:
                lost.append(f"HTTP/2, FIN after {wait:g} s: {http2.answered}")
    assert not lost, lost
    yield {}


@attack(BOTH)
def half_closed_in_the_middle(target: Target) -> Iterator[Observed]:
    """A FIN in the middle of a header, of a body, of a frame: the connection is over."""
    pieces = [
        b"GET / HTTP/1.1\r\nhost: ",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        PREFACE[:10],
        PREFACE,
        PREFACE + raw_frame(4, 0, 0, b"") + raw_frame(1, 4, 1, b"", length=50),
    ]
    socks = []
    for piece in pieces * 5:
        sock = target.dial()
        socks.append(sock)
        pour(sock, [piece])
        sock.shutdown(socket.SHUT_WR)
    with _held(socks):
        left = wait_gone(socks, seconds=5.0)
        assert not left, f"{left} of {len(socks)} connections are still open"
        yield {}


@attack(BOTH)
def slow(target: Target) -> Iterator[Observed]:
    """Headers that never end, at once or byte by byte: each is ended by the header time-out."""
    silent = {
        "nothing": b"",
        "half a line": b"GET /hea",
        "half a header": b"GET / HTTP/1.1\r\nhost: x\r\nx-y: ",
        "half a preface": PREFACE[:12],
        "no end of headers": PREFACE + raw_frame(4, 0, 0, b"") + raw_frame(1, 0, 1, b"\x82\x86"),
        "half a frame": PREFACE + raw_frame(4, 0, 0, b"") + b"\0\0\x50\1",
    }
    if target.tls:
        silent |= {"half a hello": _CLIENT_HELLO[:40], "half a record": b"\x16\x03\x01\xff\xff"}
    drip = b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x-slow: y\r\n" * 20
    socks: dict[str, socket.socket] = {}
    with ExitStack() as stack:
        for name, word in silent.items():
            socks[name] = stack.enter_context(target.dial())
            socks[name].sendall(word)
        socks["dripping"] = stack.enter_context(target.dial())
        give_up = time.monotonic() + HEADER_TIMEOUT
        for byte in drip:
            if time.monotonic() > give_up:
                break
            pour(socks["dripping"], [bytes([byte])])
            left = [name for name, sock in socks.items() if not is_gone(sock)]
            if not left:
                break
            time.sleep(0.25)  # The pace of the drip.
        left = [name for name, sock in socks.items() if not is_gone(sock)]
        assert not left, f"still open after {HEADER_TIMEOUT:g} s: {left}"
        yield {}


@attack(BOTH)
def slow_bodies(target: Target) -> Iterator[Observed]:
    """Requests whose body does not come."""
    path = target.good_path
    head = b"POST " + path + b" HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    bodies = [
        b"content-length: 1000\r\n\r\nab",
        b"content-length: 1000\r\nexpect: 100-continue\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n5\r\na",
        b"content-length: 99999999999999999999\r\n\r\n",
    ]
    with ExitStack() as stack:
        for body in bodies * 5:
            sock = stack.enter_context(target.connect("http/1.1"))
            pour(sock, [head + body])
        http2 = stack.enter_context(Http2(target))
        for stream in range(1, 100, 2):
            http2.send(http2.grpc(stream, path.decode(), body=b"\0\0\0\1", ends=False))
        yield {}


@attack(BOTH)
def never_reading(target: Target) -> Iterator[Observed]:
    """Clients that ask on and on, and take no answer: the TCP window closes."""
    taken = 0
    path = b"/metrics" if target.kind == "monitoring" else target.good_path
    with ExitStack() as stack:
        for _ in range(5):
            sock = stack.enter_context(target.connect("http/1.1"))
            ask = b"GET " + path + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
            taken += pour(sock, [ask * 20] * 500, seconds=0.5)
        for _ in range(5):
            # The windows of HTTP/2 stay open, TCP's does not.
            http2 = stack.enter_context(Http2(target, {4: 2**31 - 1}))
            http2.send(raw_frame(8, 0, 0, (2**31 - 1 - 65535).to_bytes(4, "big")))
            asks = (http2.request(stream, path, method=b"GET") for stream in range(1, 2001, 2))
            taken += pour(http2.sock, asks, seconds=0.5)
        yield {"taken": taken}


@attack(BOTH)
def no_http(target: Target) -> Iterator[Observed]:
    """What speaks another protocol: TLS, SSH, Redis, SMB, noise."""
    words = [
        _CLIENT_HELLO,
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"\0\0\0\x85\xffSMBr\0\0\0\0",
        b"\0" * 5000,
        b"\r\n" * 5000,
        b"\xff" * 70_000,
        os.urandom(20_000),
    ]
    with _held([target.dial() for _ in words]) as socks:
        for sock, word in zip(socks, words, strict=True):
            pour(sock, [word])
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                continue
        left = wait_gone(socks, seconds=5.0)
        assert not left, f"{left} of {len(socks)} connections are still open"
        yield {}


@attack(("tls",))
def tls_broken(target: Target) -> Iterator[Observed]:
    """Handshakes that fail, break off, or are followed by noise."""
    context = tls_context("h2")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    socks: list[socket.socket] = []
    with ExitStack() as stack:
        for _ in range(20):
            # Half a handshake: the hello alone.
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            half = context.wrap_bio(incoming, outgoing)
            try:
                half.do_handshake()
            except ssl.SSLWantReadError:
                sock = stack.enter_context(target.dial())
                sock.sendall(outgoing.read())
                reset(sock)
        for word in (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", PREFACE, b"\x16\x03\x01\0\5hello"):
            sock = stack.enter_context(target.dial())
            sock.sendall(word)
            socks.append(sock)
        for number in range(20):
            # A handshake, and then no TLS.
            bare = target.dial()
            dup = stack.enter_context(socket.socket(fileno=os.dup(bare.fileno())))
            done = stack.enter_context(context.wrap_socket(bare))
            dup.sendall(os.urandom(100 + number))
            del done
            socks.append(dup)
        for protocols in (("h2",), ("http/1.1",), ("spdy/1",), ()):
            sock = stack.enter_context(target.connect(*protocols))
            sock.sendall(os.urandom(500))
            socks.append(sock)
        left = wait_gone(socks, seconds=15.0)
        assert not left, f"{left} of {len(socks)} connections are still open"
        yield {}
