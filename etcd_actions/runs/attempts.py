"""The attempts of an action, read from its object and its history; no I/O.

The object has the phases of all attempts in one list, ``status.phaseHistory``, and one error. The
outcomes of earlier attempts are in an annotation (`etcd_actions.model.earlier_attempts`), with the
index in that list where each ends. Without it, in an object of Flyte's executor, an attempt ends
before a phase that cannot follow in the same attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from etcd_actions.errors import DecodeError
from etcd_actions.model import ACTION_TYPE_TASK, ActionObject, ErrorState, Phase
from etcd_actions.model.conditions import FOLLOWERS, MAX_HISTORY
from etcd_actions.model.earlier_attempts import EarlierAttempt, earlier_attempts
from etcd_actions.model.taskaction import PhaseTransition, parse_time
from etcd_actions.runs.run_record import ActionHistory, Attempt, Failure, Transition

MOST_ATTEMPTS: Final = 1_000
"""The number of attempts, the newest, that are read: an object may claim any number."""

_PHASES: Final = {
    "WaitingForResources": Phase.WAITING_FOR_RESOURCES,
    "Queued": Phase.QUEUED,
    "Initializing": Phase.INITIALIZING,
    "Executing": Phase.RUNNING,
    "Paused": Phase.PAUSED,
    "Completed": Phase.SUCCEEDED,
    "Signaled": Phase.SUCCEEDED,
    "Recovered": Phase.RECOVERED,
    "PermanentFailure": Phase.FAILED,
    "RetryableFailure": Phase.FAILED,
    "TimedOut": Phase.TIMED_OUT,
    "Aborted": Phase.ABORTED,
}
_WITH_PROCESS: Final = (Phase.RUNNING, Phase.PAUSED)


class _Entered(NamedTuple):
    phase: Phase
    transition: Transition


def attempts(stored: ActionObject, history: ActionHistory | None = None) -> tuple[Attempt, ...]:
    """All attempts of an action, the oldest first, without a gap.

    Args:
        stored: The object.
        history: Its stored history, for facts that the object has lost; one of another
            incarnation is ignored.

    Returns:
        The newest `MOST_ATTEMPTS`; at least one, which may have no phase. Unreadable times are
        omitted.
    """
    state = stored.state(getattr(stored, "create_revision", 0))
    last = max(state.attempts, 1)
    first = max(1, last - MOST_ATTEMPTS + 1)
    noted = {
        each.attempt: each for each in earlier_attempts(stored) if first <= each.attempt < last
    }
    phases = _by_attempt(stored.status.phase_history, tuple(noted.values()), last)
    kept = _kept(stored, history)
    found = []
    for number in range(first, last + 1):
        entered = phases.get(number, [])
        if number == last:
            attempt = _present(stored, number, state.phase, entered)
        else:
            attempt = _earlier(stored, number, noted.get(number), entered)
        found.append(_filled_in(attempt, kept.get(number)))
    return tuple(found)


def _present(
    stored: ActionObject, number: int, phase: Phase, entered: Sequence[_Entered]
) -> Attempt:
    return Attempt(
        number=number,
        phase=phase.value,
        transitions=_transitions(entered),
        failure=_failure(stored.status.error_state),
        output_uri=stored.outputs_of(number),
        cache_status=stored.status.cache_status,
        has_log=_has_log(stored, entered),
    )


def _earlier(
    stored: ActionObject, number: int, noted: EarlierAttempt | None, entered: Sequence[_Entered]
) -> Attempt:
    transitions = _transitions(entered)
    failure = None
    if noted is not None:
        failure = _failure(ErrorState(code=noted.code, kind=noted.kind, message=noted.message))
        ended = time_or_none(noted.ended)
        if ended is not None and not (entered and entered[-1].phase.is_terminal):
            if transitions:
                closed = msgspec.structs.replace(transitions[-1], ended=ended)
                transitions = (*transitions[:-1], closed)
            transitions = (*transitions, Transition(Phase.FAILED.value, ended))
    return Attempt(
        number=number,
        phase=Phase.FAILED.value,  # since another attempt followed
        transitions=transitions,
        failure=failure,
        output_uri=stored.outputs_of(number),
        has_log=_has_log(stored, entered),
    )


def _has_log(stored: ActionObject, entered: Iterable[_Entered]) -> bool:
    if stored.spec.kind != ACTION_TYPE_TASK:
        return False
    return any(each.phase in _WITH_PROCESS for each in entered)


def _filled_in(attempt: Attempt, kept: Attempt | None) -> Attempt:
    if kept is None:
        return attempt
    return msgspec.structs.replace(
        attempt,
        phase=attempt.phase or kept.phase,
        transitions=attempt.transitions or kept.transitions,
        failure=attempt.failure or (kept.failure if attempt.phase == kept.phase else None),
        has_log=attempt.has_log or kept.has_log,
    )


def _kept(stored: ActionObject, history: ActionHistory | None) -> dict[int, Attempt]:
    if history is None:
        return {}
    known = getattr(stored, "create_revision", 0)
    if known and history.create_revision and known != history.create_revision:
        return {}
    return {each.number: each for each in history.attempts}


def _failure(error: ErrorState | None) -> Failure | None:
    if error is None or not (error.code or error.kind or error.message):
        return None
    return Failure(error.code, error.kind, error.message)


# --- the division of the history by attempts ---------------------------------------------


def _by_attempt(
    history: Sequence[PhaseTransition], noted: Sequence[EarlierAttempt], last: int
) -> dict[int, list[_Entered]]:
    """The phases of each attempt that has any, in order."""
    if len(history) < MAX_HISTORY and _agree(noted, len(history)):
        by_attempt: dict[int, list[_Entered]] = {}
        begin, before = 0, 0
        for number, end in [*((each.attempt, each.entries) for each in noted), (last, None)]:
            # Between two notes that are not consecutive there are attempts without a note.
            many = number > before + 1
            by_attempt |= _counted_back(history[begin:end], number - before, before, many=many)
            begin, before = end or 0, number
        return by_attempt
    return _counted_back(history, last, 0)


def _agree(noted: Sequence[EarlierAttempt], length: int) -> bool:
    """Whether the noted indexes fit the history."""
    bounds = [0, *(each.entries for each in noted), length]
    return all(one <= other for one, other in pairwise(bounds))


def _counted_back(
    history: Sequence[PhaseTransition], most: int, before: int, *, many: bool = True
) -> dict[int, list[_Entered]]:
    """The phases of at most ``most`` attempts after attempt ``before``, counted from the last."""
    entered = [_Entered(*each) for each in _entered(history)]
    parts = list(_split(entered)) if many else [entered]
    parts = parts[-most:]
    first = before + most - len(parts) + 1
    return {first + index: part for index, part in enumerate(parts) if part}


def _split(entered: Iterable[_Entered]) -> Iterator[list[_Entered]]:
    part: list[_Entered] = []
    for each in entered:
        if part:
            before = part[-1].phase
            if each.phase is before or each.phase not in FOLLOWERS[before]:
                yield part
                part = []
        part.append(each)
    yield part


def _entered(history: Iterable[PhaseTransition]) -> Iterator[tuple[Phase, Transition]]:
    for each in history:
        phase, time = _PHASES.get(each.phase), time_or_none(each.occurred_at)
        if phase is not None and time is not None:
            yield phase, Transition(phase.value, time)


def _transitions(entered: Sequence[_Entered]) -> tuple[Transition, ...]:
    """Each phase with its end: the start of the next one."""
    found = [each.transition for each in entered]
    for index, following in enumerate(found[1:]):
        found[index] = msgspec.structs.replace(found[index], ended=following.started)
    return tuple(found)


def time_or_none(text: str) -> datetime | None:
    """The time of a text of Kubernetes (RFC 3339); None if it is empty or malformed."""
    try:
        return parse_time(text, "time")
    except DecodeError:
        return None
