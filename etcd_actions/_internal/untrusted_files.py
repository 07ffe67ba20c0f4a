"""Files whose paths, or contents, come from a task or from a client.

Such a path can name a FIFO or a device, whose opening blocks, a link to another directory, a
directory, an endless file. So a file is checked before it is opened, without following a link, and
read up to a limit. A call that can hang in the file system (a mount that does not answer) runs in a
thread that can be abandoned.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

import trio

from etcd_actions.errors import EtcdActionsError

T = TypeVar("T")
StrPath = str | os.PathLike[str]

_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Opens the name only, without effect on the other end of a FIFO or on a device.
_O_PATH: Final[int] = getattr(os, "O_PATH", 0)
_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
# A thread that hangs in a file system is abandoned, and counts here until it ends.
_THREADS: Final = trio.CapacityLimiter(500)


class UnusableFile(EtcdActionsError):
    """A path names a file of a kind that is not read; the message has both."""


class SlowFile(UnusableFile):
    """The file system of a path does not answer now."""


def open_regular(path: StrPath, flags: int = os.O_RDONLY, *, dir_fd: int | None = None) -> int:
    """Open an existing regular file for reading or writing.

    Args:
        path: The file; its last component may not be a link.
        flags: How it is opened.
        dir_fd: The directory that ``path`` is relative to.

    Returns:
        A descriptor, which is not inherited; the caller closes it.

    Raises:
        UnusableFile: It is not a regular file.
        OSError: It does not exist, or cannot be opened.
    """
    if not _O_PATH:
        _check_kind(path, os.stat(path, dir_fd=dir_fd, follow_symlinks=False))
        return _checked(path, os.open(path, flags | _FLAGS, dir_fd=dir_fd))
    name = _checked(path, os.open(path, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd))
    try:
        # This opens the checked file, even if the path names another one by now.
        return os.open(f"/proc/self/fd/{name}", flags | _FLAGS & ~os.O_NOFOLLOW)
    except FileNotFoundError:
        # There is no /proc.
        return _checked(path, os.open(path, flags | _FLAGS, dir_fd=dir_fd))
    finally:
        os.close(name)


def read_regular(path: StrPath, *, limit: int, dir_fd: int | None = None) -> bytes:
    """The contents of a regular file.

    Args:
        path: The file; its last component may not be a link.
        limit: The most bytes that it may have.
        dir_fd: The directory that ``path`` is relative to.

    Raises:
        UnusableFile: It is not a regular file, or is larger.
        OSError: It does not exist, or cannot be read.
    """
    descriptor = open_regular(path, dir_fd=dir_fd)
    try:
        found = b""
        while len(found) <= limit:
            part = os.read(descriptor, min(limit + 1 - len(found), 1 << 20))
            if not part:
                return found
            found += part
    finally:
        os.close(descriptor)
    raise UnusableFile(f"{path} is larger than {limit} bytes")


def read_end(path: StrPath, most: int, *, dir_fd: int | None = None) -> bytes:
    """The last bytes of a regular file, at most ``most``; raises as :func:`open_regular`."""
    with os.fdopen(open_regular(path, dir_fd=dir_fd), "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most))
        return file.read(most)


def is_regular(path: StrPath, *, dir_fd: int | None = None) -> bool:
    """Whether there is a regular file; False if there is no file.

    Raises:
        UnusableFile: There is another kind of file.
        OSError: It cannot be read.
    """
    try:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    _check_kind(path, found)
    return True


def clear_away(path: Path) -> None:
    """Free a path: rename a directory, remove any other file."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise
        path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}.set-aside"))


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one step: a reader gets the old contents or the new ones, complete.

    Raises:
        OSError: It cannot be written; the old file stays.
    """
    new = path.with_name(f".{path.name[:80]}.{secrets.token_hex(8)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
            file.write(data)
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


async def in_thread(within: float, what: StrPath, function: Callable[..., T], *args: object) -> T:
    """Call a function that may hang in a file system; after a cancellation its thread continues.

    Args:
        within: Seconds that it may take.
        what: The file or directory, for the error.
        function: The function. It must not own resources that have to be released.
        args: Its arguments.

    Raises:
        SlowFile: It took longer.
    """
    with trio.move_on_after(within):
        return await trio.to_thread.run_sync(
            partial(function, *args), abandon_on_cancel=True, limiter=_THREADS
        )
    raise SlowFile(f"{what} did not answer within {within:g} s")


def local_path(uri: str) -> Path | None:
    """The path of a URI on this machine; None if it is on another one, or no URI."""
    if uri.startswith("/"):
        return Path(uri)
    try:
        split = urlsplit(uri)
    except ValueError:
        return None
    if split.scheme == "file" and split.netloc in ("", "localhost") and split.path:
        return Path(unquote(split.path))
    return None


def _checked(path: StrPath, descriptor: int) -> int:
    try:
        _check_kind(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_kind(path: StrPath, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise UnusableFile(f"{path} is {kind}, not a regular file")
