"""Files whose paths, or contents, come from a task or over the wire.

Such a path may name anything: a FIFO or a device, whose opening blocks, a link to elsewhere, a
directory, a file without end. So a file is checked before it is opened, without following a
link, it is read up to a limit, and what may hang in the file system (a mount that does not
answer) is done in a thread that can be left.
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
# Opens nothing but a name: neither a FIFO's other end nor a device's driver notices.
_O_PATH: Final[int] = getattr(os, "O_PATH", 0)
_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
# Threads that hang in a file system are left, and hold their place here until it answers.
_THREADS: Final = trio.CapacityLimiter(500)


class UnusableFile(EtcdActionsError):
    """A path names something that is not read; the message names both."""


class SlowFile(UnusableFile):
    """Its file system does not answer now; it may later."""


def open_regular(path: StrPath, flags: int = os.O_RDONLY, *, dir_fd: int | None = None) -> int:
    """Open a regular file that exists, and nothing else, for reading or writing.

    Args:
        path: The file; its last component may not be a link.
        flags: How it is opened.
        dir_fd: The directory that ``path`` is relative to.

    Returns:
        A descriptor, which is not inherited; to be closed.

    Raises:
        UnusableFile: It is not a regular file.
        OSError: It does not exist, or cannot be opened.
    """
    if not _O_PATH:
        _check_kind(path, os.stat(path, dir_fd=dir_fd, follow_symlinks=False))
        return _checked(path, os.open(path, flags | _FLAGS, dir_fd=dir_fd))
    name = _checked(path, os.open(path, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd))
    try:
        # The same file, whatever the path names by now.
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
        limit: How many bytes it may have, at most.
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
    """The last bytes of a regular file, ``most`` at most; raises what open_regular does."""
    with os.fdopen(open_regular(path, dir_fd=dir_fd), "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most))
        return file.read(most)


def is_regular(path: StrPath, *, dir_fd: int | None = None) -> bool:
    """Whether there is a regular file; False if there is no file.

    Raises:
        UnusableFile: There is something else.
        OSError: It cannot be read.
    """
    try:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    _check_kind(path, found)
    return True


def clear_away(path: Path) -> None:
    """See to it that nothing has a path: a directory gets another name, all else is removed."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise
        path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}.set-aside"))


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one step: a reader finds the old contents or the new, complete.

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
    """Call a function that may hang in a file system; cancelled, its thread is left alone.

    Args:
        within: Seconds that it may take.
        what: What it looks at, for the error.
        function: It must hold nothing that has to be given back.
        args: Its arguments.

    Raises:
        UnusableFile: It took longer.
    """
    with trio.move_on_after(within):
        return await trio.to_thread.run_sync(
            partial(function, *args), abandon_on_cancel=True, limiter=_THREADS
        )
    raise SlowFile(f"{what} did not answer within {within:g} s")


def local_path(uri: str) -> Path | None:
    """The path of a URI on this machine; None if it is elsewhere, or is no URI."""
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
