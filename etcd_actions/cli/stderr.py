"""Standard error that takes what it can and never keeps the process waiting.

A log is of use only to somebody who reads it: a line that cannot be written, because the disk is
full, the reader is gone or does not read, is dropped and counted, and the work goes on.

This module imports nothing that is slow to import.
"""

from __future__ import annotations

import io
import os
import select
import stat
import threading
from typing import Any, Final

# What a pipe that has room takes without waiting, in one piece or not at all.
_PIECE: Final = 4096


class LineWriter(io.RawIOBase):
    """Writes to a descriptor without ever waiting for its reader.

    Each write is one line, or several. It is written whole, or dropped, or, where a pipe became
    full in the middle of it, finished before the next one begins. Its methods may be called from
    any thread.

    Attributes:
        dropped: Number of writes that were dropped.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._rest = b""
        self._torn = False
        self._failures = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        try:
            self._waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        except OSError:
            self._waits = False

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        """Write, or drop; either way all of it counts as written."""
        line = bytes(data)
        with self._lock:
            self._rest = self._push(self._rest)
            if self._rest:
                self.dropped += 1
                return len(line)
            begun = b"\n" + line if self._torn and not line.startswith(b"\n") else line
            failures = self._failures
            rest = self._push(begun)
            if self._failures > failures or (line and len(rest) == len(begun)):
                self.dropped += 1
            else:
                self._rest = rest
        return len(line)

    def _push(self, data: bytes) -> bytes:
        """Write as much as is taken without waiting; gives the rest."""
        view = memoryview(data)
        while view:
            try:
                if self._waits and not self._has_room():
                    break
                written = os.write(self._descriptor, view[:_PIECE] if self._waits else view)
            except BlockingIOError:
                # It was made non-blocking by somebody who has it, too.
                break
            except OSError:
                self._failures += 1
                # A full disk may have taken a part of it.
                self._torn = self._torn or len(view) < len(data)
                return b""
            self._torn = False
            view = view[written:]
        return bytes(view)

    def _has_room(self) -> bool:
        return any(event & select.POLLOUT for _, event in self._poll.poll(0))


class TolerantStderr(io.TextIOWrapper):
    """``sys.stderr`` whose writes neither fail nor wait; see :class:`LineWriter`."""

    def __init__(self, descriptor: int) -> None:
        self._lines = LineWriter(descriptor)
        # RawIOBase has all that an unbuffered text layer calls.
        super().__init__(
            self._lines,  # type: ignore[arg-type]
            encoding="utf-8",
            errors="backslashreplace",
            write_through=True,
        )

    @property
    def dropped(self) -> int:
        """Number of writes that were dropped."""
        return self._lines.dropped

    @property
    def name(self) -> str:
        """As Python's own."""
        return "<stderr>"
