"""Blobs in a folder of this machine, or one that several machines mount.

A key is a path below the folder. Links are not followed: tasks may write there, too. An upload is
received into a temporary file, which gets its name when it is complete.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar

import trio

from etcd_actions._internal.untrusted_files import UnusableFile, local_path, open_regular
from etcd_actions.blobs.protocol import (
    Blob,
    BlobError,
    BlobExists,
    BlobInfo,
    BlobUnusable,
    check_key,
)
from etcd_actions.blobs.spool import BLOCK, Spool, open_spool
from etcd_actions.errors import ConfigError, InvalidArgument

T = TypeVar("T")

PARTIAL: Final = ".partial"
"""The directory of incomplete uploads."""
REMOVED: Final = ".removed"
"""The directory of blobs that are being removed."""

_LEFT_OVER: Final = 24 * 3600.0
"""Seconds without a write after which an incomplete upload is of a killed process."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_THREADS: Final = 16
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})
# A directory that becomes empty is removed, maybe while another blob is about to come into it.
_TRIES: Final = 20
_LISTED: Final = 100
"""Directories, or files, that are listed at once."""


class FolderStore:
    """See :class:`~etcd_actions.blobs.BlobStore`.

    Args:
        root: The folder, absolute; created if it does not exist, for this user only.

    Raises:
        ConfigError: It cannot be created or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._partial = root / PARTIAL
        self._threads = trio.CapacityLimiter(_THREADS)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._partial.mkdir(mode=0o700, exist_ok=True)
            os.close(os.open(self._partial, _DIRECTORY))
            self._sweep()
            trial = self._partial / f"trial-{secrets.token_hex(8)}"
            trial.touch(mode=0o600)
            trial.unlink()
        except OSError as error:
            raise ConfigError(
                f"the folder {root} cannot be used: {error.strerror or error}: give one that can "
                "be written"
            ) from None

    async def put(
        self,
        key: str,
        parts: AsyncIterable[bytes],
        *,
        most: int,
        length: int | None = None,
        md5: bytes = b"",
    ) -> BlobInfo:
        """See :meth:`~etcd_actions.blobs.BlobStore.put`."""
        names = check_key(key)
        path = self._partial / secrets.token_hex(16)
        receiving = open_spool(path, parts, self._in_thread, most=most, length=length, md5=md5)
        async with receiving as spool:
            found = await self._in_thread(self._give_name, spool, names)
        return BlobInfo(key, found.st_size, found.st_mtime)

    @asynccontextmanager
    async def read(
        self, key: str, start: int = 0, length: int | None = None
    ) -> AsyncIterator[Blob | None]:
        """See :meth:`~etcd_actions.blobs.BlobStore.read`."""
        names = check_key(key)
        # Cancelling the open would leak its descriptor.
        with trio.CancelScope(shield=True):
            descriptor = await self._in_thread(self._open, names)
        if descriptor is None:
            yield None
            return
        try:
            found = os.fstat(descriptor)
            end = found.st_size if length is None else min(found.st_size, start + length)
            info = BlobInfo(key, found.st_size, found.st_mtime)
            async with aclosing(self._parts(descriptor, start, end)) as parts:
                yield Blob(info, parts)
        finally:
            os.close(descriptor)

    async def stat(self, key: str) -> BlobInfo | None:
        """See :meth:`~etcd_actions.blobs.BlobStore.stat`."""
        found = await self._in_thread(self._stat, check_key(key))
        return None if found is None else BlobInfo(key, found.st_size, found.st_mtime)

    async def delete(self, key: str, *, unless_after: float | None = None) -> bool:
        """See :meth:`~etcd_actions.blobs.BlobStore.delete`."""
        names = check_key(key)
        if unless_after is None:
            return await self._in_thread(self._delete, names)
        return await self._in_thread(self._delete_old, names, unless_after)

    async def move(self, key: str, to: str, *, unless_after: float | None = None) -> bool:
        """See :meth:`~etcd_actions.blobs.BlobStore.move`: its time stays."""
        return await self._in_thread(self._rename, check_key(key), check_key(to), unless_after)

    async def below(self, prefix: str) -> AsyncGenerator[BlobInfo]:
        """See :meth:`~etcd_actions.blobs.BlobStore.below`."""
        waiting = [check_key(prefix)]
        while waiting:
            for each in await self._in_thread(self._list_some, waiting):
                yield each

    def native_url(self, key: str) -> str:
        """See :meth:`~etcd_actions.blobs.BlobStore.native_url`: an absolute path."""
        check_key(key)
        return f"{self.root}/{key}"

    def key_of(self, url: str) -> str | None:
        """See :meth:`~etcd_actions.blobs.BlobStore.key_of`."""
        path = local_path(url)
        if path is None or "\0" in url:
            return None
        # A Path removes doubled slashes and dots; it keeps "..", which no key has.
        below = str(path).removeprefix(f"{self.root}/")
        if below == str(path):
            return None
        try:
            check_key(below)
        except InvalidArgument:
            return None
        return below

    async def signed_url(
        self, method: Literal["GET", "PUT"], key: str, *, expires_in: int, md5: bytes = b""
    ) -> str | None:
        """See :meth:`~etcd_actions.blobs.BlobStore.signed_url`: a folder has none."""
        await trio.lowlevel.checkpoint()
        return None

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        try:
            return await trio.to_thread.run_sync(partial(function, *args), limiter=self._threads)
        except UnusableFile as error:
            raise BlobUnusable(str(error)) from error
        except OSError as error:
            raise BlobError(f"the blob store failed: {error}") from error

    async def _parts(self, descriptor: int, start: int, end: int) -> AsyncGenerator[bytes]:
        while start < end:
            size = min(BLOCK, end - start)
            part = await self._in_thread(os.pread, descriptor, size, start)
            if not part:
                raise BlobError("the blob was truncated while it was read")
            start += len(part)
            yield part

    @contextmanager
    def _directory(self, names: tuple[str, ...], *, make: bool = False) -> Iterator[int]:
        """A descriptor of a directory, reached without following a link."""
        opened = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=opened)
                        os.fsync(opened)
                below = os.open(name, _DIRECTORY, dir_fd=opened)
                os.close(opened)
                opened = below
            yield opened
        finally:
            os.close(opened)

    def _give_name(self, spool: Spool, names: tuple[str, ...]) -> os.stat_result:
        spool.sync()
        for tries_left in reversed(range(_TRIES)):
            try:
                with self._directory(names[:-1], make=True) as directory:
                    return self._link(spool, names[-1], directory)
            except FileNotFoundError:
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    def _link(self, spool: Spool, name: str, directory: int) -> os.stat_result:
        try:
            os.link(spool.path, name, dst_dir_fd=directory, follow_symlinks=False)
        except FileExistsError:
            self._refresh(spool, name, directory)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._move(spool, name, directory)
        os.fsync(directory)
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def _move(self, spool: Spool, name: str, directory: int) -> None:
        """Give the name in a file system without links; locked, since a rename overwrites."""
        with self._locked():
            try:
                self._refresh(spool, name, directory)
            except FileNotFoundError:
                os.replace(spool.path, name, dst_dir_fd=directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude the other renames, of all processes, in a file system without links."""
        descriptor = os.open(self._partial, _DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _refresh(self, spool: Spool, name: str, directory: int) -> None:
        """Set the time of the blob with this name, if its content is the same.

        Raises:
            FileNotFoundError: It was moved before its time was set.
        """
        descriptor = open_regular(name, dir_fd=directory)
        try:
            is_same = os.fstat(descriptor).st_size == spool.size
            if is_same:
                digest = hashlib.md5(usedforsecurity=False)
                while part := os.read(descriptor, BLOCK):
                    digest.update(part)
                is_same = digest.digest() == spool.md5
            if not is_same:
                raise BlobExists("the key has another content already: choose another name")
            os.utime(descriptor)
            # A concurrent move checks the time after it, so one of the two detects the other.
            refreshed = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not os.path.samestat(there, refreshed):
            raise FileNotFoundError(errno.ENOENT, "it was moved during the call", name)

    def _open(self, names: tuple[str, ...]) -> int | None:
        try:
            with self._directory(names[:-1]) as directory:
                return open_regular(names[-1], dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _stat(self, names: tuple[str, ...]) -> os.stat_result | None:
        try:
            with self._directory(names[:-1]) as directory:
                found = os.stat(names[-1], dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def _delete(self, names: tuple[str, ...]) -> bool:
        try:
            with self._directory(names[:-1]) as directory:
                os.unlink(names[-1], dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return False
        self._prune(names)
        return True

    def _delete_old(self, names: tuple[str, ...], unless_after: float) -> bool:
        """Remove a blob by a move, which detects that it is stored again at the same time."""
        to = (REMOVED, secrets.token_hex(16))
        return self._rename(names, to, unless_after) and self._delete(to)

    def _prune(self, names: tuple[str, ...]) -> None:
        """Remove the directories of a key that are empty."""
        for count in range(len(names) - 1, 0, -1):
            try:
                with self._directory(names[: count - 1]) as directory:
                    os.rmdir(names[count - 1], dir_fd=directory)
            except OSError:
                # It has other blobs.
                break

    def _rename(
        self, names: tuple[str, ...], to: tuple[str, ...], unless_after: float | None
    ) -> bool:
        """Move a blob, and back if it was stored again during the move."""
        if not self._give_other_name(names, to):
            return False
        if unless_after is None:
            return True
        moved = self._stat(to)
        if moved is None or moved.st_mtime <= unless_after:
            return True
        if not self._give_other_name(to, names):
            self._delete(to)
        return False

    def _give_other_name(self, names: tuple[str, ...], to: tuple[str, ...]) -> bool:
        for tries_left in reversed(range(_TRIES)):
            try:
                with self._directory(names[:-1]) as source:
                    found = os.stat(names[-1], dir_fd=source, follow_symlinks=False)
                    if not stat.S_ISREG(found.st_mode):
                        return False
                    with self._directory(to[:-1], make=True) as target:
                        if not self._link_or_rename(names[-1], source, to[-1], target):
                            return False
                        os.fsync(target)
            except (FileNotFoundError, NotADirectoryError):
                if self._stat(names) is None:
                    return False
                if not tries_left:
                    raise
            else:
                self._delete(names)
                self._prune(names)
                return True
        raise AssertionError("the last try returns or raises")

    def _link_or_rename(self, name: str, source: int, to: str, target: int) -> bool:
        """Add a name to a file, or rename it where links are not supported; never overwrites."""
        try:
            os.link(name, to, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with self._locked():
                try:
                    os.stat(to, dir_fd=target, follow_symlinks=False)
                except FileNotFoundError:
                    os.rename(name, to, src_dir_fd=source, dst_dir_fd=target)
                else:
                    return False
        return True

    def _list_some(self, waiting: list[tuple[str, ...]]) -> list[BlobInfo]:
        """List a bounded number of directories; the others stay in ``waiting``."""
        found: list[BlobInfo] = []
        listed = 0
        while waiting and listed < _LISTED and len(found) < _LISTED:
            names = waiting.pop()
            files, directories = self._list(names)
            found += files
            waiting += [(*names, name) for name in reversed(directories)]
            listed += 1
        return found

    def _list(self, names: tuple[str, ...]) -> tuple[list[BlobInfo], list[str]]:
        files: list[BlobInfo] = []
        directories: list[str] = []
        try:
            with self._directory(names) as directory, os.scandir(directory) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        directories.append(entry.name)
                    elif stat.S_ISREG(found.st_mode):
                        key = "/".join((*names, entry.name))
                        files.append(BlobInfo(key, found.st_size, found.st_mtime))
        except (FileNotFoundError, NotADirectoryError):
            return [], []
        return files, directories

    def _sweep(self) -> None:
        """Remove incomplete uploads, and removed blobs, of killed processes."""
        removed = self.root / REMOVED
        for path in [*self._partial.iterdir(), *(removed.iterdir() if removed.is_dir() else ())]:
            with suppress(FileNotFoundError, IsADirectoryError):
                if path.lstat().st_mtime < time.time() - _LEFT_OVER:
                    path.unlink()
