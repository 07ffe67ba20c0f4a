"""The durations in a task's specification, validated and bounded."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.model.flyte_types import Duration
from etcd_actions.model.taskaction import parse_time

LONGEST: Final = 100 * 365 * 86400.0
"""Seconds. A longer limit counts as none."""

_NANOS: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def limit_of(duration: Duration, field: str) -> float | None:
    """The seconds of a limit; None for no limit, which is zero, or `LONGEST` and more.

    Raises:
        InvalidArgument: It is negative, or its nanoseconds are out of range.
    """
    seconds = seconds_of(duration, field)
    return seconds if 0 < seconds < LONGEST else None


def seconds_of(duration: Duration, field: str) -> float:
    """The seconds of a duration, at most `LONGEST`.

    Raises:
        InvalidArgument: It is negative, or its nanoseconds are out of range.
    """
    if duration.seconds < 0 or duration.nanos < 0:
        raise InvalidArgument(field, "it is negative: give a time from 0 on")
    if duration.nanos >= _NANOS:
        raise InvalidArgument(
            field, f"{duration.nanos} nanoseconds are a second or more: give less than {_NANOS}"
        )
    return min(duration.seconds + duration.nanos / _NANOS, LONGEST)


def factor_of(factor: float, field: str) -> float:
    """A factor of growth; 0, which is not set, means 1.

    Raises:
        InvalidArgument: It is not a finite number from 1 on.
    """
    if factor == 0:
        return 1.0
    if not math.isfinite(factor) or factor < 1:
        raise InvalidArgument(field, f"{factor} is not a valid factor: give a number from 1 on")
    return factor


def age_of(timestamp: str, field: str, wall: float) -> float:
    """The seconds from a stored time to now, at most `LONGEST`.

    A time that cannot be parsed, or that lies ahead, gives 0: it is no reason to end an action.

    Args:
        timestamp: RFC 3339.
        field: Its path, for the error.
        wall: Now, in seconds since 1970.
    """
    try:
        time = parse_time(timestamp, field)
        age = 0.0 if time is None else wall - (time - _EPOCH).total_seconds()
    except (DecodeError, ValueError, OverflowError):
        return 0.0
    return min(max(age, 0.0), LONGEST)
