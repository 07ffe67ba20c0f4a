"""The limits of an attempt: its wait, its run time, and the delay of a retry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from etcd_actions.model import ErrorState
from etcd_actions.model.durations import LONGEST, factor_of, limit_of, seconds_of

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

RUN_TOO_LONG: Final = "MAX_RUNTIME_EXCEEDED"
DEADLINE: Final = "DEADLINE_EXCEEDED"
QUEUED_TOO_LONG: Final = "QUEUED_TIMEOUT_EXCEEDED"

MOST_ATTEMPTS: Final = 2**32 - 1
"""The greatest value of ``status.attempts``, a uint32 in Flyte's messages."""

_METADATA = "spec.taskTemplate.metadata"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one attempt. Times are on the monotonic clock; None means no limit.

    Attributes:
        run: Seconds that it may run.
        queued: The end of its wait for a slot.
        deadline: The end of the action, with all its attempts.
        not_before: The end of the back-off after the attempt before.
        attempts: The most attempts of the action.
    """

    run: float | None
    queued: float | None
    deadline: float | None
    not_before: float
    attempts: int

    @classmethod
    def of(cls, template: TaskTemplate, attempt: int, *, created: float, queued: float) -> Limits:
        """The limits of an attempt, numbered from 1, of an action created at ``created``.

        Raises:
            InvalidArgument: One cannot be used; the field is named.
        """
        metadata = template.metadata
        not_before = queued + retry_delay(template, attempt)
        waiting = limit_of(metadata.timeouts.queued_timeout, f"{_METADATA}.timeouts.queuedTimeout")
        deadline = limit_of(metadata.timeouts.deadline, f"{_METADATA}.timeouts.deadline")
        return cls(
            run=limit_of(metadata.timeout, f"{_METADATA}.timeout"),
            # The wait for a slot begins after the back-off.
            queued=None if waiting is None else not_before + waiting,
            deadline=None if deadline is None else created + deadline,
            not_before=not_before,
            attempts=min(metadata.retries.retries + 1, MOST_ATTEMPTS),
        )

    def waiting_ends(self) -> float | None:
        """The end of the wait for a slot; None for no limit."""
        return min((end for end in (self.queued, self.deadline) if end is not None), default=None)

    def late(self, now: float) -> ErrorState | None:
        """The error of an attempt that is too late to start; None if it is not."""
        if self.deadline is not None and now >= self.deadline:
            return _too_long(DEADLINE, "its deadline has passed")
        if self.queued is not None and now >= self.queued:
            return _too_long(QUEUED_TOO_LONG, "it waited too long for a slot")
        return None

    def running_ends(self, started: float) -> tuple[float, ErrorState]:
        """The latest end of an attempt that started at ``started``, and the error if it runs on."""
        ran = LONGEST if self.run is None else self.run
        end = float("inf") if self.run is None else started + self.run
        if self.deadline is not None and self.deadline <= end:
            return self.deadline, _too_long(DEADLINE, "its deadline has passed")
        return end, _too_long(RUN_TOO_LONG, f"it ran longer than {ran:g} s")


def retry_delay(template: TaskTemplate, attempt: int) -> float:
    """Seconds between the failure of an attempt and the next one, whose number is given.

    They are ``min(base * factor ** n, cap)``; ``n`` is 0 for the second attempt.

    Raises:
        InvalidArgument: The strategy cannot be used; the field is named.
    """
    if not template.metadata.retries.HasField("backoff"):
        return 0.0
    backoff, field = template.metadata.retries.backoff, f"{_METADATA}.retries.backoff"
    base = seconds_of(backoff.base, f"{field}.base")
    factor = factor_of(backoff.factor, f"{field}.factor")
    cap = seconds_of(backoff.cap, f"{field}.cap") if backoff.HasField("cap") else LONGEST
    if attempt < 2:
        return 0.0
    try:
        delay = base * factor ** (attempt - 2)
    except OverflowError:
        return cap if base else 0.0
    return min(delay, cap)


def _too_long(code: str, message: str) -> ErrorState:
    return ErrorState(code=code, kind="USER", message=message)
