"""A table tries all of its cases, and reports those that fail."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tests.support.table import table


def test_all_cases_are_tried_and_each_failure_is_named(tmp_path: Path) -> None:
    tried = []

    @table("left", [1, 2])
    @table(("right", "wanted"), [("a", 1), ("b", 2), ("c", 1)], ids=["A", "B", "C"])
    def test_equal(left: int, right: str, wanted: int, tmp_path: Path) -> None:
        tried.append((left, right, tmp_path))
        assert left == wanted

    assert list(inspect.signature(test_equal).parameters) == ["tmp_path"]
    with pytest.raises(BaseExceptionGroup) as caught:
        test_equal(tmp_path=tmp_path)
    assert tried == [(left, right, tmp_path) for left in (1, 2) for right in "abc"]
    first, second = caught.value.exceptions
    assert first.__notes__ == ["case B", "case 0: {'left': 1}"]
    assert isinstance(second, BaseExceptionGroup)
    assert [each.__notes__ for each in second.exceptions] == [["case A"], ["case C"]]


def test_a_case_in_which_nothing_was_raised_fails() -> None:
    @table("value", ["7"], ids=repr)
    def test_refused(value: str) -> None:
        with pytest.raises(ValueError, match="x"):
            int(value)

    with pytest.raises(pytest.fail.Exception) as caught:
        test_refused()
    assert caught.value.__notes__ == ["case '7'"]


def test_a_table_must_fit() -> None:
    with pytest.raises(ValueError, match="without a case"):
        table("value", [])
    with pytest.raises(TypeError, match="does not take"):
        table("other", [1])(test_a_table_must_fit)
