"""A file that an upload grows in, until it is whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from etcd_actions.blobs.protocol import BlobMismatch, BlobTooLarge

BLOCK: Final = 1 << 20
"""Bytes that are written, read and hashed at once, by a thread."""


class Spool:
    """A file without a reader; used by one thread at a time.

    Attributes:
        path: The file.
        size: Its bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._digest = hashlib.md5(usedforsecurity=False)
        self._file = path.open("xb", buffering=0)

    @property
    def md5(self) -> bytes:
        """The digest of what was written."""
        return self._digest.digest()

    def write(self, data: bytes) -> None:
        """Add bytes."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._digest.update(data)
        self.size += len(data)

    def check(self, length: int | None, md5: bytes) -> None:
        """Compare it with what was announced.

        Raises:
            BlobMismatch: It is not that.
        """
        if length is not None and self.size != length:
            raise BlobMismatch(f"{self.size} bytes arrived, and {length} were announced")
        if md5 and self.md5 != md5:
            raise BlobMismatch(
                f"what arrived has the MD5 {self.md5.hex()}, and {md5.hex()} was announced"
            )

    def sync(self) -> None:
        """See to it that it outlives a loss of power."""
        os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Close and remove it; where it has another name by now, that stays."""
        self._file.close()
        with suppress(FileNotFoundError):
            self.path.unlink()


async def blocks(parts: AsyncIterable[bytes], most: int) -> AsyncGenerator[bytes]:
    """The same bytes in fewer parts; what makes the parts is closed, too.

    Raises:
        BlobTooLarge: There are more than ``most``.
    """
    waiting = bytearray()
    size = 0
    try:
        async for part in parts:
            size += len(part)
            if size > most:
                raise BlobTooLarge(f"more than {most} bytes arrived")
            waiting += part
            if len(waiting) >= BLOCK:
                yield bytes(waiting)
                waiting.clear()
    finally:
        if isinstance(parts, AsyncGenerator):
            with trio.CancelScope(shield=True):
                await parts.aclose()
    if waiting:
        yield bytes(waiting)
