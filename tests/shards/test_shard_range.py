"""Boundaries divide no run, ranges divide the scope, and shards are split at their median."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etcd_actions.errors import ConfigError
from etcd_actions.model import task_action_name
from etcd_actions.shards.shard_range import (
    MOST_INITIAL,
    ShardRange,
    boundary_before,
    divided,
    initial_ranges,
    is_boundary,
    scope_of,
    split_boundary,
    tiles,
)

FLYTE = scope_of("flyte")
ALL = scope_of(None)

ANY_NAME = st.text("aZ09.-_~+ ", min_size=1, max_size=8)
"""Characters on both sides of the dash in byte order, the dash, and those of boundaries."""
BOUNDARY_NAME = st.text("aZ09._", max_size=6)


def suffixes(runs: list[str], namespace: str = "flyte") -> list[bytes]:
    return [f"{namespace}/{run}-a0".encode() for run in runs]


@given(ANY_NAME, st.lists(ANY_NAME, max_size=4), BOUNDARY_NAME)
def test_a_boundary_divides_no_run(run: str, actions: list[str], name: str) -> None:
    """All keys of a run, that of its record too, are on one side of each boundary."""
    boundary = f"flyte/{name}".encode()
    assert is_boundary(boundary)
    keys = [f"flyte/{run}".encode()]
    keys += [f"flyte/{task_action_name(run, action)}".encode() for action in ["a0", *actions]]
    assert len({key < boundary for key in keys}) == 1


@given(ANY_NAME, ANY_NAME)
def test_the_boundary_before_a_key_is_that_of_its_run(run: str, action: str) -> None:
    suffix = f"flyte/{task_action_name(run, action)}".encode()
    boundary = boundary_before(suffix)
    assert boundary is not None
    assert is_boundary(boundary)
    assert boundary == boundary_before(f"flyte/{run}".encode())
    assert boundary <= f"flyte/{run}".encode() < suffix


@pytest.mark.parametrize(
    "text",
    [
        "",
        "flyte",
        "flyte/a-b",
        "flyte/a/b",
        "/a",
        "flyte/a b",
        "flyte/é",
        "-f/a",
        "flyte/a\n",
        "f-/a",
    ],
)
def test_other_texts_are_no_boundaries(text: str) -> None:
    assert not is_boundary(text.encode())


def test_a_boundary_that_would_divide_a_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="divides no run"):
        divided(FLYTE, [b"flyte/a-b"])
    for boundaries in ([b"flyte/b", b"flyte/a"], [b"flyte/a", b"flyte/a"], [b"other/a"], [b"a/b"]):
        with pytest.raises(ConfigError, match="not inside"):
            divided(FLYTE, boundaries)
    with pytest.raises(ConfigError, match="not inside"):
        divided(ShardRange(b"flyte/b", b"flyte/d"), [b"flyte/d"])


def test_the_keys_of_a_range() -> None:
    assert FLYTE == (b"flyte/", b"flyte0")
    assert FLYTE.keys(b"/p/") == (b"/p/flyte/", b"/p/flyte0")
    assert ALL.keys(b"/p/") == (b"/p/", b"/p0")
    assert ShardRange(b"flyte/r", b"").keys(b"/p/") == (b"/p/flyte/r", b"/p0")
    assert b"flyte/r1-a0" in FLYTE
    assert b"flyte2/r1-a0" not in FLYTE
    assert b"zz/r1-a0" in ALL


def test_ranges_that_do_not_divide_the_scope() -> None:
    first, second, third = divided(FLYTE, [b"flyte/b", b"flyte/c"])
    assert tiles([third, first, second], FLYTE)
    assert tiles([FLYTE], FLYTE)
    assert tiles([ALL], ALL)
    for ranges in (
        [],
        [first, third],
        [first, second],
        [second, third],
        [first, second, second, third],
        [first, second, third, ShardRange(b"flyte/bb", b"flyte/c")],
        [ShardRange(b"flyte/", b"flyte/b-b"), ShardRange(b"flyte/b-b", b"flyte0")],
        [ALL],
    ):
        assert not tiles(ranges, FLYTE), ranges


@given(
    st.sampled_from([FLYTE, ALL]),
    st.integers(1, MOST_INITIAL),
    st.lists(ANY_NAME, max_size=300),
)
def test_the_first_ranges_divide_the_scope(scope: ShardRange, count: int, runs: list[str]) -> None:
    ranges = initial_ranges(scope, count, suffixes(runs))
    assert tiles(ranges, scope)
    assert len(ranges) <= count


def test_few_runs_are_divided_by_an_alphabet() -> None:
    ranges = initial_ranges(FLYTE, 16, suffixes(["train-1", "train-2"]))
    assert len(ranges) == 16
    assert ranges[1] == (b"flyte/r29", b"flyte/r4i")
    names = [f"r{first}{second}xk" for first in "0369cfilorux" for second in "05afkpuz"]
    loads = [sum(key in each for key in suffixes(names)) for each in ranges]
    assert max(loads) <= 2 * len(names) / 16
    assert len(initial_ranges(ALL, 16, [])) == 16


def test_many_runs_are_divided_by_their_quantiles() -> None:
    runs = suffixes([f"t{number:04d}" for number in range(1000)])
    ranges = initial_ranges(FLYTE, 8, runs)
    assert [sum(key in each for key in runs) for each in ranges] == [125] * 8


def test_no_number_of_shards() -> None:
    for count in (0, -1, MOST_INITIAL + 1):
        with pytest.raises(ConfigError, match="give 1 to"):
            initial_ranges(FLYTE, count, [])


def test_a_shard_is_split_at_its_median() -> None:
    keys = [f"flyte/r{number:02d}-a{action}".encode() for number in range(10) for action in "0123"]
    assert split_boundary(FLYTE, keys) == b"flyte/r05"
    assert split_boundary(ShardRange(b"flyte/r08", b"flyte0"), keys) == b"flyte/r09"
    # One run has nearly all keys: it is one part.
    keys += [f"flyte/r03-b{number}".encode() for number in range(100)]
    assert split_boundary(FLYTE, keys) == b"flyte/r04"


@pytest.mark.parametrize("runs", [[], ["r1"], ["train-1", "train-2", "train-300"], ["+a", " b"]])
def test_a_shard_of_one_group_cannot_be_split(runs: list[str]) -> None:
    assert split_boundary(FLYTE, suffixes(runs)) is None
    assert split_boundary(ShardRange(b"flyte/r1", b"flyte0"), suffixes(["a", "r1-x"])) is None


@example(["00", "0~"])
@given(st.lists(ANY_NAME, min_size=1, max_size=50))
def test_both_parts_of_a_split_have_keys(runs: list[str]) -> None:
    keys = suffixes(runs)
    boundary = split_boundary(FLYTE, keys)
    groups = {group for key in keys if (group := boundary_before(key)) is not None}
    if boundary is None:
        # No group has keys below it. A name such as 0~ is above all names of its own group 0.
        assert not any(key < group for key in keys for group in groups)
        return
    parts = divided(FLYTE, [boundary])
    assert all(any(key in part for key in keys) for part in parts)
