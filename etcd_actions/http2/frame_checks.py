"""Assembles a server's frames from bytes, and checks them; violations raise ProtocolError."""

from __future__ import annotations

from etcd_actions.http2 import frames
from etcd_actions.http2.errors import ErrorCode, ProtocolError


class PartialFrame:
    """The bytes of a frame that is not complete."""

    def __init__(self) -> None:
        self.needed = frames.HEADER_LENGTH
        self._parts: list[bytes] = []
        self._size = 0

    def join(self, data: bytes) -> bytes | None:
        """The kept bytes and ``data``; None while they are fewer than ``needed``."""
        if not self._parts:
            return data
        self._parts.append(data)
        self._size += len(data)
        if self._size < self.needed:
            return None
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def keep(self, data: bytes, start: int) -> None:
        """Keep the bytes from ``start`` on."""
        if start < len(data):
            self._parts.append(data[start:])
            self._size = len(data) - start


def check_first(data: bytes, kind: int, flags: int) -> None:
    """Check that the server's first frame is its settings (RFC 9113, section 3.4)."""
    if kind == frames.SETTINGS and not flags & frames.ACK:
        return
    if data.startswith(b"HTTP/1"):
        raise ProtocolError("the server speaks HTTP/1.1 only", ErrorCode.HTTP_1_1_REQUIRED)
    raise ProtocolError("the server's first bytes are not HTTP/2")


def without_padding(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """The offsets of a padded frame's data."""
    if start >= stop:
        raise ProtocolError("a padded frame is empty", ErrorCode.FRAME_SIZE_ERROR)
    unpadded = stop - data[start]
    if unpadded < start + 1:
        raise ProtocolError("more padding than the frame has bytes")
    return start + 1, unpadded


def check_size(what: str, payload: bytes, size: int) -> None:
    """Check the length of a frame's payload."""
    if len(payload) != size:
        raise ProtocolError(
            f"a {what} frame of {len(payload)} bytes, not {size}", ErrorCode.FRAME_SIZE_ERROR
        )


def check_connection(what: str, number: int) -> None:
    """Check that a frame is not on a stream."""
    if number:
        raise ProtocolError(f"{what} on a stream")
