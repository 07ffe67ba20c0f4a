"""How often in a row something failed for each action, and how long to wait then."""

from __future__ import annotations

from typing import Final

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.clock import Clock

PARKED: Final = Backoff(initial=0.2, cap=30.0)
"""After what should not happen."""
DELAYED: Final = Backoff(initial=0.2, cap=5.0)
"""While etcd is away, or an action is not what it was."""
PATIENCE: Final = 3
"""How often an action may be not what it was, between two looks, before that is a failure."""


class Failures:
    """Counts the failures of actions that are not over.

    Args:
        clock: What the times are on.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[str, int] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._counts

    def count(self, name: str) -> int:
        """How often in a row."""
        return self._counts.get(name, 0)

    def again(self, name: str, backoff: Backoff) -> float:
        """Count one more; gives when it is tried again."""
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return self._clock.monotonic() + backoff.delay(count)

    def drop(self, name: str) -> None:
        """It goes on, or is over."""
        self._counts.pop(name, None)
