"""How far a watch is behind, by what was read of the store."""

from __future__ import annotations

from etcd_actions.monitoring.lag import Heads, Lag


def test_nothing_was_read() -> None:
    assert Heads().lag(7, 100.0) == Lag(0, 0.0)


def test_a_watch_that_came_up_has_no_lag() -> None:
    heads = Heads()
    heads.saw(10, 1.0)
    assert heads.lag(9, 3.0) == Lag(1, 2.0)
    assert heads.lag(10, 4.0) == Lag(0, 0.0)
    assert heads.lag(12, 5.0) == Lag(0, 0.0)


def test_the_oldest_that_is_missing_counts() -> None:
    """A watch that goes on, always as far behind, has that lag."""
    heads = Heads()
    for second in range(100):
        heads.saw(10 * second, float(second))
        if second >= 5:
            assert heads.lag(10 * (second - 5), float(second)) == Lag(50, 4.0)


def test_a_head_that_stays_is_as_old_as_when_it_was_first_read() -> None:
    heads = Heads()
    heads.saw(10, 1.0)
    heads.saw(10, 5.0)
    assert heads.lag(9, 6.0) == Lag(1, 5.0)


def test_a_watch_that_stands_still_is_measured_from_the_beginning() -> None:
    heads = Heads()
    for second in range(5000):
        heads.saw(10 + second, float(second))
    assert heads.lag(9, 5000.0) == Lag(5000, 5000.0)
    assert heads.lag(5009, 5001.0) == Lag(0, 0.0)


def test_a_head_counts_once_the_watch_had_the_time_to_reach_it() -> None:
    """Writes of other keys reach a watch late, so a healthy one is always a little behind."""
    heads = Heads()
    heads.saw(10, 1.0)
    assert heads.lag(9, 3.0, patience=2.0) == Lag(0, 0.0)
    heads.saw(12, 3.5)
    assert heads.lag(9, 3.5, patience=2.0) == Lag(3, 2.5)
    assert heads.lag(10, 5.0, patience=2.0) == Lag(0, 0.0)


def test_another_store_is_not_measured_by_the_one_before() -> None:
    heads = Heads()
    heads.saw(1000, 1.0)
    heads.saw(5, 2.0)
    assert heads.lag(5, 3.0) == Lag(0, 0.0)
    heads.saw(6, 4.0)
    assert heads.lag(5, 5.0) == Lag(1, 1.0)
