"""How far a watch is behind its store, in revisions and in seconds."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_MOST = 600


class Lag(NamedTuple):
    """How far a watch is behind.

    The store has one revision for all its keys: writes outside the watched prefix count until a
    progress notification.

    Attributes:
        revisions: How many revisions the watch has yet to deliver.
        seconds: How long ago the oldest of them was first read.
    """

    revisions: int = 0
    seconds: float = 0.0


class Heads:
    """The newest revisions of a store, and when they were first seen.

    Each is kept until the watch has reached it, a few hundred at most; the oldest counts.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque()

    def saw(self, head: int, now: float) -> None:
        """The store's newest revision was read."""
        seen = self._seen
        if seen and seen[-1][0] > head:
            # Another store, or an older copy of it.
            seen.clear()
        if not seen or (seen[-1][0] < head and len(seen) < _MOST):
            seen.append((head, now))
        elif seen[-1][0] < head:
            seen[-1] = (head, seen[-1][1])

    def lag(self, revision: int, now: float) -> Lag:
        """How far a watch is behind that delivered everything up to a revision."""
        seen = self._seen
        while seen and seen[0][0] <= revision:
            seen.popleft()
        return Lag(seen[-1][0] - revision, now - seen[0][1]) if seen else Lag()
