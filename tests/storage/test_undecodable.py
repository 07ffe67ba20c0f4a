"""Which values cannot be read, and since when."""

from __future__ import annotations

from etcd_actions.storage.undecodable import Undecodable


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_the_first_that_cannot_be_read_tells_since_when() -> None:
    values = Undecodable(Clock())
    assert (len(values), values.since) == (0, None)
    for key in (b"a", b"b", b"c"):
        values.add(key, "why")
    assert (values.reasons(), values.since) == ({b"a": "why", b"b": "why", b"c": "why"}, 1)
    values.add(b"a", "another reason")
    assert (values.reasons()[b"a"], values.since) == ("another reason", 1)
    values.forget(b"a")
    assert (len(values), values.since) == (2, 2)
    values.add(b"a", "again")
    assert values.since == 2


def test_another_list_makes_nothing_younger() -> None:
    """What it finds good, or not at all, is not remembered for ever."""
    values = Undecodable(Clock())
    for key in (b"a", b"b"):
        values.add(key, "why")
    values.begin_again()
    assert (len(values), values.since) == (0, None)
    values.add(b"b", "why")
    assert values.since == 2
    values.begin_again()
    values.begin_again()
    values.add(b"a", "why")
    assert values.since == 4
