"""How far a watch is behind its store, in revisions and in seconds."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_MOST = 600


class Lag(NamedTuple):
    """How far a watch is behind.

    A store has one revision for all that is in it: what is written elsewhere counts, until etcd
    tells the watch that nothing of it was meant for it.
    """

    revisions: int = 0
    """How many revisions the watch has yet to hear of."""

    seconds: float = 0.0
    """How long ago the oldest of them was seen."""


class Heads:
    """The newest revisions of a store, and when they were first seen.

    They are kept until a watch has come up with them, a few hundred at most: of a watch that
    stands still the oldest one counts.
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
        """How far a watch is behind that gave out all up to a revision."""
        seen = self._seen
        while seen and seen[0][0] <= revision:
            seen.popleft()
        return Lag(seen[-1][0] - revision, now - seen[0][1]) if seen else Lag()
