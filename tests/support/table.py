"""Tables whose cases are tried in one test.

For pytest each case of ``parametrize`` is a test of its own, which takes some milliseconds for its
collection, its fixtures and its reports: more than most cases of a table do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

_Test = Callable[..., None]

_PARAM = type(pytest.param())


def table(
    names: str | Sequence[str],
    cases: Iterable[Any],
    ids: Callable[[Any], object] | Sequence[object] | None = None,
) -> Callable[[_Test], _Test]:
    """Try all cases of a table in one test; it takes the arguments of ``parametrize``.

    For functions that are not async. A case must leave nothing behind: the other arguments are
    fixtures, which all cases share. Each case that fails is reported, with its id.
    """
    split = [each.strip() for each in names.split(",")] if isinstance(names, str) else list(names)
    rows = [_row(split, case) for case in cases]
    if not rows:
        raise ValueError("a table without a case")

    def decorate(test: _Test) -> _Test:
        @functools.wraps(test)
        def all_cases(**fixtures: Any) -> None:
            failures: list[BaseException] = []
            for number, row in enumerate(rows):
                try:
                    test(**fixtures, **row)
                except (Exception, pytest.fail.Exception) as error:
                    error.add_note(f"case {_name(ids, number, row)}")
                    failures.append(error)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(rows)} cases", failures)

        signature = inspect.signature(test)
        left = [each for name, each in signature.parameters.items() if name not in split]
        if len(left) != len(signature.parameters) - len(split):
            raise TypeError(f"{test.__name__} does not take {split}")
        all_cases.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return all_cases

    return decorate


def _row(names: list[str], case: Any) -> dict[str, Any]:
    if isinstance(case, _PARAM):
        if case.marks:
            raise ValueError(f"a case of a table has no marks of its own: {case}")
        values: Sequence[Any] = case.values
    else:
        values = [case] if len(names) == 1 else case
    return dict(zip(names, values, strict=True))


def _name(
    ids: Callable[[Any], object] | Sequence[object] | None, number: int, row: dict[str, Any]
) -> str:
    if ids is None:
        return f"{number}: {row!r:.300}"
    if callable(ids):
        return "-".join(str(ids(value)) for value in row.values())
    return str(ids[number])
