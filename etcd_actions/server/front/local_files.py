"""Files of runs that are on this machine, and not in the blob store.

If tasks run on this machine, a run may have any base. A client that may enqueue a run can have a
process of this user read any file. So serving the files with Flyte's names gives it no new access.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

from etcd_actions._internal.untrusted_files import (
    SlowFile,
    UnusableFile,
    in_thread,
    local_path,
    open_regular,
)
from etcd_actions.blobs import Blob, BlobError, BlobInfo, BlobUnusable

T = TypeVar("T")

_NAMES: Final = frozenset({"inputs.pb", "outputs.pb", "report.html"})
_BUNDLES: Final = (".tar.gz", ".tgz", ".pkl.gz")
_WITHIN: Final = 20.0
"""Seconds that a file system may take."""
_BLOCK: Final = 1 << 20


class LocalFiles:
    """Reads regular files with the names that Flyte gives to files of runs."""

    def path_of(self, url: str) -> str | None:
        """The absolute path of such a file; None for anything else."""
        path = local_path(url)
        if path is None or "\0" in url or not path.is_absolute() or ".." in path.parts:
            return None
        return str(path) if path.name in _NAMES or path.name.endswith(_BUNDLES) else None

    @asynccontextmanager
    async def read(
        self, path: str, start: int = 0, length: int | None = None
    ) -> AsyncIterator[Blob | None]:
        """Open a file; None if there is none.

        Args:
            path: A result of :meth:`path_of`.
            start: The offset of the first byte.
            length: The number of bytes, at most; None for all.

        Raises:
            BlobError: It is not a regular file, or cannot be read now.
        """
        found = None if self.path_of(path) is None else await _within(path, _size, path)
        if found is None:
            yield None
            return
        size, modified = found
        end = size if length is None else min(size, start + length)
        async with aclosing(_parts(path, start, end)) as parts:
            yield Blob(BlobInfo(path, size, modified), parts)


async def _within(path: str, function: Callable[..., T], *args: object) -> T:
    try:
        return await in_thread(_WITHIN, path, function, *args)
    except (OSError, SlowFile) as error:
        raise BlobError(f"the file cannot be read: {error}") from error
    except UnusableFile as error:
        raise BlobUnusable(str(error)) from error


async def _parts(path: str, start: int, end: int) -> AsyncGenerator[bytes]:
    while start < end:
        part = await _within(path, _block, path, start, min(_BLOCK, end - start))
        if not part:
            raise BlobError("the file was truncated while it was read")
        start += len(part)
        yield part


# A thread that hangs is abandoned: each of these closes its descriptor itself.


def _size(path: str) -> tuple[int, float] | None:
    try:
        descriptor = open_regular(Path(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return found.st_size, found.st_mtime


def _block(path: str, start: int, size: int) -> bytes:
    descriptor = open_regular(Path(path))
    try:
        return os.pread(descriptor, size, start)
    finally:
        os.close(descriptor)
