"""Encodes headers for HTTP/2 (RFC 7541) without a dynamic table.

Answers have few different headers. Without a table of what was sent before, equal headers have
equal bytes on every connection, so they are made once; the bytes are some more than with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

# A field whose name and value are written out, and enter no table.
_LITERAL: Final = b"\0"
_NO_TABLE: Final = b"\x20"
_STATUS_OK: Final = (b":status", b"200")
_INDEXED_OK: Final = b"\x88"
_MOST: Final = 1024
_LONGEST: Final = 256


class PlainEncoder:
    """The encoder of one connection, in the place of hpack's."""

    def __init__(self) -> None:
        # The other side has to be told that its table stays empty, after each change of the most.
        self._announces = True
        self._table_size = 4096

    @property
    def header_table_size(self) -> int:
        """The most that the other side's table may have."""
        return self._table_size

    @header_table_size.setter
    def header_table_size(self, size: int) -> None:
        self._table_size = size
        self._announces = True

    def encode(self, headers: Iterable[tuple[bytes, bytes]], huffman: bool = True) -> bytes:
        """The bytes of a block of headers."""
        block = b"".join([_field(name, value) for name, value in headers])
        if self._announces:
            self._announces = False
            return _NO_TABLE + block
        return block


def _field(name: bytes, value: bytes) -> bytes:
    if len(value) > _LONGEST:
        return _written_out(name, value)
    return _remembered(name, value)


@lru_cache(_MOST)
def _remembered(name: bytes, value: bytes) -> bytes:
    return _INDEXED_OK if (name, value) == _STATUS_OK else _written_out(name, value)


def _written_out(name: bytes, value: bytes) -> bytes:
    return b"".join((_LITERAL, _length(len(name)), name, _length(len(value)), value))


def _length(number: int) -> bytes:
    """An integer with a prefix of seven bits (RFC 7541, 5.1), for a text that is not compressed."""
    if number < 127:
        return bytes((number,))
    written = bytearray((127,))
    number -= 127
    while number >= 128:
        written.append(128 | number & 127)
        number >>= 7
    written.append(number)
    return bytes(written)
