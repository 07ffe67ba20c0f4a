"""A temporary file with the received part of an upload."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio

from etcd_actions.blobs.protocol import BlobMismatch, BlobTooLarge

BLOCK: Final = 1 << 20
"""Bytes that are written, read and hashed at once, by a thread."""


class Spool:
    """The file of one upload; one thread at a time uses it.

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
        """The digest of the written bytes."""
        return self._digest.digest()

    def write(self, data: bytes) -> None:
        """Add bytes."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._digest.update(data)
        self.size += len(data)

    def check(self, length: int | None, md5: bytes) -> None:
        """Compare the bytes with the announced length and digest; raises BlobMismatch."""
        if length is not None and self.size != length:
            raise BlobMismatch(f"{self.size} bytes arrived, and {length} were announced")
        if md5 and self.md5 != md5:
            raise BlobMismatch(
                f"the received bytes have the MD5 {self.md5.hex()}, and {md5.hex()} was announced"
            )

    def sync(self) -> None:
        """Make the bytes durable."""
        os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Close the file and remove this name; a further name of it stays."""
        self._file.close()
        with suppress(FileNotFoundError):
            self.path.unlink()


async def blocks(parts: AsyncIterable[bytes], most: int) -> AsyncGenerator[bytes]:
    """The same bytes in fewer parts; closes ``parts``. Raises BlobTooLarge above ``most``."""
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


@asynccontextmanager
async def open_spool(
    path: Path,
    parts: AsyncIterable[bytes],
    in_thread: Callable[..., Awaitable[Any]],
    *,
    most: int,
    length: int | None,
    md5: bytes,
) -> AsyncIterator[Spool]:
    """Receive an upload into a file that is removed at the end.

    Args:
        path: The file to create.
        parts: The content.
        in_thread: Runs a function with its arguments in a thread.
        most: The largest number of bytes.
        length: The announced number of bytes; None without one.
        md5: The announced digest; empty without one.

    Raises:
        BlobTooLarge: There are more than ``most`` bytes.
        BlobMismatch: Length or digest differ from the announced ones.
    """
    spool: Spool = await in_thread(Spool, path)
    try:
        async with aclosing(blocks(parts, most)) as received:
            async for block in received:
                await in_thread(spool.write, block)
        spool.check(length, md5)
        yield spool
    finally:
        with trio.CancelScope(shield=True):
            await in_thread(spool.discard)
