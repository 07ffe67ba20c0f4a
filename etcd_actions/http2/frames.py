"""The frames of HTTP/2 (RFC 9113, section 6), and those that a client sends."""

from __future__ import annotations

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5

HEADER_LENGTH: Final = 9
LEAST_MAX_FRAME_SIZE: Final = 0x4000
LARGEST_MAX_FRAME_SIZE: Final = 0xFFFFFF
FIRST_WINDOW: Final = 0xFFFF
"""Bytes of a window, the connection's and a stream's, before any settings."""
LARGEST_WINDOW: Final = 0x7FFFFFFF
LAST_STREAM: Final = 0x7FFFFFFF

HEADER: Final = struct.Struct(">IBI")
"""Length (24 bits) and type in one integer, flags, stream."""
NUMBER: Final = struct.Struct(">I")
SETTING: Final = struct.Struct(">HI")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*each) for each in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    """Let the peer send so many bytes more; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, NUMBER.pack(increment))


def rst_stream(stream: int, code: int) -> bytes:
    """End a stream at once."""
    return frame(RST_STREAM, 0, stream, NUMBER.pack(code))


def goaway(code: int, debug: bytes) -> bytes:
    """Announce the end of the connection. The server opens no streams, so the last one is 0."""
    return frame(GOAWAY, 0, 0, NUMBER.pack(0) + NUMBER.pack(code) + debug)
