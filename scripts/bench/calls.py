"""Cheap unary gRPC calls: one HTTP/2 connection, one thread, no library.

grpcio costs the generator about as much for each call as etcd and a reader together; at
8,000 puts a second on two cores the generator would be measured. This sends only the bytes
that a gRPC server needs, over plain TCP on loopback, and decodes no answer: a call with an
answer was done.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_DEFAULT_WINDOW = 65_535
_DEFAULT_TABLE = 4_096
_LARGEST_WINDOW = 2**31 - 1
_LARGEST_FRAME = 16_384

_HEADER_TABLE_SIZE = 1

# :method POST and :scheme http of the static table, then the dynamic table that the first
# request has filled, oldest first.
_LATER_REQUEST = b"\x83\x86\xc1\xc0\xbf\xbe"


class ConnectionEnded(Exception):
    """The server ended the connection."""


class Calls:
    """Calls of one method, any number in flight; all in one thread."""

    def __init__(
        self, host: str, port: int, method: str, done: Callable[[int, bool], None]
    ) -> None:
        """Connect.

        Args:
            host: The server's.
            port: The server's.
            method: As ``/package.Service/Method``.
            done: Called with each call's start, by ``time.monotonic_ns()``, and success.
        """
        self._done = done
        self._socket = socket.create_connection((host, port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._names = f"{host}:{port}", method
        self._headers = b""
        self._later = _LATER_REQUEST
        self._stream = -1
        self._started: dict[int, int] = {}
        self._answered: set[int] = set()
        self._unsent: deque[tuple[int, memoryview]] = deque()
        self._received = bytearray()
        self._window = _DEFAULT_WINDOW
        self._initial_stream_window = _DEFAULT_WINDOW
        self._stream_window = 0
        self._socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_WINDOW_UPDATE, 0, 0, _int32(_LARGEST_WINDOW - _DEFAULT_WINDOW))
        )
        # The server's settings say whether it has a table for headers.
        while not self._headers:
            self.wait(10)

    @property
    def in_flight(self) -> int:
        """Calls without an answer."""
        return len(self._started)

    def send(self, message: bytes) -> None:
        """Start a call; :meth:`wait` sends the rest once the server has capacity."""
        self._stream += 2
        self._started[self._stream] = time.monotonic_ns()
        body = b"\0" + _int32(len(message)) + message
        head = _frame(_HEADERS, _END_HEADERS, self._stream, self._headers)
        self._headers = self._later
        if not self._unsent and len(body) <= min(
            self._window, self._initial_stream_window, _LARGEST_FRAME
        ):
            self._window -= len(body)
            self._socket.sendall(head + _frame(_DATA, _END_STREAM, self._stream, body))
            return
        self._socket.sendall(head)
        if not self._unsent:
            self._stream_window = self._initial_stream_window
        self._unsent.append((self._stream, memoryview(body)))
        self._send_unsent()

    def wait(self, seconds: float) -> None:
        """Take what arrives, waiting up to ``seconds`` for the first of it."""
        if not select.select((self._socket,), (), (), seconds)[0]:
            return
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionEnded("the server closed the connection")
        self._received += data
        self._take_frames()
        if self._unsent:
            self._send_unsent()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _take_frames(self) -> None:
        data, start = self._received, 0
        while len(data) - start >= 9:
            size = int.from_bytes(data[start : start + 3], "big")
            end = start + 9 + size
            if end > len(data):
                break
            kind, flags = data[start + 3], data[start + 4]
            stream = int.from_bytes(data[start + 5 : start + 9], "big")
            if kind == _DATA:
                self._answered.add(stream)
            elif kind == _HEADERS:
                if flags & _END_STREAM:
                    self._end(stream)
            elif kind == _RST_STREAM:
                self._end(stream)
            else:
                self._take_control(kind, flags, stream, bytes(data[start + 9 : end]))
            start = end
        del data[:start]

    def _take_control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._take_settings(payload)
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            raise ConnectionEnded(f"the server said goodbye: {payload[8:].decode()}")
        elif kind == _WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += increment
            elif self._unsent and stream == self._unsent[0][0]:
                self._stream_window += increment

    def _take_settings(self, payload: bytes) -> None:
        table = True
        for at in range(0, len(payload), 6):
            setting = int.from_bytes(payload[at : at + 2], "big")
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            if setting == _INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_stream_window
                self._initial_stream_window = value
            elif setting == _HEADER_TABLE_SIZE:
                table = value >= _DEFAULT_TABLE
        if not self._headers:
            self._headers = _first_request(*self._names, indexed=table)
            self._later = _LATER_REQUEST if table else self._headers

    def _end(self, stream: int) -> None:
        started = self._started.pop(stream, None)
        if started is not None:
            self._done(started, stream in self._answered)
            self._answered.discard(stream)

    def _send_unsent(self) -> None:
        """Send bodies in turn, as far as the windows of the connection and stream allow."""
        while self._unsent:
            stream, body = self._unsent[0]
            size = min(len(body), self._window, self._stream_window, _LARGEST_FRAME)
            if size <= 0:
                return
            last = size == len(body)
            self._socket.sendall(
                _frame(_DATA, _END_STREAM if last else 0, stream, bytes(body[:size]))
            )
            self._window -= size
            self._stream_window -= size
            if last:
                self._unsent.popleft()
                self._stream_window = self._initial_stream_window
            else:
                self._unsent[0] = (stream, body[size:])


def _first_request(authority: str, method: str, *, indexed: bool) -> bytes:
    """The headers of a request, as literals, which enter the dynamic table if ``indexed``."""
    # A literal with the name's index in the static table: of six bits, or of four.
    path, host, kind, new = (
        (b"\x44", b"\x41", b"\x5f", b"\x40")
        if indexed
        else (b"\x04", b"\x01", b"\x0f\x10", b"\x00")
    )
    return b"\x83\x86" + b"".join(
        (
            path + _text(method),
            host + _text(authority),
            kind + _text("application/grpc"),
            new + _text("te") + _text("trailers"),
        )
    )


def _text(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + _int32(stream) + payload


def _int32(number: int) -> bytes:
    return number.to_bytes(4, "big")
