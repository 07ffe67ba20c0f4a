"""Reports how far an action is: attempts, cache status and phase, as Flyte's executor would."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.rewrite import rewrite, utc_now
from etcd_actions.actions.stored_action import StoredAction, describe
from etcd_actions.errors import FailedPrecondition, InvalidArgument
from etcd_actions.etcd.api import Compare
from etcd_actions.model import ActionId, ErrorState, Incarnation, Keyspace, Phase
from etcd_actions.model.conditions import FOLLOWERS, rfc3339, write_phase
from etcd_actions.model.earlier_attempts import note_earlier
from etcd_actions.storage.store import Store


class ActionStatus(msgspec.Struct, frozen=True):
    """A report, for those who do without ``flyteidl2``; see `Status`."""

    phase: Phase = Phase.UNSPECIFIED
    attempts: int = 0
    cache_status: int = 0
    end_time: datetime | None = None


class Status(Protocol):
    """What counts of a ``flyteidl2.workflow.ActionStatus``, which is one of these.

    Start and duration do not count: an action starts when its object is created.
    """

    @property
    def phase(self) -> int:
        """A number of `Phase`; UNSPECIFIED leaves the phase to others."""
        ...

    @property
    def attempts(self) -> int:
        """0, or once more the attempt that the report is about."""
        ...

    @property
    def cache_status(self) -> int:
        """A number of ``flyteidl2.core.CatalogCacheStatus``."""
        ...

    @property
    def end_time(self) -> Any:
        """When it ended, an aware ``datetime`` or a protobuf ``Timestamp``.

        Without one, None or unset, it ended now. It counts with a phase that is an end only.
        """
        ...


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

    The phase becomes conditions and history in the executor's form, see ``docs/status.md``.
    Within an attempt it may go as `FOLLOWERS` says. A higher attempt starts again from any
    phase but an end, with QUEUED where the report names no phase. A report that says what is
    there already writes nothing. An end stays; until it is recorded the same end may still
    be reported more exactly.

    It is one compare-and-swap, retried until no other writer was faster: changes of others stay,
    and cancelled it was done completely or not at all.

    Args:
        store: Where the action is.
        keys: Under which key.
        action_id: Which action; not a trace, which is reported as one.
        attempt: Which attempt the report is about, from 1 on.
        status: The report.
        error: Why it failed, with the phases FAILED, TIMED_OUT and ABORTED.
        error_before: Why the attempt before failed, with a report that begins another one: it
            is noted in the same write, see `etcd_actions.model.earlier_attempts`. Else it says
            nothing.
        message: A line for people, kept in condition and history; empty: the executor's own.
        fence: What must hold for the report to count: a claim, as a rule.
        incarnation: Which object the report is about; by default the one that is there.
        cache: The objects read or written last: the one in it is tried without a read.
        seen: The caller's last state of the action: it is tried without a read, too.
        clock: The time.

    Returns:
        The action as it is now, with its revision. Reads that begin after this see it, or a
        newer one.

    Raises:
        NotFound: There is no such action, or it is another incarnation.
        InvalidArgument: The report contradicts itself, or names what does not exist.
        FailedPrecondition: It is about an earlier attempt, or its phase cannot follow the
            present one; the message says both.
        ClaimLost: The fence does not hold.
        DecodeError: What is stored cannot be read.
        OutcomeUnknown: The answer was lost; the same report again is safe.
        EtcdError: etcd did not do it; nothing was changed.
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


_FAILURES: Final = (Phase.FAILED, Phase.TIMED_OUT, Phase.ABORTED)


def _checked(attempt: int, status: Status, error: ErrorState | None, message: str) -> _Report:
    if not 1 <= attempt < 2**32:
        raise InvalidArgument("attempt", f"{attempt} is no attempt: count from 1")
    if status.attempts not in (0, attempt):
        raise InvalidArgument(
            "status.attempts", f"{status.attempts}, in a report about attempt {attempt}: give one"
        )
    try:
        phase = Phase(status.phase)
    except ValueError:
        raise InvalidArgument(
            "status.phase", f"{status.phase} is no phase: there are 0 to {max(Phase)}"
        ) from None
    if not -(2**31) <= status.cache_status < 2**31:
        raise InvalidArgument("status.cache_status", f"{status.cache_status} is none: too large")
    if error is not None and phase not in _FAILURES:
        names = ", ".join(failure.name for failure in _FAILURES)
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
    """The phase to write, UNSPECIFIED for none.

    Raises:
        FailedPrecondition: The report comes too late.
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
