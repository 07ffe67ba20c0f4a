"""A standard error whose writes neither fail nor wait.

A line that cannot be written, because the disk is full or the reader has ended or does not read,
is dropped and counted, and the work continues. This module has no slow import.
"""

from __future__ import annotations

import io
import os
import select
import stat
import threading
from typing import Any, Final

# POSIX: a pipe with capacity accepts this many bytes atomically.
_PIECE: Final = 4096


class LineWriter(io.RawIOBase):
    """Writes to a descriptor without waiting for its reader.

    Each write is one line or more. It is written completely, or dropped, or, if a pipe became
    full, completed before the next write. Its methods may be called from any thread.

    Attributes:
        dropped: Number of writes that were dropped.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._rest = b""
        self._truncated = False
        self._failures = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        try:
            self._waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        except OSError:
            self._waits = False

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, text: Any, /) -> int:
        """Write or drop all of it; returns its length."""
        line = bytes(text)
        with self._lock:
            self._rest = self._push(self._rest)
            if self._rest:
                self.dropped += 1
                return len(line)
            data = b"\n" + line if self._truncated and not line.startswith(b"\n") else line
            failures = self._failures
            rest = self._push(data)
            if self._failures > failures or (line and len(rest) == len(data)):
                self.dropped += 1
            else:
                self._rest = rest
        return len(line)

    def _push(self, data: bytes) -> bytes:
        """Write as much as the descriptor accepts without waiting; returns the rest."""
        view = memoryview(data)
        while view:
            try:
                if self._waits and not self._has_capacity():
                    break
                written = os.write(self._descriptor, view[:_PIECE] if self._waits else view)
            except BlockingIOError:
                # Another process with the same file made it non-blocking.
                break
            except OSError:
                self._failures += 1
                # A full disk can have accepted a part of it.
                self._truncated = self._truncated or len(view) < len(data)
                return b""
            self._truncated = False
            view = view[written:]
        return bytes(view)

    def _has_capacity(self) -> bool:
        return any(event & select.POLLOUT for _, event in self._poll.poll(0))


class TolerantStderr(io.TextIOWrapper):
    """``sys.stderr`` whose writes neither fail nor wait; see :class:`LineWriter`."""

    def __init__(self, descriptor: int) -> None:
        self._lines = LineWriter(descriptor)
        # RawIOBase has all methods that an unbuffered text layer calls.
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
