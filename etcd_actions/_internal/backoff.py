"""How long to wait before the next try."""

from __future__ import annotations

import random
from typing import NamedTuple


class Backoff(NamedTuple):
    """Exponential delays with jitter, in seconds.

    ``delay(n)`` is for the n-th failure in a row, from 1 on: it doubles from ``initial`` to
    ``cap``, and a random half of it is taken off, so that many clients that failed together
    do not come back together.
    """

    initial: float
    cap: float

    def delay(self, failures: int) -> float:
        """The delay after ``failures`` failures in a row (at least 1)."""
        doubled = self.initial * 2.0 ** min(failures - 1, 63)
        return min(self.cap, doubled) * random.uniform(0.5, 1.0)
