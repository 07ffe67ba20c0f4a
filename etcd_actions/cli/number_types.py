"""Numbers on the command line: plain digits, within limits."""

from __future__ import annotations

import re
from typing import Final

import click

from etcd_actions._internal.quoting import quoted

_MOST_COUNT: Final = 2**32 - 1
# One event in some twelve days: a slower replay never ends.
_LEAST_RATE: Final = 1e-6
_RATE: Final = r"(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][0-9]{1,2})?"


class Count(click.ParamType[int]):
    """A positive number, up to the limit of the fields of Flyte's messages."""

    name = "integer"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The number; see click."""
        if isinstance(value, int):
            return value
        if not re.fullmatch("[0-9]{1,10}", value) or not 1 <= int(value) <= _MOST_COUNT:
            self.fail(f"{quoted(value)} is not a number from 1 to {_MOST_COUNT}.", param, ctx)
        return int(value)


class Rate(click.ParamType[float]):
    """A number a second, above 0."""

    name = "float"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; see click."""
        if not isinstance(value, str):
            return value
        if not re.fullmatch(_RATE, value) or float(value) < _LEAST_RATE:
            problem = "is not a number a second: give one above 0, such as 100."
            self.fail(f"{quoted(value)} {problem}", param, ctx)
        return float(value)


class Seconds(click.ParamType[float]):
    """A duration as in the settings, such as 90s, 5m or 1h30m; in seconds."""

    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number of seconds; see click."""
        if not isinstance(value, str):
            return value
        from etcd_actions.config.values import positive_duration  # noqa: PLC0415 (rarely needed)

        try:
            return positive_duration(value)
        except ValueError as error:
            self.fail(f"{quoted(value)} {error}.", param, ctx)


class Age(click.ParamType[float]):
    """A time before now, such as ``12h``, ``30d`` or ``1d12h``, in seconds; 0 for now."""

    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The seconds; see click."""
        if not isinstance(value, str):
            return value
        from etcd_actions.config.values import duration  # noqa: PLC0415 (slow to import)

        days, rest = 0, value
        if match := re.match("([0-9]{1,5})d", value):
            days, rest = int(match[1]), value[match.end() :]
        try:
            return days * 86_400 + (duration(rest) if rest or not days else 0.0)
        except ValueError:
            self.fail(f"{quoted(value)} is not an age: give one such as 12h or 30d.", param, ctx)
