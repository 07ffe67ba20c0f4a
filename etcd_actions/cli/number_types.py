"""Numbers on the command line: plain digits, within limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from etcd_actions._internal.quoting import quoted

_Value = TypeVar("_Value", bound=float)

_MOST_COUNT: Final = 2**32 - 1
# One event in about twelve days: a slower replay would not end.
_LEAST_RATE: Final = 1e-6
_RATE: Final = r"(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][0-9]{1,2})?"


class _Number(click.ParamType[_Value]):
    """A number that a function parses.

    Args:
        name: The name of such a value in click's messages.
        parse: Parses it. The text of its ``ValueError`` quotes the value.
    """

    def __init__(self, name: str, parse: Callable[[str], _Value]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> _Value:
        """The number; a default is one already. See click."""
        if not isinstance(value, str):
            number: _Value = value
            return number
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not 1 <= int(text) <= _MOST_COUNT:
        raise ValueError(f"{quoted(text)} is not a number from 1 to {_MOST_COUNT}")
    return int(text)


def _rate(text: str) -> float:
    if not re.fullmatch(_RATE, text) or float(text) < _LEAST_RATE:
        raise ValueError(f"{quoted(text)} is not a number a second: give one above 0, such as 100")
    return float(text)


def _seconds(text: str) -> float:
    from etcd_actions.config.values import positive_duration  # noqa: PLC0415 (rarely needed)

    return positive_duration(text)


def _age(text: str) -> float:
    from etcd_actions.config.values import duration  # noqa: PLC0415 (slow to import)

    days, rest = 0, text
    if match := re.match("([0-9]{1,5})d", text):
        days, rest = int(match[1]), text[match.end() :]
    try:
        return days * 86_400 + (duration(rest) if rest or not days else 0.0)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not an age: give one such as 12h or 30d") from None


COUNT: Final = _Number("integer", _count)
"""A positive number, up to the limit of the fields of Flyte's messages."""

RATE: Final = _Number("float", _rate)
"""A number a second, above 0."""

SECONDS: Final = _Number("duration", _seconds)
"""A duration as in the settings, such as 90s, 5m or 1h30m; in seconds."""

AGE: Final = _Number("duration", _age)
"""A time before now, such as ``12h``, ``30d`` or ``1d12h``, in seconds; 0 for now."""
