"""Attacks with HTTP/1.1: what is no request, requests that smuggle, floods of pipelined ones."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Final

from tests.support.hostile_registry import PLAIN, Observed, attack
from tests.support.hostile_wire import PREFACE, Target, pour, raw_frame, read_to_end

_HOST: Final = b"host: 127.0.0.1\r\n"
_CHUNKED: Final = b"POST / HTTP/1.1\r\n" + _HOST + b"transfer-encoding: chunked\r\n\r\n"


def _line(line: bytes, headers: bytes = _HOST, body: bytes = b"") -> bytes:
    return line + b"\r\n" + headers + b"\r\n" + body


ILLEGAL: Final[Mapping[str, bytes]] = {
    "no host": _line(b"GET /healthz HTTP/1.1", b""),
    "two hosts": _line(b"GET /healthz HTTP/1.1", _HOST * 2),
    "host of another": _line(b"GET /healthz HTTP/1.1", b"host: evil.example\r\n"),
    "host with bytes": _line(b"GET /healthz HTTP/1.1", b"host: \xff\xfe\r\n"),
    "empty host": _line(b"GET /healthz HTTP/1.1", b"host:\r\n"),
    "version 9.9": _line(b"GET / HTTP/9.9"),
    "version 0.9": b"GET /\r\n",
    "version 2.0": _line(b"GET / HTTP/2.0"),
    "no version": _line(b"GET /healthz"),
    "only spaces": b"   \r\n\r\n",
    "bytes in the path": _line(b"GET /\xff\xfe\x80 HTTP/1.1"),
    "escaped bytes in the path": _line(b"GET /%ff%fe%00%0d%0a HTTP/1.1"),
    "broken escapes": _line(b"GET /%%%zz%2 HTTP/1.1"),
    "NUL in the path": _line(b"GET /a\0b HTTP/1.1"),
    "bytes in the query": _line(b"GET /x?\xff=\xfe HTTP/1.1"),
    "bytes in the method": _line(b"\xff\xfe / HTTP/1.1"),
    "NUL in the method": _line(b"G\0T / HTTP/1.1"),
    "odd method": _line(b"!#$%&'*+-.^_`|~ /healthz HTTP/1.1"),
    "long method": _line(b"M" * 9000 + b" / HTTP/1.1"),
    "whole address": _line(b"GET http://127.0.0.1/healthz HTTP/1.1"),
    "address of another": _line(b"GET http://evil.example/healthz HTTP/1.1"),
    "CONNECT": _line(b"CONNECT evil.example:443 HTTP/1.1"),
    "asterisk": _line(b"OPTIONS * HTTP/1.1"),
    "dots": _line(b"GET /../../../etc/passwd HTTP/1.1"),
    "folded header": _line(b"GET /healthz HTTP/1.1", _HOST + b"x: a\r\n b\r\n"),
    "space before the colon": _line(b"GET /healthz HTTP/1.1", _HOST + b"x : a\r\n"),
    "no colon": _line(b"GET /healthz HTTP/1.1", _HOST + b"nothing\r\n"),
    "NUL in a name": _line(b"GET /healthz HTTP/1.1", _HOST + b"x\0y: a\r\n"),
    "NUL in a value": _line(b"GET /healthz HTTP/1.1", _HOST + b"x: a\0b\r\n"),
    "CR in a value": _line(b"GET /healthz HTTP/1.1", _HOST + b"x: a\rb: c\r\n"),
    "bytes in a value": _line(b"GET /healthz HTTP/1.1", _HOST + b"x: \xff\xfe\r\n"),
    "empty name": _line(b"GET /healthz HTTP/1.1", _HOST + b": a\r\n"),
    "long line": _line(b"GET /" + b"a" * 500_000 + b" HTTP/1.1"),
    "long header": _line(b"GET /healthz HTTP/1.1", _HOST + b"x: " + b"a" * 500_000 + b"\r\n"),
    "many headers": _line(b"GET /healthz HTTP/1.1", _HOST + b"x: a\r\n" * 20_000),
    "bad chunk size": _CHUNKED + b"xyz\r\n",
    "negative chunk size": _CHUNKED + b"-5\r\nabcde\r\n0\r\n\r\n",
    "huge chunk size": _CHUNKED + b"f" * 400 + b"\r\n",
    "chunk size of 16 digits": _CHUNKED + b"ffffffffffffffff\r\nabc",
    "chunk without an end": _CHUNKED + b"3\r\nabcde\r\n0\r\n\r\n",
    "chunk extensions": _CHUNKED + b"1;" + b"a=b;" * 20_000 + b"\r\na\r\n0\r\n\r\n",
    "trailers": _CHUNKED + b"0\r\nhost: evil\r\ncontent-length: 5\r\n\r\n",
    "many trailers": _CHUNKED + b"0\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    "bad trailers": _CHUNKED + b"0\r\n\xff\xff\xff\r\n\r\n",
    "many empty chunks": _CHUNKED + b"1\r\na\r\n" * 5000 + b"0\r\n\r\n",
    "length and chunks": _line(
        b"POST / HTTP/1.1",
        _HOST + b"content-length: 6\r\ntransfer-encoding: chunked\r\n",
        b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
    ),
    "two lengths": _line(
        b"POST / HTTP/1.1", _HOST + b"content-length: 1\r\ncontent-length: 2\r\n", b"ab"
    ),
    "a list of lengths": _line(b"POST / HTTP/1.1", _HOST + b"content-length: 1, 1\r\n", b"ab"),
    "negative length": _line(b"POST / HTTP/1.1", _HOST + b"content-length: -1\r\n"),
    "signed length": _line(b"POST / HTTP/1.1", _HOST + b"content-length: +1\r\n", b"a"),
    "length of 5,000 digits": _line(
        b"POST / HTTP/1.1", _HOST + b"content-length: " + b"9" * 5000 + b"\r\n"
    ),
    "length in other digits": _line(
        b"POST / HTTP/1.1", _HOST + b"content-length: \xd9\xa1\r\n", b"a"
    ),
    "unknown transfer encoding": _line(b"POST / HTTP/1.1", _HOST + b"transfer-encoding: gzip\r\n"),
    "two transfer encodings": _line(
        b"POST / HTTP/1.1", _HOST + b"transfer-encoding: chunked, identity\r\n"
    ),
    "unknown expectation": _line(b"POST / HTTP/1.1", _HOST + b"expect: the unexpected\r\n"),
    "upgrade to websocket": _line(
        b"GET /healthz HTTP/1.1",
        _HOST + b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    ),
    "bad upgrade to websocket": _line(
        b"GET /healthz HTTP/1.1",
        _HOST + b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: \xff\r\n",
    ),
    "upgrade to nothing": _line(b"GET / HTTP/1.1", _HOST + b"upgrade: \r\nconnection: upgrade\r\n"),
    "half a preface and a request": PREFACE[:18] + b"GET / HTTP/1.1\r\n\r\n",
    "preface with a body": b"PRI * HTTP/2.0\r\ncontent-length: 5\r\n\r\nSM\r\n\r\n",
    "preface after a request": _line(b"GET /healthz HTTP/1.1") + PREFACE,
}
"""Whole things that are no good request; each is answered, or its connection closed."""

_SETTINGS: Final = raw_frame(4, 0, 0, b"")
_GOOD_SETTINGS: Final = base64.urlsafe_b64encode(b"\0\3\0\0\0\x64").rstrip(b"=")
H2C_SETTINGS: Final[Mapping[str, bytes]] = {
    "good": b"http2-settings: " + _GOOD_SETTINGS + b"\r\n",
    "none": b"",
    "empty": b"http2-settings: \r\n",
    "no base64": b"http2-settings: !!!!\r\n",
    "one letter": b"http2-settings: A\r\n",
    "bytes": b"http2-settings: \xff\xff\r\n",
    "odd length": b"http2-settings: AAMA\r\n",
    "forbidden value": b"http2-settings: "
    + base64.urlsafe_b64encode(b"\0\2\0\0\0\x09\0\4\xff\xff\xff\xff")
    + b"\r\n",
    "twice": (b"http2-settings: " + _GOOD_SETTINGS + b"\r\n") * 2,
    "many": b"http2-settings: " + base64.urlsafe_b64encode(b"\0\3\0\0\0\x64" * 900) + b"\r\n",
}


def upgrade(settings: bytes, path: bytes = b"/healthz", method: bytes = b"GET") -> bytes:
    """A request for h2c with some settings."""
    headers = _HOST + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\n" + settings
    return _line(method + b" " + path + b" HTTP/1.1", headers)


@attack(PLAIN)
def illegal_requests(target: Target) -> Iterator[Observed]:
    """Each on a connection of its own."""
    seen = {}
    open_still = []
    for name, request in ILLEGAL.items():
        with target.connect("http/1.1") as sock:
            pour(sock, [request])
            if not target.tls:
                try:
                    sock.shutdown(1)
                except OSError:
                    continue
            got, ended = read_to_end(sock, seconds=0.3 if target.tls else 3.0)
            if not ended and not target.tls:
                open_still.append(name)
            seen[name] = got[9:12].decode(errors="replace")
    errors = [name for name, status in seen.items() if status.startswith("5")]
    assert not open_still, f"neither answered nor closed: {open_still}"
    assert not [name for name in errors if seen[name] not in ("501", "505")], {
        name: seen[name] for name in errors
    }
    yield {"seen": seen}


@attack(PLAIN)
def h2c_upgrades(target: Target) -> Iterator[Observed]:
    """Good and bad ones, and what follows them."""
    seen = {}
    for name, settings in H2C_SETTINGS.items():
        for method, path in ((b"GET", target.good_path), (b"POST", b"/nowhere"), (b"GET", b"/%ff")):
            with target.connect("http/1.1") as sock:
                frames = [PREFACE, _SETTINGS, raw_frame(0, 1, 1, b"late"), raw_frame(6, 0, 0, b"")]
                pour(sock, [upgrade(settings, path, method), *frames])
                got, _ = read_to_end(sock, seconds=0.2)
                seen[f"{name} {method.decode()}"] = got[9:12].decode(errors="replace")
    yield {"seen": seen}


@attack(PLAIN)
def pipelined(target: Target) -> Iterator[Observed]:
    """Hundreds of requests in one write, the last of them broken."""
    one = b"GET /healthz HTTP/1.1\r\n" + _HOST + b"\r\n"
    with target.connect("http/1.1") as sock:
        pour(sock, [one * 300 + b"\0\0\0"])
        got, _ = read_to_end(sock, seconds=3.0)
        assert got.startswith(b"HTTP/1.1 "), got[:100]
        yield {"answers": got.count(b"HTTP/1.1 ")}


@attack(PLAIN)
def smuggled(target: Target) -> Iterator[Observed]:
    """A request hidden in a body is never answered as one of its own."""
    hidden = b"GET /healthz HTTP/1.1\r\n" + _HOST + b"\r\n"
    shapes = {
        "both": b"content-length: %d\r\ntransfer-encoding: chunked\r\n" % (5 + len(hidden)),
        "space": b"content-length: %d\r\ntransfer-encoding : chunked\r\n" % (5 + len(hidden)),
        "tab": b"content-length: %d\r\ntransfer-encoding:\tchunked\r\n" % (5 + len(hidden)),
        "vertical tab": b"content-length: %d\r\ntransfer-encoding: \x0bchunked\r\n"
        % (5 + len(hidden)),
        "twice": b"content-length: 5\r\ncontent-length: %d\r\n" % (5 + len(hidden)),
        "quoted": b'content-length: %d\r\ntransfer-encoding: "chunked"\r\n' % (5 + len(hidden)),
    }
    answers = {}
    for name, headers in shapes.items():
        with target.connect("http/1.1") as sock:
            start = b"POST /nowhere HTTP/1.1\r\n" + _HOST + headers + b"\r\n"
            pour(sock, [start + b"0\r\n\r\n" + hidden])
            got, _ = read_to_end(sock, seconds=0.5)
            answers[name] = got.count(b"HTTP/1.1 ")
    assert all(count <= 1 for count in answers.values()), answers
    yield {"answers": answers}
