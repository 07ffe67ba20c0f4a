"""The first cases stay everyday ones; the others keep their values, names and marks."""

from __future__ import annotations

import hypothesis
import pytest

from tests.support.everyday import examples, first_everyday

CASES = [
    "plain",
    ("two", "values"),
    pytest.param("named", id="name"),
    pytest.param("marked", marks=pytest.mark.faults),
]


def marks(case: object) -> list[str]:
    return [mark.name for mark in getattr(case, "marks", ())]


def test_the_first_are_as_they_were() -> None:
    assert first_everyday(CASES, 3)[:3] == CASES[:3]
    assert first_everyday(CASES[:1]) == CASES[:1]


def test_the_others_are_slow_and_else_the_same() -> None:
    others = first_everyday(CASES, 0)
    assert [each.values for each in others] == [
        ("plain",),
        ("two", "values"),
        ("named",),
        ("marked",),
    ]
    assert [each.id for each in others] == [None, None, "name", None]
    assert [marks(each) for each in others] == [["slow"], ["slow"], ["slow"], ["faults", "slow"]]


@pytest.mark.parametrize(("profile", "found"), [("many", [400, 30, 5]), ("everyday", [20, 5, 5])])
def test_examples_are_fewer_every_day(profile: str, found: list[int]) -> None:
    before = hypothesis.settings.get_current_profile_name()
    hypothesis.settings.load_profile(profile)
    try:
        assert [examples(each) for each in (400, 30, 2)] == found
    finally:
        hypothesis.settings.load_profile(before)
