"""gRPC's part of a stream: messages in DATA frames, the status in the trailers.

The rules are those of gRPC's PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import math
import struct
from typing import Final
from urllib.parse import unquote_to_bytes

from etcd_actions.http2.errors import CallFailed, Code
from etcd_actions.http2.stream import Stream

PREFIX: Final = struct.Struct(">BI")
"""Whether the message is compressed, and its length."""

_TIMEOUT: Final = b"\x10\x0cgrpc-timeout"
_LONGEST_DETAILS: Final = 4_000
_TAKEN_AT_ONCE: Final = 1024 * 1024
"""Bytes of messages that are returned together, so that other tasks run in between."""

_BY_HTTP_STATUS: Final = {
    "400": Code.INTERNAL,
    "401": Code.UNAUTHENTICATED,
    "403": Code.PERMISSION_DENIED,
    "404": Code.UNIMPLEMENTED,
    "429": Code.UNAVAILABLE,
    "502": Code.UNAVAILABLE,
    "503": Code.UNAVAILABLE,
    "504": Code.UNAVAILABLE,
}
"""For an answer that is not gRPC's (http-grpc-status-mapping.md); all others are UNKNOWN."""


def framed(message: bytes) -> bytes:
    """A message as it is sent."""
    return PREFIX.pack(0, len(message)) + message


def timeout_field(seconds: float) -> bytes:
    """The header ``grpc-timeout``: at most eight digits and a unit, never less than it is."""
    milliseconds = max(1, math.ceil(seconds * 1000))
    if milliseconds < 100_000_000:
        text = b"%dm" % milliseconds
    else:
        text = b"%dS" % min(99_999_999, math.ceil(seconds))
    return _TIMEOUT + bytes((len(text),)) + text


def answer(stream: Stream) -> bytes:
    """The one message of a unary call whose stream has ended.

    Raises:
        CallFailed: There is none.
    """
    check_status(stream)
    chunks = stream.chunks
    if chunks and len(chunks[0]) < PREFIX.size:
        chunks = [b"".join(chunks)]
    if not chunks or stream.size < PREFIX.size:
        raise CallFailed(Code.INTERNAL, "the server answered OK without a message", answered=True)
    compressed, size = PREFIX.unpack_from(chunks[0])
    _check_prefix(stream, compressed, size)
    if stream.size != PREFIX.size + size:
        raise CallFailed(
            Code.INTERNAL,
            f"the server sent {stream.size - PREFIX.size} bytes for one message of {size}",
            answered=True,
        )
    # A large message is copied once.
    return b"".join((chunks[0][PREFIX.size :], *chunks[1:]))


def check_status(stream: Stream) -> None:
    """Raise CallFailed unless the server ended a stream with status OK."""
    if stream.failure is not None:
        raise stream.failure
    headers, trailers = stream.headers, stream.trailers
    assert headers is not None
    text = None if trailers is None else trailers.get("grpc-status")
    if text == "0":
        check_headers(stream)
        return
    if text is None:
        check_headers(stream)
        raise CallFailed(Code.INTERNAL, "the server ended the stream without a status")
    assert trailers is not None
    details = unquote_to_bytes(trailers.get("grpc-message", "")).decode(errors="replace")
    try:
        code = Code(int(text))
    except ValueError:
        code = Code.UNKNOWN
        details = f"unknown status {text[:20]!r}: {details}"
    raise CallFailed(code, details[:_LONGEST_DETAILS], answered=True)


def check_headers(stream: Stream) -> None:
    """Raise CallFailed if an answer is not gRPC's: a proxy or another server sent it."""
    headers = stream.headers
    assert headers is not None
    status = headers.get(":status", "")
    if status != "200":
        raise CallFailed(
            _BY_HTTP_STATUS.get(status, Code.UNKNOWN),
            f"the answer is HTTP status {status[:20]!r}, not gRPC's",
        )
    if not headers.get("content-type", "").startswith("application/grpc"):
        kind = headers.get("content-type", "nothing")[:100]
        raise CallFailed(Code.UNKNOWN, f"the answer's content-type is {kind!r}, not gRPC's")


class MessageReader:
    """Splits the data of a stream into messages."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._needed = PREFIX.size
        self._ahead = 0
        self._checked = False

    def take(self) -> tuple[list[bytes], int]:
        """Return complete messages, perhaps none, and how many more bytes the server may send.

        The bytes of a message that is not complete count, too: one that is larger than the
        window could not arrive otherwise.

        Raises:
            CallFailed: The data is not a message that is accepted.
        """
        stream = self._stream
        end = stream.size
        if end < self._needed:
            consumed, self._ahead = end - self._ahead, end
            return [], consumed
        if not self._checked:
            check_headers(stream)
            self._checked = True
        data = stream.chunks[0] if len(stream.chunks) == 1 else b"".join(stream.chunks)
        messages: list[bytes] = []
        offset = ahead = 0
        self._needed = PREFIX.size
        while offset < _TAKEN_AT_ONCE:
            if end - offset < PREFIX.size:
                ahead = end - offset
                break
            compressed, size = PREFIX.unpack_from(data, offset)
            _check_prefix(stream, compressed, size)
            start = offset + PREFIX.size
            if start + size > end:
                self._needed = PREFIX.size + size
                ahead = end - offset
                break
            messages.append(data[start : start + size])
            offset = start + size
        stream.chunks = [data[offset:]] if offset < end else []
        stream.size = end - offset
        consumed, self._ahead = offset + ahead - self._ahead, ahead
        return messages, consumed


def _check_prefix(stream: Stream, compressed: int, size: int) -> None:
    if compressed:
        assert stream.headers is not None
        encoding = stream.headers.get("grpc-encoding", "unknown")[:50]
        raise CallFailed(
            Code.INTERNAL,
            f"the server sent a compressed message ({encoding}), which was not requested",
        )
    if size > stream.largest:
        raise CallFailed(
            Code.RESOURCE_EXHAUSTED,
            f"a message of {size} bytes, above the largest that is accepted, {stream.largest}",
        )
