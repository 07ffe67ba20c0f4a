"""Runs a block again after expected errors, with growing delays, until it succeeds.

    async for attempt in retrying(backoff, on=EtcdError, report=seldom(_log, "not_saved")):
        with attempt:
            await save()

A body that ends without an error ends the loop, and so do ``return`` and ``break``. An expected
error is reported, and the body runs again after a delay. Any other error, and a cancellation, is
raised.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeGuard

import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions.errors import first_error

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...]


class Report(Protocol):
    """Notes a failure: the error, its number in a row, the seconds until the next attempt."""

    def __call__(self, error: Exception, failures: int, delay: float, /) -> object:
        """Called before the delay; it does not wait."""


def seldom(log: FilteringBoundLogger, event: str, **fields: object) -> Report:
    """A report that logs the first, second, fourth ... failure in a row, as a warning."""

    def report(error: Exception, failures: int, delay: float, /) -> None:
        if failures & (failures - 1) == 0:
            retry_in = round(delay, 3)
            log.warning(event, **fields, error=str(error), failures=failures, retry_in=retry_in)

    return report


def retrying(
    backoff: Backoff,
    *,
    on: Errors,
    report: Report,
    unless: Errors = (),
    until: float = math.inf,
) -> Attempts:
    """The attempts of a loop, one after the other.

    Args:
        backoff: The delays.
        on: The expected errors, which are followed by another attempt. An exception group is
            expected if all its errors are; otherwise the other errors are raised.
        report: Called for each expected error.
        unless: Subclasses of ``on`` that are raised nevertheless.
        until: The time, on trio's clock, from which on each error is raised; by default there is
            none.
    """
    return Attempts(backoff, on, report, unless, until)


class Attempts:
    """The attempts of one loop, and the context of each; :func:`retrying` makes it."""

    def __init__(
        self, backoff: Backoff, on: Errors, report: Report, unless: Errors, until: float
    ) -> None:
        self._backoff = backoff
        self._on = on
        self._report = report
        self._unless = unless
        self._until = until
        self._failures = 0
        self._delay = 0.0
        self._done = False

    def __aiter__(self) -> Attempts:
        return self

    async def __anext__(self) -> Attempts:
        """The next attempt, after its delay. Without a delay it is not a cancellation point."""
        if self._done:
            raise StopAsyncIteration
        if self._delay:
            await trio.sleep(self._delay)
        return self

    def __enter__(self) -> Attempts:
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool:
        if error is None:
            self._done = True
            return False
        expected, rest = self._split(error)
        if expected is None or (rest is None and trio.current_time() >= self._until):
            return False
        self._failures += 1
        self._delay = self._backoff.delay(self._failures)
        self._report(expected, self._failures, self._delay)
        if rest is not None:
            raise rest from None
        return True

    def recovered(self) -> None:
        """Note that the present attempt works: its failure counts as the first in a row."""
        self._failures = 0

    def _split(self, error: BaseException) -> tuple[Exception | None, BaseException | None]:
        """The expected part of an error, and the rest."""
        if not isinstance(error, BaseExceptionGroup):
            return (error, None) if self._is_expected(error) else (None, error)
        # Python 3.11 does not accept a bound method as the condition.
        expected, rest = error.split(lambda each: self._is_expected(each))  # noqa: PLW0108
        return (None if expected is None else first_error(expected)), rest

    def _is_expected(self, error: BaseException) -> TypeGuard[Exception]:
        return isinstance(error, self._on) and not isinstance(error, self._unless)
