"""Which actions a call of unknown outcome may still reach."""

from __future__ import annotations

from etcd_actions.run_service.unsettled import Unsettled


def test_the_newest_call_counts() -> None:
    unsettled = Unsettled()
    assert unsettled.until(b"a") < 0
    unsettled.note(b"a", 10.0, now=1.0)
    unsettled.note(b"a", 12.0, now=3.0)
    assert unsettled.until(b"a") == 12.0
    assert unsettled.until(b"b") < 0


def test_what_is_over_is_forgotten() -> None:
    """An outage of the run service must not leave a trace of every action for ever."""
    unsettled = Unsettled()
    for number in range(1000):
        unsettled.note(b"%d" % number, number + 5.0, now=float(number))
    assert len(unsettled) <= 6
    unsettled.note(b"late", 2000.0, now=1999.0)
    assert len(unsettled) == 1
    unsettled.note(b"at once", 2000.0, now=2000.0)
    assert len(unsettled) == 0
