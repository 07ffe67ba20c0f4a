"""Cutting a prefix into ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.etcd.api import KeyRange
from etcd_actions.watch.ranges import split

_WHOLE = KeyRange.of_prefix(b"/t/")


@given(st.integers(1, 16), st.lists(st.binary(min_size=1, max_size=4), max_size=400))
def test_ranges_are_adjacent_and_cover_the_whole(count: int, names: list[bytes]) -> None:
    """Whatever the keys, no key is outside and none is in two ranges."""
    keys = {b"/t/" + name for name in names}
    ranges = split(_WHOLE, count, keys, likely_prefix=b"/t/ns/r")
    assert ranges[0].start == _WHOLE.start
    assert ranges[-1].end == _WHOLE.end
    assert [r.end for r in ranges[:-1]] == [r.start for r in ranges[1:]]
    assert all(r.start < r.end for r in ranges)
    assert len(ranges) <= count


def test_many_keys_are_cut_evenly() -> None:
    """Quantiles of the keys decide."""
    keys = {b"/t/ns/x%05d" % number for number in range(10_000)}
    ranges = split(_WHOLE, 4, keys, likely_prefix=b"/t/ns/r")
    sizes = [sum(key in range_ for key in keys) for range_ in ranges]
    assert sizes == [pytest.approx(2_500, abs=250)] * 4


def test_few_keys_are_cut_by_the_next_letter_of_likely_names() -> None:
    """Flyte's run names begin with r and a random letter or digit."""
    ranges = split(_WHOLE, 4, set(), likely_prefix=b"/t/ns/r")
    assert [r.start for r in ranges] == [b"/t/", b"/t/ns/r9", b"/t/ns/ri", b"/t/ns/rr"]
