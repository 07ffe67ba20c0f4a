"""The lag of a watch behind its store, in revisions and in seconds."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_MOST = 600


class Lag(NamedTuple):
    """The lag of a watch.

    The store has one revision for all its keys, and the watch reaches those of other keys only
    with a progress notification. So a revision counts once the watch has had the time for that.

    Attributes:
        revisions: The number of revisions that the watch has yet to deliver; 0 while the oldest of
            them is too young to count.
        seconds: The time since the oldest of them was first read; 0 likewise.
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

    def lag(self, revision: int, now: float, patience: float = 0.0) -> Lag:
        """The lag of a watch.

        Args:
            revision: It delivered everything up to this one.
            now: The time.
            patience: Seconds that a watch without lag may take to reach a revision.
        """
        seen = self._seen
        while seen and seen[0][0] <= revision:
            seen.popleft()
        if not seen or now - seen[0][1] <= patience:
            return Lag()
        return Lag(seen[-1][0] - revision, now - seen[0][1])
