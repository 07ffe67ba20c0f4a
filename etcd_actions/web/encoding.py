"""Encodes headers for HTTP/2 (RFC 7541) without a dynamic table.

Responses have few different headers. Without a table, equal headers have equal bytes on every
connection, so each is encoded once and cached. They are some bytes longer than with a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

# A literal field that enters no table.
_LITERAL: Final = b"\0"
_NO_TABLE: Final = b"\x20"
_STATUS_OK: Final = (b":status", b"200")
_INDEXED_OK: Final = b"\x88"
_MOST: Final = 1024
_LONGEST: Final = 256


class PlainEncoder:
    """The encoder of one connection, which replaces hpack's."""

    def __init__(self) -> None:
        # After each change of the limit the next block has to announce an empty table.
        self._announces = True
        self._table_size = 4096

    @property
    def header_table_size(self) -> int:
        """The largest size of the other side's table."""
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
        return _literal(name, value)
    return _cached(name, value)


@lru_cache(_MOST)
def _cached(name: bytes, value: bytes) -> bytes:
    return _INDEXED_OK if (name, value) == _STATUS_OK else _literal(name, value)


def _literal(name: bytes, value: bytes) -> bytes:
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
