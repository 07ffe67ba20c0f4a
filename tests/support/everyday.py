"""Which of a test's cases the everyday suite runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import hypothesis
import pytest

EVERYDAY = "not faults and not slow"
"""The expression of marks of the everyday suite."""

EXAMPLES = 5
"""How many the everyday suite draws for a property; all other runs draw Hypothesis's hundred."""

_PARAM = type(pytest.param())


def first_everyday(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """Cases for ``parametrize``: those after the first ``count`` are marked ``slow``.

    For families in which one case shows that the promise holds, and the others vary what it
    holds for: the everyday suite has one of them, CI has all.
    """
    found = list(cases)
    return [*found[:count], *map(_slow, found[count:])]


def examples(count: int) -> int:
    """``max_examples`` where a hundred are too few or too many: so many, fewer every day."""
    return max(5, count * hypothesis.settings().max_examples // 100)


def _slow(case: Any) -> Any:
    if isinstance(case, _PARAM):
        return pytest.param(*case.values, marks=[*case.marks, pytest.mark.slow], id=case.id)
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
