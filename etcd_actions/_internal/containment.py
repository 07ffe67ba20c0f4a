"""Boundaries around units of work that come from outside.

A unit is a connection, a request, an action, an attempt, a stored value, a file of a task, a log
line. An exception inside the boundary, of any type, ends or parks that unit alone. It is counted,
and logged once with the unit's identity. A parked unit is listed until it works again, so that
readiness can report it to an operator.

Two exceptions pass through every boundary: a cancellation, which belongs to the task that
cancelled, and KeyboardInterrupt, which belongs to the operator.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.logger import get_logger

# Log lines about one kind of unit: at once, and for each second after that.
_LINES: Final = 20.0
_LINES_PER_SECOND: Final = 1.0
_MOST_PARKED: Final = 10_000
_LONGEST: Final = 1_000
"""Characters of an identity or an error that are kept and logged; they may come from outside."""
_BACKOFF: Final = Backoff(initial=0.2, cap=30.0)

_log = get_logger(__name__)


class Parked(NamedTuple):
    """A unit that failed and does not work again yet.

    Attributes:
        kind: The kind of unit, such as ``action``.
        identity: The identity of the unit among those of its kind.
        error: The last exception.
        since: The time of the first failure, on trio's clock.
        failures: The number of failures in a row.
    """

    kind: str
    identity: str
    error: str
    since: float
    failures: int


@dataclass(slots=True)
class Unit:
    """The result of a unit after its boundary is left.

    Attributes:
        error: The exception that was raised inside; None without one.
    """

    error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether an exception was raised inside."""
        return self.error is not None


class Containment:
    """The boundaries of one process: the failures inside them, and the parked units."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()
        self._parked: dict[tuple[str, str], Parked] = {}
        self._lines: dict[str, LineLimit] = {}
        self._part = ""

    def of(self, part: str) -> Containment:
        """The same boundaries, for one of several equal parts of the process.

        Args:
            part: The name of the part; it is added to the identities of its tasks.
        """
        one = copy.copy(self)
        one._part = f" of {part}"
        return one

    @property
    def failures(self) -> dict[str, int]:
        """The number of failed units, by kind."""
        return dict(self._failures)

    @property
    def parked(self) -> tuple[Parked, ...]:
        """The parked units; an operator may have to act."""
        return tuple(self._parked.values())

    @contextmanager
    def unit(self, kind: str, identity: str, *, parks: bool = False) -> Iterator[Unit]:
        """Contain the exceptions of the body.

        Cancellations and KeyboardInterrupt pass; of an exception group only these do.

        Args:
            kind: The kind of unit: a metric counts by it, so there are few kinds.
            identity: The identity of the unit; it may come from outside.
            parks: Whether a failure is listed in :attr:`parked` until the same unit succeeds
                or is forgotten.
        """
        unit = Unit()
        try:
            yield unit
        except BaseException as error:
            passing, unit.error = split(error)
            if unit.error is None:
                raise
            self._failed(kind, identity, unit.error, parks)
            if passing is not None:
                raise passing from None
        else:
            if parks:
                self.forget(kind, identity)

    def count(self, kind: str) -> None:
        """Count the failure of a unit that cannot be logged, such as a log line."""
        self._failures[kind] += 1

    def park(self, kind: str, identity: str, error: BaseException) -> None:
        """Count and list the failure of a unit; the caller logs it."""
        self._failures[kind] += 1
        self._park(kind, identity, error)

    def caught(
        self, kind: str, identity: str, error: BaseException, *, parks: bool = False
    ) -> BaseException:
        """Contain an exception that was caught, as :meth:`unit` does: for hot paths.

        Call it in the ``except`` clause. An exception that passes is raised again. If only a part
        of a group passes, the rest is contained first.

        Returns:
            The contained exception.
        """
        passing, contained = split(error)
        if contained is not None:
            self._failed(kind, identity, contained, parks)
        if passing is not None:
            raise passing
        assert contained is not None
        return contained

    def forget(self, kind: str, identity: str) -> None:
        """Remove a unit that has ended, or works again, from the parked ones."""
        self._parked.pop((kind, self._named(kind, identity)), None)

    def forget_all(self, kind: str, identities: Iterable[str]) -> None:
        """Remove some units of a kind from the parked ones."""
        for identity in identities:
            self.forget(kind, identity)

    async def keep(
        self,
        kind: str,
        identity: str,
        function: Callable[[], Awaitable[None]],
        *,
        backoff: Backoff = _BACKOFF,
        heals_after: float = 60.0,
    ) -> None:
        """Run a function that has no end; after a failure run it again, with a delay.

        It returns only if the function does. After a failure the function is parked until it has
        run for ``heals_after`` seconds.
        """
        failures = 0
        while True:
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.forget_later, kind, identity, heals_after)
                with self.unit(kind, identity) as unit:
                    await function()
                nursery.cancel_scope.cancel("the run has ended")
            if unit.error is None:
                self.forget(kind, identity)
                return
            self._park(kind, identity, unit.error)
            failures = 1 if trio.current_time() - began > heals_after else failures + 1
            await trio.sleep(backoff.delay(failures))

    async def forget_later(self, kind: str, identity: str, seconds: float = 60.0) -> None:
        """Forget a parked unit after some seconds. Cancel this if the unit fails again."""
        await trio.sleep(seconds)
        self.forget(kind, identity)

    def _failed(self, kind: str, identity: str, error: BaseException, parks: bool) -> None:
        self._failures[kind] += 1
        if parks:
            self._park(kind, identity, error)
        lines = self._lines.setdefault(kind, LineLimit())
        if (omitted := lines.take()) is None:
            return
        try:
            _log.error(
                "unit_failed",
                unit=kind,
                identity=self._named(kind, identity),
                left_out=omitted,
                exc_info=error,
            )
        except BaseException as unlogged:
            # A failure of the log stays inside the boundary, too.
            self._failures["log_line"] += 1
            passing, _ = split(unlogged)
            if passing is not None:
                raise passing from None

    def _named(self, kind: str, identity: str) -> str:
        return (identity + self._part if kind == "task" else identity)[:_LONGEST]

    def _park(self, kind: str, identity: str, error: BaseException) -> None:
        identity = self._named(kind, identity)
        before = self._parked.get((kind, identity))
        if before is None and len(self._parked) >= _MOST_PARKED:
            return
        since = trio.current_time() if before is None else before.since
        failures = 1 if before is None else before.failures + 1
        text = describe(error)
        self._parked[kind, identity] = Parked(kind, identity, text, since, failures)


def describe(error: BaseException) -> str:
    """An exception in one line of bounded length, whatever its own ``__str__`` does."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception as unreadable:
        text = f"its text cannot be read ({type(unreadable).__name__})"
    return f"{name}: {text}"[:_LONGEST]


def split(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """The parts of an exception that pass through a boundary, and that it contains."""
    passes = (trio.Cancelled, KeyboardInterrupt, GeneratorExit)
    if isinstance(error, BaseExceptionGroup):
        passing, contained = error.split(passes)
        return passing, contained if passing else error
    return (error, None) if isinstance(error, passes) else (None, error)


class LineLimit:
    """Limits the log lines about one kind of unit: 20 at once, then one for each second."""

    def __init__(self) -> None:
        self._tokens = _LINES
        self._at = trio.current_time()
        self._omitted = 0

    def take(self) -> int | None:
        """The number of lines that were omitted before this one; None if this one is omitted."""
        now = trio.current_time()
        self._tokens = min(_LINES, self._tokens + (now - self._at) * _LINES_PER_SECOND)
        self._at = now
        if self._tokens < 1:
            self._omitted += 1
            return None
        self._tokens -= 1
        omitted, self._omitted = self._omitted, 0
        return omitted
