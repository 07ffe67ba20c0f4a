"""Header blocks: ours, built once for many requests, and the server's, decoded once.

Neither side uses HPACK's dynamic table: our settings forbid it, and we send literals. So a block
always means the same, and is cached by its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import hpack

from etcd_actions.http2.errors import ErrorCode, ProtocolError

NO_TABLE: Final = b"\x20"
"""Starts the first block of a connection: from here on the sender's table has size 0."""

LARGEST_BLOCK: Final = 64 * 1024
"""Bytes of a header block, encoded and decoded."""

_MOST_BLOCK_FRAMES: Final = 64
_REMEMBERED: Final = 256
_LARGEST_REMEMBERED: Final = 1024
_NAME: Final = re.compile(r"[a-z0-9_.-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")


def request_head(
    *, encrypted: bool, authority: str, path: str, metadata: Iterable[tuple[str, str]]
) -> bytes:
    """The header block of a gRPC request, of literals that are never indexed.

    Raises:
        ValueError: A name or a value cannot be in a header.
    """
    fields = [
        b"\x83",  # :method POST
        b"\x87" if encrypted else b"\x86",  # :scheme
        b"\x01" + _text(authority),
        b"\x04" + _text(path),
        b"\x0f\x10" + _text("application/grpc"),  # content-type
        b"\x00" + _text("te") + _text("trailers"),
        b"\x0f\x2b" + _text("etcd-actions"),  # user-agent
    ]
    for name, value in metadata:
        fields.append(_literal(name, value))
    return b"".join(fields)


def _literal(name: str, value: str) -> bytes:
    """One field that no proxy may put into a table."""
    if not _NAME.fullmatch(name) or name.endswith("-bin"):
        raise ValueError(f"{name!r} is not the name of a header: use a-z, 0-9, '-', '_' and '.'")
    if not _VALUE.fullmatch(value):
        # Without the value: it may be a secret.
        raise ValueError(f"the value of {name} has a character that a header cannot have")
    return b"\x10" + _text(name) + _text(value)


class HeaderDecoder:
    """Reads the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=LARGEST_BLOCK)
        self._cache: dict[bytes, Mapping[str, str]] = {}

    def decode(self, block: bytes) -> Mapping[str, str]:
        """The fields of a block; of several with one name the last.

        Raises:
            ProtocolError: It cannot be read.
        """
        cached = self._cache.get(block)
        if cached is not None:
            return cached
        try:
            fields = self._decoder.decode(block, raw=True)
        except hpack.OversizedHeaderListError:
            raise ProtocolError(
                f"a header list of more than {LARGEST_BLOCK} bytes", ErrorCode.ENHANCE_YOUR_CALM
            ) from None
        except (hpack.HPACKError, LookupError, ValueError) as error:
            raise ProtocolError(
                f"a header block cannot be decoded: {error}", ErrorCode.COMPRESSION_ERROR
            ) from None
        decoded = {
            bytes(name).decode(errors="replace"): bytes(value).decode(errors="replace")
            for name, value in fields
        }
        # A block that starts with a change of the table's size changes the decoder.
        if self._decoder.header_table_size:
            self._cache.clear()
        elif len(block) <= _LARGEST_REMEMBERED and not b"\x20" <= block[:1] < b"\x40":
            if len(self._cache) >= _REMEMBERED:
                self._cache.clear()
            self._cache[block] = decoded
        return decoded


class HeaderBlock:
    """A header block that continues in further frames."""

    def __init__(self, stream: int, first: bytes, *, end: bool) -> None:
        self.stream = stream
        self.end = end
        self.parts: list[bytes] = []
        self._size = 0
        self.add(first)

    def add(self, part: bytes) -> None:
        """Add a frame's part.

        Raises:
            ProtocolError: The block is too large.
        """
        self.parts.append(part)
        self._size += len(part)
        if self._size > LARGEST_BLOCK or len(self.parts) > _MOST_BLOCK_FRAMES:
            raise ProtocolError(
                f"a header block of more than {LARGEST_BLOCK} bytes or {_MOST_BLOCK_FRAMES} frames",
                ErrorCode.ENHANCE_YOUR_CALM,
            )


def _text(text: str) -> bytes:
    encoded = text.encode("ascii")
    return _length(len(encoded)) + encoded


def _length(number: int) -> bytes:
    """An integer with a prefix of seven bits (RFC 7541, section 5.1)."""
    if number < 0x7F:
        return bytes((number,))
    encoded = bytearray((0x7F,))
    number -= 0x7F
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
