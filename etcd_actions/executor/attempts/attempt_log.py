"""Reads the log of an attempt while it grows, and afterwards.

While it grows the log is two files: when the newer is full the older is removed. At the end they
become one (see `supervision.bounded_log`). A reader keeps its file open while the file is renamed,
so it misses no bytes. A task runs as the same user and may replace the log, so only regular files
are opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from etcd_actions._internal.untrusted_files import open_regular
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory, directory_of
from etcd_actions.executor.supervision.bounded_log import LOG, LOG_BEFORE
from etcd_actions.model import Incarnation

# The most bytes of one read.
_PART: Final = 64 * 1024
# The most bytes at the end of a file by which it is found in a joined log.
_COMPARED: Final = 64 * 1024
_MOST_OF_A_HEADER: Final = 64
# The first line of a log of which a part is missing, also of an earlier version.
_HEADER: Final = re.compile(rb"\(\d+ bytes are [a-z ]+ here\)\n")
_THREADS: Final = trio.CapacityLimiter(8)


class LocalLogs:
    """The logs of the attempts in the directory of an executor of this machine.

    Args:
        state_dir: The executor's directory.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    @asynccontextmanager
    async def open(self, incarnation: Incarnation, attempt: int) -> AsyncIterator[AttemptLog]:
        """Read the log of an attempt from its beginning.

        Raises:
            FileNotFoundError: It does not exist here, or not yet.
            UnusableFile: It is not a regular file.
            OSError: It cannot be read.
        """
        log = await trio.to_thread.run_sync(self._open, incarnation, attempt, limiter=_THREADS)
        try:
            yield log
        finally:
            log.close()

    def _open(self, incarnation: Incarnation, attempt: int) -> AttemptLog:
        return AttemptLog(directory_of(self._state_dir, incarnation, attempt))


class AttemptLog:
    """A log that is read as it grows; created by :meth:`LocalLogs.open`.

    Args:
        place: The attempt.

    Attributes:
        has_gap: Whether bytes were lost between the last part and the one before.
        written: When the last file was written to, in seconds since 1970.
    """

    def __init__(self, place: AttemptDirectory) -> None:
        self._file = -1
        self._place = place
        self.has_gap = False
        self.written = 0.0
        with place.open_directory() as directory:
            try:
                self._file = open_regular(LOG_BEFORE, dir_fd=directory)
            except FileNotFoundError:
                self._file = open_regular(LOG, dir_fd=directory)

    def __del__(self) -> None:
        # A thread that opens it may be abandoned, and its reader may be cancelled.
        self.close()

    def close(self) -> None:
        """Close its file. Idempotent."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    async def read(self) -> bytes:
        """The next bytes, 64 KiB at most; none if there are none now.

        Raises:
            UnusableFile: Its name is now that of something other than a regular file.
            OSError: It cannot be read.
        """
        # A cancellation waits for the thread: the directory is local.
        return await trio.to_thread.run_sync(self._read, limiter=_THREADS)

    async def has_ended(self) -> bool:
        """Whether the attempt has ended by its files, so that all its log can be read.

        The attempt's lock is not tried: an executor that tries it at the same time would conclude
        that the attempt lives.
        """
        return await trio.to_thread.run_sync(self._has_ended, limiter=_THREADS)

    def _has_ended(self) -> bool:
        try:
            return self._place.exit_code is not None and self._place.supervisor() is None
        except OSError:
            return False

    def _read(self) -> bytes:
        self.has_gap = False
        for _ in range(8):
            if data := self._next_part():
                return data
            if not self._open_next():
                return b""
            if self.has_gap:
                return self._next_part()
        return b""

    def _next_part(self) -> bytes:
        found = os.fstat(self._file)
        self.written = found.st_mtime
        if os.lseek(self._file, 0, os.SEEK_CUR) > found.st_size:
            # It was truncated, to free space on the disk.
            os.lseek(self._file, 0, os.SEEK_SET)
            self.has_gap = True
        return os.read(self._file, _PART)

    def _open_next(self) -> bool:
        """Continue with the next file at the end of one; False if it is the last."""
        try:
            with self._place.open_directory() as directory:
                log = open_regular(LOG, dir_fd=directory)
                before = -1
                try:
                    with suppress(FileNotFoundError):
                        before = open_regular(LOG_BEFORE, dir_fd=directory)
                    return self._choose(log, before)
                finally:
                    for each in (log, before):
                        if each >= 0 and each != self._file:
                            os.close(each)
        except FileNotFoundError:
            # It is being renamed, or was removed with the attempt.
            return False

    def _choose(self, log: int, before: int) -> bool:
        own = os.fstat(self._file)
        if os.path.samestat(own, os.fstat(log)):
            return False
        if os.lseek(self._file, 0, os.SEEK_CUR) < own.st_size:
            # It grew before the next file was started.
            return True
        if before >= 0:
            if os.path.samestat(own, os.fstat(before)):
                return self._take(log)
            # Two files followed it: one of them is removed, or will be.
            self.has_gap = True
            return self._take(before)
        at = _offset_after(self._file, own.st_size, log)
        self.has_gap = at < 0
        return self._take(log, max(at, 0))

    def _take(self, file: int, at: int = 0) -> bool:
        os.lseek(file, at, os.SEEK_SET)
        old, self._file = self._file, file
        os.close(old)
        return True


def _offset_after(part: int, size: int, log: int) -> int:
    """The offset in a complete log at which one of its two former parts ends; -1 if not found.

    A complete log has a line about missing bytes, if there are any, then both parts.
    """
    total = os.fstat(log).st_size
    header = _HEADER.match(os.pread(log, _MOST_OF_A_HEADER, 0))
    begin = header.end() if header is not None else 0
    compared = min(size, _COMPARED)
    end = os.pread(part, compared, size - compared)
    # The second part ends at the end of the log, the first one after its own size. The second
    # comes first: a reader is usually in it when the two are joined.
    for at in (total, begin + size):
        if compared <= at <= total and os.pread(log, compared, at - compared) == end:
            return at
    return -1
