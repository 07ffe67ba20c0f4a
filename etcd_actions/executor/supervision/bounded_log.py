"""A log that is bounded while it grows."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

LOG = "log"
LOG_BEFORE = "log.before"

_PIPE_BYTES = 65536
_CREATE = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Bytes of the line about missing bytes.
_HEADER = 64


class BoundedLog:
    """A log that never takes more than its limit: the older half is removed when it is full.

    While it grows there are two files; at the end they are one. Bytes that cannot be written are
    dropped, so that a full disk stops no task. It is descriptor 2 of this process.

    Args:
        directory: A descriptor of its directory.
        most: Its limit, in bytes.
    """

    def __init__(self, directory: int, most: int) -> None:
        self._directory = directory
        self._half = max((most - _HEADER) // 2, 1)
        self._rotated = False
        self._dropped = 0
        self._open(os.O_APPEND)
        self._size = os.fstat(2).st_size

    def _open(self, flags: int) -> None:
        flags |= os.O_WRONLY | os.O_APPEND | _CREATE
        log = os.open(LOG, flags, 0o600, dir_fd=self._directory)
        try:
            if not stat.S_ISREG(os.fstat(log).st_mode):
                raise OSError(0, "the log is not a regular file")
            os.dup2(log, 2, inheritable=False)
        finally:
            if log != 2:
                os.close(log)

    def take(self, source: int) -> bool:
        """Append the available bytes of a pipe; False if its other end is closed."""
        try:
            data = os.read(source, _PIPE_BYTES)
        except BlockingIOError:
            return True
        self.write(data)
        return bool(data)

    def write(self, data: bytes) -> None:
        """Append, as far as there is space on the disk."""
        for begin in range(0, len(data), self._half):
            self._write_part(data[begin : begin + self._half])

    def _write_part(self, data: bytes) -> None:
        if self._size + len(data) > self._half:
            self._rotate()
        written = 0
        with contextlib.suppress(OSError):
            written = os.write(2, data)
        self._size += written
        self._dropped += len(data) - written

    def _rotate(self) -> None:
        directory = self._directory
        try:
            if self._rotated:
                self._dropped += os.stat(LOG_BEFORE, dir_fd=directory).st_size
            os.rename(LOG, LOG_BEFORE, src_dir_fd=directory, dst_dir_fd=directory)
            self._open(os.O_EXCL)
            self._rotated = True
        except OSError:
            # A task replaced the files.
            with contextlib.suppress(OSError):
                self._dropped += self._size
                os.ftruncate(2, 0)
        self._size = 0

    def discard(self) -> None:
        """Free the space of the log on the disk."""
        with contextlib.suppress(OSError):
            self._dropped += self._size
            os.ftruncate(2, 0)
            self._size = 0
            os.unlink(LOG_BEFORE, dir_fd=self._directory)

    def finish(self) -> None:
        """Make one file of the two."""
        if not self._rotated and not self._dropped:
            return
        directory = self._directory
        name = LOG + ".new"
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        try:
            flags = os.O_WRONLY | os.O_EXCL | _CREATE
            with os.fdopen(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
                if self._dropped:
                    file.write(b"(%d bytes are omitted here)\n" % self._dropped)
                for part in (LOG_BEFORE, LOG):
                    for data in _parts(part, directory, self._half):
                        file.write(data)
            os.rename(name, LOG, src_dir_fd=directory, dst_dir_fd=directory)
            os.unlink(LOG_BEFORE, dir_fd=directory)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)


def _parts(name: str, directory: int, most: int) -> Iterator[bytes]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        # Opening a device may have an effect.
        if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return
        descriptor = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        while most > 0 and (data := os.read(descriptor, min(most, _PIPE_BYTES))):
            yield data
            most -= len(data)
    finally:
        os.close(descriptor)
