"""Reads the log of an attempt while it is written, and afterwards.

The log belongs to a task, which runs as the same user: what is in its place is opened only when it
is a regular file. While it grows it is two files, of which the older goes when the newer is full
(`supervision.bounded_log`), and at the end they become one. A reader keeps the file open
that it is in, so it misses nothing that was there when it looked, whatever name that has since.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from etcd_actions._internal.untrusted_files import UnusableFile, open_regular
from etcd_actions.executor.attempts.attempt_directories import place_of
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.supervision.bounded_log import LOG, LOG_BEFORE
from etcd_actions.model import Incarnation

_PART: Final = 64 * 1024
_COMPARED: Final = 64 * 1024
# The line that says what is left out has a number of bytes in it.
_MOST_OF_A_HEADER: Final = 64
_LEFT_OUT: Final = b" bytes are left out here)\n"
_THREADS: Final = trio.CapacityLimiter(8)


class LocalLogs:
    """The logs of the attempts that an executor of this machine has in its directory.

    Args:
        state_dir: The executor's directory.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    async def is_there(self, incarnation: Incarnation, attempt: int) -> bool:
        """Whether there is a log of an attempt."""
        return await trio.to_thread.run_sync(self._is_there, incarnation, attempt, limiter=_THREADS)

    @asynccontextmanager
    async def open(self, incarnation: Incarnation, attempt: int) -> AsyncIterator[AttemptLog]:
        """Read the log of an attempt from its beginning.

        Raises:
            FileNotFoundError: There is none here, or not yet.
            UnusableFile: Something else has its name.
            OSError: It cannot be read.
        """
        log = await trio.to_thread.run_sync(self._open, incarnation, attempt, limiter=_THREADS)
        try:
            yield log
        finally:
            log.close()

    def _is_there(self, incarnation: Incarnation, attempt: int) -> bool:
        try:
            self._open(incarnation, attempt).close()
        except (OSError, UnusableFile):
            return False
        return True

    def _open(self, incarnation: Incarnation, attempt: int) -> AttemptLog:
        return AttemptLog(place_of(self._state_dir, incarnation, attempt))


class AttemptLog:
    """A log that is read on and on; made by :meth:`LocalLogs.open`.

    Args:
        place: Where the attempt is.

    Attributes:
        has_gap: Whether something was lost between what was read last and what was read before.
        written: When the file that was read last was written to, in seconds since 1970.
    """

    def __init__(self, place: AttemptDirectory) -> None:
        self._place = place
        self.has_gap = False
        self.written = 0.0
        self._file = -1
        self._before = False
        with place.open_directory() as directory:
            try:
                self._file = open_regular(LOG_BEFORE, dir_fd=directory)
                self._before = True
            except FileNotFoundError:
                self._file = open_regular(LOG, dir_fd=directory)

    def close(self) -> None:
        """Let go of its file. Twice is harmless."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    async def read(self) -> bytes:
        """Some of what comes next, 64 KiB at most; nothing where there is nothing now.

        Raises:
            UnusableFile: Something else has its name by now.
            OSError: It cannot be read.
        """
        # Not left alone when it is cancelled: it is this machine's own directory.
        return await trio.to_thread.run_sync(self._read, limiter=_THREADS)

    async def has_ended(self) -> bool:
        """Whether nothing of the attempt runs any more, as far as its files say.

        What was written before is there to be read then. Its lock is not asked: who asks holds it
        for a moment, and an executor would take the attempt for one that lives.
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
            if not self._go_on():
                return b""
            if self.has_gap:
                return self._next_part()
        return b""

    def _next_part(self) -> bytes:
        found = os.fstat(self._file)
        self.written = found.st_mtime
        if os.lseek(self._file, 0, os.SEEK_CUR) > found.st_size:
            # It was cut off, to make room on the disk.
            os.lseek(self._file, 0, os.SEEK_SET)
            self.has_gap = True
        return os.read(self._file, _PART)

    def _go_on(self) -> bool:
        """At the end of a file, go on with the next one; False where that is the last."""
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
            # It is just being renamed, or was removed with the attempt.
            return False

    def _choose(self, log: int, before: int) -> bool:
        own = os.fstat(self._file)
        if os.path.samestat(own, os.fstat(log)):
            return False
        if os.lseek(self._file, 0, os.SEEK_CUR) < own.st_size:
            # There was more in it by the time that the next one was begun.
            return True
        if before >= 0:
            if os.path.samestat(own, os.fstat(before)):
                return self._take(log)
            # It was followed by two: one is gone, or will be.
            self.has_gap = True
            return self._take(before)
        at = _place_in(self._file, own.st_size, log)
        self.has_gap = at < 0
        return self._take(log, max(at, 0))

    def _take(self, file: int, at: int = 0) -> bool:
        os.lseek(file, at, os.SEEK_SET)
        old, self._file = self._file, file
        os.close(old)
        return True


def _place_in(own: int, size: int, whole: int) -> int:
    """Where in a log that is one again what comes after one of its two parts begins; -1 if nowhere.

    It has a line about what is left out, if anything is, then both parts.
    """
    total = os.fstat(whole).st_size
    head = os.pread(whole, _MOST_OF_A_HEADER, 0)
    header = head.find(_LEFT_OUT)
    begin = header + len(_LEFT_OUT) if header > 0 and head.startswith(b"(") else 0
    compared = min(size, _COMPARED)
    end = os.pread(own, compared, size - compared)
    # The second part is read as a rule when the two are put together.
    for at in (total, begin + size):
        if compared <= at <= total and os.pread(whole, compared, at - compared) == end:
            return at
    return -1
