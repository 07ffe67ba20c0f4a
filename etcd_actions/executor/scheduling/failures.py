"""The failures in a row of each action, and the times of the retries."""

from __future__ import annotations

from typing import Final

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.clock import Clock

PARKED: Final = Backoff(initial=0.2, cap=30.0)
"""The delays after an unexpected failure."""
DELAYED: Final = Backoff(initial=0.2, cap=5.0)
"""The delays while etcd is unavailable, or an action is in an unexpected state."""
PATIENCE: Final = 3
"""Unexpected states of an action in a row before it counts as a failure."""


class Failures:
    """Counts the failures of actions that are not terminal."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[str, int] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._counts

    def count(self, name: str) -> int:
        """The failures of an action in a row."""
        return self._counts.get(name, 0)

    def again(self, name: str, backoff: Backoff) -> float:
        """Count a failure, and return when the action is retried, on the monotonic clock."""
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return self._clock.monotonic() + backoff.delay(count)

    def drop(self, name: str) -> None:
        """Forget the failures of an action that works, or is terminal."""
        self._counts.pop(name, None)
