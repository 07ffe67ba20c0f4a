"""Numbers on the command line: plain digits, within limits."""

from __future__ import annotations

import re
from typing import Final, NoReturn

import click

from etcd_actions._internal.quoting import quoted

_MOST_COUNT: Final = 2**32 - 1
# One event in some twelve days: what is slower never ends.
_LEAST_RATE: Final = 1e-6


class Count(click.ParamType[int]):
    """A whole number from 1 on, as many as a field of Flyte's messages can hold."""

    name = "integer"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The number; see click."""
        if isinstance(value, int):
            return value
        if not re.fullmatch("[0-9]{1,10}", value) or not 1 <= int(value) <= _MOST_COUNT:
            self.fail(f"{quoted(value)} is no number from 1 to {_MOST_COUNT}.", param, ctx)
        return int(value)


class Rate(click.ParamType[float]):
    """So many a second, above 0."""

    name = "float"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; see click."""
        if not isinstance(value, str):
            return value
        if not re.fullmatch(
            r"(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][0-9]{1,2})?", value
        ):
            self._refuse(value, param, ctx)
        rate = float(value)
        if rate < _LEAST_RATE:
            self._refuse(value, param, ctx)
        return rate

    def _refuse(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> NoReturn:
        self.fail(
            f"{quoted(value)} is no number a second: give one above 0, such as 100.", param, ctx
        )
