"""The lag of a watch behind its store, in revisions and in seconds."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_MOST = 600


class Lag(NamedTuple):
    """The lag of a watch.

    The store has one revision for all its keys: writes outside the watched prefix count until a
    progress notification.

    Attributes:
        revisions: The number of revisions that the watch has yet to deliver.
        seconds: The time since the oldest of them was first read.
    """

    revisions: int = 0
    seconds: float = 0.0


class Heads:
    """The newest revisions of a store, and the times at which they were first read.

    Each is kept until the watch has reached it, at most a few hundred. The oldest gives the lag in
    seconds.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque()

    def saw(self, head: int, now: float) -> None:
        """Note that the store's newest revision was read."""
        seen = self._seen
        if seen and seen[-1][0] > head:
            # The store was replaced, or restored from an older copy.
            seen.clear()
        if not seen or (seen[-1][0] < head and len(seen) < _MOST):
            seen.append((head, now))
        elif seen[-1][0] < head:
            seen[-1] = (head, seen[-1][1])

    def lag(self, revision: int, now: float) -> Lag:
        """The lag of a watch that delivered everything up to a revision."""
        seen = self._seen
        while seen and seen[0][0] <= revision:
            seen.popleft()
        return Lag(seen[-1][0] - revision, now - seen[0][1]) if seen else Lag()
