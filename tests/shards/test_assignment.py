"""Shards are assigned evenly, alike by all members, and few of them move."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.shards.assignment import assign, ranked
from tests.support.everyday import first_everyday

NAMES = st.sets(st.integers(0, 99).map(lambda number: f"host/{number}/x"), min_size=1, max_size=9)
IDS = st.sets(st.integers(0, 999), max_size=40)


@given(IDS, NAMES)
def test_the_loads_are_bounded(shards: set[int], members: set[str]) -> None:
    targets = assign(shards, members)
    assert targets.keys() == shards
    most = -(-len(shards) // len(members))
    assert all(load <= most for load in Counter(targets.values()).values())
    assert targets == assign(sorted(shards, reverse=True), sorted(members, reverse=True))


def test_without_members_no_shard_is_assigned() -> None:
    assert assign(range(4), []) == {}
    assert ranked(1, []) == []


def test_all_versions_rank_alike() -> None:
    """Another hash would make two versions of a rolling upgrade disagree."""
    assert ranked(0, "abc") == ["c", "a", "b"]
    assert ranked(2, "abc") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("before", "after", "least", "most"),
    first_everyday(
        [
            (2, 3, 5, 6),
            (3, 4, 4, 5.5),
            (4, 8, 8, 9.5),
            (3, 8, 10, 11),
            (8, 7, 2, 5.5),
            (3, 2, 5, 6),
        ],
        2,
    ),
)
def test_few_of_16_shards_move(before: int, after: int, least: int, most: float) -> None:
    """Means over 100 sets of names, next to the least that any even assignment moves."""
    total = 0
    for number in range(100):
        names = [f"host-{number}/{member}" for member in range(max(before, after))]
        old, new = assign(range(16), names[:before]), assign(range(16), names[:after])
        total += sum(old[shard] != new[shard] for shard in old)
    assert least <= total / 100 <= most
