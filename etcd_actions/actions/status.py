"""Writes the status of an action: attempts, cache status and phase, as Flyte's executor does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.rewrite import rewrite, utc_now
from etcd_actions.actions.stored_action import StoredAction, describe
from etcd_actions.errors import FailedPrecondition, InvalidArgument
from etcd_actions.etcd.api import Compare
from etcd_actions.model import FAILURES, ActionId, ErrorState, Incarnation, Keyspace, Phase
from etcd_actions.model.conditions import FOLLOWERS, rfc3339, write_phase
from etcd_actions.model.earlier_attempts import note_earlier
from etcd_actions.storage.store import Store


class ActionStatus(msgspec.Struct, frozen=True):
    """A report, for callers without ``flyteidl2``; see :class:`Status` for its fields."""

    phase: Phase = Phase.UNSPECIFIED
    attempts: int = 0
    cache_status: int = 0
    end_time: datetime | None = None


class Status(Protocol):
    """The used fields of a report; ``flyteidl2.workflow.ActionStatus`` has them, too.

    Its start and duration are not used: an action starts when its object is created.
    """

    @property
    def phase(self) -> int:
        """A number of :class:`~etcd_actions.model.Phase`; UNSPECIFIED keeps the present phase."""

    @property
    def attempts(self) -> int:
        """0, or the attempt that the report is about."""

    @property
    def cache_status(self) -> int:
        """A number of ``flyteidl2.core.CatalogCacheStatus``."""

    @property
    def end_time(self) -> Any:
        """The time of the end, an aware ``datetime`` or a protobuf ``Timestamp``.

        If it is None or unset, the present time is used. It is used only with a terminal phase.
        """


async def put_status(
    store: Store,
    keys: Keyspace,
    action_id: ActionId,
    attempt: int,
    status: Status,
    *,
    error: ErrorState | None = None,
    error_before: ErrorState | None = None,
    message: str = "",
    fence: Compare | None = None,
    incarnation: Incarnation | None = None,
    cache: ReadCache | None = None,
    seen: StoredAction | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> StoredAction:
    """Report the status of an action.

    The phase is stored as conditions and history in the executor's form, see ``docs/status.md``.
    ``FOLLOWERS`` has the phases that may follow each one within an attempt. A higher attempt may
    start in any phase that is not terminal; without a phase in the report it is QUEUED. A report
    that changes nothing is not written. A terminal phase stays; until it is recorded, the same
    phase may be reported again with other details.

    It is one compare-and-swap, retried if other writers were faster, so their changes stay. After a
    cancellation it was done completely or not at all.

    Args:
        store: Reads and writes the action.
        keys: The keyspace.
        action_id: The action; not a trace, which is enqueued again instead.
        attempt: The attempt that the report is about, from 1 on.
        status: The report.
        error: The error, with the phases FAILED, TIMED_OUT and ABORTED.
        error_before: The error of the attempt before, with a report that starts another one; it is
            stored in the same write, see :mod:`etcd_actions.model.earlier_attempts`.
        message: A line for people, in condition and history; empty for the executor's own.
        fence: A compare in the transaction of the write, usually of a claim.
        incarnation: Report only about this object; by default the present one.
        cache: The objects that were read or written last; the first write is based on it.
        seen: The caller's last state of the action; the first write may be based on it, too.
        clock: Returns the present time.

    Returns:
        The present action. Reads that start afterwards return it or a newer one.

    Raises:
        NotFound: There is no such action, or it is another incarnation.
        InvalidArgument: The report contradicts itself, or a number in it is unknown.
        FailedPrecondition: It is about an earlier attempt, or its phase cannot follow the
            present one; the message has both.
        ClaimLost: The fence failed.
        DecodeError: The stored value cannot be decoded.
        OutcomeUnknown: The answer was lost; the same report again is safe.
        EtcdError: The write failed; nothing was changed.
    """
    report = _checked(attempt, status, error, message)

    def change(action: StoredAction, tree: dict[str, Any]) -> bool:
        phase = _next(action, report)
        now = report.ended or clock()
        before = max(action.status.attempts, 1)
        if attempt > before:
            note_earlier(
                tree,
                before,
                error_before or action.status.error_state,
                entries=len(action.status.phase_history),
                ended=rfc3339(now),
            )
        changed = write_phase(
            tree,
            phase,
            now=now,
            message=message or None,
            attempts=attempt,
            cache_status=report.cache_status,
            error=error,
        )
        if changed and action.is_terminal and action.is_recorded:
            raise FailedPrecondition(
                f"{describe(action.action_id)} ended as {action.phase.name} and that is recorded: "
                "nothing can be added to it"
            )
        return changed

    return await rewrite(
        store,
        keys,
        action_id,
        change,
        field="status",
        fence=fence,
        incarnation=incarnation,
        cache=cache,
        seen=seen,
    )


class _Report(NamedTuple):
    attempt: int
    phase: Phase
    cache_status: int
    ended: datetime | None


def _checked(attempt: int, status: Status, error: ErrorState | None, message: str) -> _Report:
    if not 1 <= attempt < 2**32:
        raise InvalidArgument("attempt", f"{attempt} is not an attempt: count from 1")
    if status.attempts not in (0, attempt):
        raise InvalidArgument(
            "status.attempts", f"{status.attempts}, in a report about attempt {attempt}: give one"
        )
    try:
        phase = Phase(status.phase)
    except ValueError:
        raise InvalidArgument(
            "status.phase", f"{status.phase} is not a valid phase: there are 0 to {max(Phase)}"
        ) from None
    if not -(2**31) <= status.cache_status < 2**31:
        raise InvalidArgument("status.cache_status", f"{status.cache_status} is none: too large")
    if error is not None and phase not in FAILURES:
        names = ", ".join(failure.name for failure in FAILURES)
        raise InvalidArgument("error", f"{phase.name} has none: it goes with {names}")
    if message and phase is Phase.UNSPECIFIED:
        raise InvalidArgument("message", "a message goes with a phase: name one")
    ended = _time(status.end_time) if phase.is_terminal else None
    return _Report(attempt, phase, status.cache_status, ended)


def _time(time: Any) -> datetime | None:
    if time is None:
        return None
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise InvalidArgument("status.end_time", f"{time} has no time zone: give it one")
        return time
    if not time.seconds and not time.nanos:
        return None
    try:
        ended: datetime = time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument("status.end_time", str(error)) from None
    return ended


def _next(action: StoredAction, report: _Report) -> Phase:
    """The phase to write; UNSPECIFIED for none.

    Raises:
        FailedPrecondition: The report is too late.
    """
    now, attempt = action.phase, max(action.status.attempts, 1)
    state = f"{describe(action.action_id)} is {now.name} in attempt {attempt}"
    if report.attempt < attempt:
        raise FailedPrecondition(
            f"{state}: a report about attempt {report.attempt}, {report.phase.name}, is too late"
        )
    is_newer = report.attempt > attempt
    phase = report.phase
    if phase is Phase.UNSPECIFIED and not is_newer:
        return phase
    if now.is_terminal and (is_newer or phase is not now):
        raise FailedPrecondition(
            f"{state}, an end: {phase.name} in attempt {report.attempt} cannot follow"
        )
    if is_newer:
        started = now is not Phase.UNSPECIFIED
        return Phase.QUEUED if started and phase is Phase.UNSPECIFIED else phase
    if phase not in FOLLOWERS[now]:
        raise FailedPrecondition(f"{state}: {phase.name} in the same attempt cannot follow")
    return phase
