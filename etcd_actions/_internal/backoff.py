"""The delays between attempts."""

from __future__ import annotations

import random
from typing import NamedTuple


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
