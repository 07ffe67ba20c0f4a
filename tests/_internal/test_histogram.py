"""Durations in buckets."""

from __future__ import annotations

import pytest

from etcd_actions._internal.histogram import BOUNDS, Histogram


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (BOUNDS[0], 0), (0.0002, 1), (1.0, BOUNDS.index(1.0)), (31.0, len(BOUNDS))],
)
def test_each_is_counted_in_the_first_bucket_that_holds_it(seconds: float, bucket: int) -> None:
    """A bound is of its own bucket, as Prometheus has it; what is longer is in the last."""
    histogram = Histogram()
    for _ in range(3):
        histogram.observe(seconds)
    counts, total = histogram.read()
    assert counts[bucket] == sum(counts) == 3
    assert total == pytest.approx(3 * seconds)
    assert sorted(set(BOUNDS)) == list(BOUNDS)
