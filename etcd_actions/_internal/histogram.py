"""Counts durations in buckets; an observation takes one bisection."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""The upper bounds of the buckets in seconds; the last bucket has none."""
TASK_BOUNDS: Final = (
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0),
)
"""The same for work that may take a day."""


class Distribution(NamedTuple):
    """The counts of a histogram.

    Attributes:
        counts: The number of durations in each bucket, from above the bound before up to its own.
        seconds: The sum of all durations.
    """

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    seconds: float = 0.0

    def plus(self, other: Distribution) -> Distribution:
        """The counts of both; they have the same bounds."""
        counts = map(sum, zip(self.counts, other.counts, strict=True))
        return Distribution(tuple(counts), self.seconds + other.seconds)


class Histogram:
    """Counts durations. Only one thread may use it."""

    __slots__ = ("_bounds", "_counts", "_seconds")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._seconds += seconds

    def read(self) -> Distribution:
        """The present counts."""
        return Distribution(tuple(self._counts), self._seconds)
