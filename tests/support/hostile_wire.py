"""What hostile clients speak with: bare sockets, and frames of HTTP/2 one by one."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final

import hpack
from hyperframe.frame import Frame, RstStreamFrame, SettingsFrame

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVICE: Final = "flyteidl2.actions.ActionsService"
HEALTH: Final = "grpc.health.v1.Health"
REFLECTION: Final = "grpc.reflection.v1.ServerReflection"

Headers = Sequence[tuple[bytes, bytes]]

ATTACKER: Final = "127.0.0.2"
"""Where attacks come from; the witnesses come from 127.0.0.1."""


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        port: Of 127.0.0.1.
        kind: ``service`` or ``monitoring``.
        tls: Whether it encrypts; then :meth:`connect` makes the handshake.
        source: The address that the attack comes from; empty lets the system choose.
    """

    port: int
    kind: str = "service"
    tls: bool = False
    source: str = ATTACKER

    def dial(self, timeout: float = 5.0) -> socket.socket:
        """A bare connection, also where the target encrypts."""
        source = (self.source, 0) if self.source else None
        made = socket.create_connection(("127.0.0.1", self.port), timeout, source)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def connect(self, *protocols: str) -> socket.socket:
        """A connection to speak HTTP on; asks for ``protocols`` where the target encrypts."""
        made = self.dial()
        return tls_context(*protocols).wrap_socket(made) if self.tls else made

    def from_address(self, source: str) -> Target:
        """The same, attacked from another address."""
        return replace(self, source=source)

    @property
    def good_path(self) -> bytes:
        """A path that answers shortly."""
        return b"/healthz" if self.kind == "monitoring" else f"/{HEALTH}/Check".encode()


def tls_context(*protocols: str) -> ssl.SSLContext:
    """Of a client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def pour(sock: socket.socket, chunks: Iterable[bytes], *, seconds: float = 3.0) -> int:
    """Send chunk after chunk until the peer is gone, takes no more, or time is up.

    Returns the number of chunks that were taken. A peer that stops to read is left after a
    second.
    """
    sent = 0
    give_up = time.monotonic() + seconds
    sock.settimeout(1.0)
    for chunk in chunks:
        try:
            sock.sendall(chunk)
        except OSError:
            break
        sent += 1
        if time.monotonic() > give_up:
            break
    return sent


def read_to_end(sock: socket.socket, *, seconds: float = 5.0) -> tuple[bytes, bool]:
    """All that comes, and whether the peer ended it: False where time was up first."""
    got = bytearray()
    give_up = time.monotonic() + seconds
    while (left := give_up - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            data = sock.recv(65536)
        except TimeoutError:
            break
        except OSError:
            return bytes(got), True
        if not data:
            return bytes(got), True
        got += data
    return bytes(got), False


def reset(sock: socket.socket) -> None:
    """Close with a RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def is_gone(sock: socket.socket) -> bool:
    """Whether the peer has ended the connection; takes what has come."""
    sock.setblocking(False)
    try:
        while data := sock.recv(65536):
            del data
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    return True


def wait_gone(socks: Iterable[socket.socket], *, seconds: float) -> int:
    """How many connections the peer has not ended when time is up."""
    left = list(socks)
    give_up = time.monotonic() + seconds
    while left := [sock for sock in left if not is_gone(sock)]:
        if time.monotonic() > give_up:
            break
        time.sleep(0.05)
    return len(left)


class Http2(AbstractContextManager["Http2"]):
    """A connection of HTTP/2 on which anything can be sent; nothing is checked.

    Attributes:
        sock: The socket.
        answered: The headers of responses, by stream.
        ended: Streams whose end has come.
        resets: Streams that were reset, with their error codes.
        goaway: The error code of a GOAWAY; None for none.
        data: The bytes of responses, by stream.
    """

    def __init__(self, target: Target, settings: dict[int, int] | None = None) -> None:
        self.sock = target.connect("h2")
        self.answered: dict[int, list[tuple[bytes, bytes]]] = {}
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: int | None = None
        self.gone = False
        self._sends = True
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder(max_header_list_size=1 << 24)
        # Some attacks allow the server any table.
        self._decoder.max_allowed_table_size = 2**32
        self._received = bytearray()
        self._authority = f"127.0.0.1:{target.port}".encode()
        self.send(PREFACE, SettingsFrame(0, settings=settings or {}))

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def end(self) -> None:
        """Send no more; what the server sends can still be read."""
        self._sends = False
        self.sock.shutdown(socket.SHUT_WR)

    def send(self, *frames: Frame | bytes) -> bool:
        """Send frames; returns whether they were taken."""
        if not self._sends:
            return False
        data = b"".join(
            each if isinstance(each, bytes) else bytes(each.serialize()) for each in frames
        )
        self.sock.settimeout(2.0)
        try:
            self.sock.sendall(data)
        except OSError:
            self.gone = True
        return not self.gone

    def encode(self, headers: Headers) -> bytes:
        """Headers as they are sent."""
        return bytes(self._encoder.encode(list(headers)))

    def pseudo(self, path: bytes, method: bytes = b"POST") -> list[tuple[bytes, bytes]]:
        """The headers that each request begins with."""
        return [
            (b":method", method),
            (b":scheme", b"http"),
            (b":authority", self._authority),
            (b":path", path),
        ]

    def request(
        self,
        stream: int,
        path: bytes | str,
        headers: Headers = (),
        *,
        body: bytes | None = None,
        ends: bool = True,
        method: bytes = b"POST",
    ) -> bytes:
        """The frames of a request; ``body=None`` sends no DATA."""
        path = path.encode() if isinstance(path, str) else path
        head = self.encode([*self.pseudo(path, method), *headers])
        frames = [(1, 4, head)]
        if body is not None:
            frames += [(0, 0, body[at : at + 16384]) for at in range(0, len(body) or 1, 16384)]
        if ends:
            kind, flags, payload = frames[-1]
            frames[-1] = (kind, flags | 1, payload)
        return b"".join(raw_frame(kind, flags, stream, data) for kind, flags, data in frames)

    def grpc(
        self, stream: int, path: str, body: bytes | None = b"\0\0\0\0\0", *, ends: bool = True
    ) -> bytes:
        """The frames of a gRPC request."""
        headers = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        return self.request(stream, path, headers, body=body, ends=ends)

    def read(self, until: Callable[[], bool], *, seconds: float = 5.0) -> bool:
        """Take what comes until it is enough; returns whether that was so in time."""
        give_up = time.monotonic() + seconds
        while not until():
            left = give_up - time.monotonic()
            if left <= 0 or self.gone:
                return until()
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                return until()
            except OSError:
                data = b""
            if not data:
                self.gone = True
            self._received += data
            self._take()
        return True

    def _take(self) -> None:
        while len(self._received) >= 9:
            frame, size = Frame.parse_frame_header(memoryview(bytes(self._received[:9])))
            if len(self._received) < 9 + size:
                return
            frame.parse_body(memoryview(bytes(self._received[9 : 9 + size])))
            del self._received[: 9 + size]
            self._note(frame)

    def _note(self, frame: Any) -> None:
        name = type(frame).__name__
        if name == "HeadersFrame":
            self.answered.setdefault(frame.stream_id, []).extend(self._decode(frame.data))
        elif name == "DataFrame":
            self.data[frame.stream_id] = self.data.get(frame.stream_id, b"") + frame.data
        elif isinstance(frame, RstStreamFrame):
            self.resets[frame.stream_id] = frame.error_code
        elif name == "GoAwayFrame":
            self.goaway = frame.error_code
        elif name == "SettingsFrame" and "ACK" not in frame.flags:
            self.send(SettingsFrame(0, flags=["ACK"]))
        if "END_STREAM" in frame.flags:
            self.ended.add(frame.stream_id)

    def _decode(self, data: bytes) -> list[tuple[bytes, bytes]]:
        return [(bytes(name), bytes(value)) for name, value in self._decoder.decode(data, raw=True)]

    def is_over(self, stream: int) -> bool:
        """Whether nothing more comes on a stream."""
        return stream in self.ended or stream in self.resets or self.gone

    def status(self, stream: int) -> int:
        """Of the response on a stream; 0 for none."""
        return int(dict(self.answered.get(stream, ())).get(b":status", 0))

    def grpc_status(self, stream: int) -> int | None:
        """Of a gRPC response; None for none."""
        status = dict(self.answered.get(stream, ())).get(b"grpc-status")
        return None if status is None else int(status)


def raw_frame(
    kind: int, flags: int, stream: int, payload: bytes, length: int | None = None
) -> bytes:
    """Any frame, with a length of its own where that is wanted."""
    size = len(payload) if length is None else length
    return (
        struct.pack(">I", size & 0xFFFFFF)[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream & 0xFFFFFFFF)
        + payload
    )
