"""The delays between attempts."""

from __future__ import annotations

import math
import random
from typing import NamedTuple, final

import trio


class Backoff(NamedTuple):
    """Exponential delays with jitter, in seconds.

    The delay doubles with each failure, from ``initial`` to ``cap``. It is multiplied by a random
    factor between 0.5 and 1, so that many clients that failed together do not retry together.
    """

    initial: float
    cap: float

    def delay(self, failures: int) -> float:
        """The delay after ``failures`` (at least 1) failures in a row."""
        doubled = self.initial * 2.0 ** min(failures - 1, 63)
        return min(self.cap, doubled) * random.uniform(0.5, 1.0)


@final
class Restarts:
    """The delays before work that failed is started again.

    Work that lasted longer than the cap had recovered: its failure is the first one in a row.

    Args:
        backoff: The delays.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self._began = math.inf

    def begin(self) -> None:
        """Note that the work starts."""
        self._began = trio.current_time()

    def delay(self) -> float:
        """Count a failure of the work; returns the seconds until it is to start again."""
        has_recovered = trio.current_time() - self._began > self._backoff.cap
        self._failures = 1 if has_recovered else self._failures + 1
        return self._backoff.delay(self._failures)
