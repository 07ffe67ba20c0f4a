"""The attempts of an action as Flyte's messages."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.core.catalog_pb2 import CatalogCacheStatus
from flyteidl2.workflow.run_definition_pb2 import ActionAttempt, ErrorInfo
from google.protobuf.timestamp_pb2 import Timestamp

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.model import ACTION_TYPE_TRACE, SUCCESSES, Phase
from etcd_actions.runs.attempts import attempts, time_or_none
from etcd_actions.runs.run_record import ActionHistory, Attempt, Failure, Transition

OUTPUTS: Final = "outputs.pb"
"""The file of an action's outputs, in the directory of the attempt."""

_KINDS: Final = {"USER": ErrorInfo.KIND_USER, "SYSTEM": ErrorInfo.KIND_SYSTEM}


def attempts_of(action: StoredAction | None, history: ActionHistory | None) -> list[ActionAttempt]:
    """The attempts of an action in order, without a gap: clients count them.

    Args:
        action: Its object; None if it has expired.
        history: The stored history of its attempts.
    """
    if action is None:
        stored = () if history is None else history.attempts
        return [attempt_message(each) for each in stored]
    is_trace = action.spec.kind == ACTION_TYPE_TRACE
    found = attempts(action, history)
    if not is_trace and found[0].number == 1:
        found = (_queued_first(found[0], action), *found[1:])
    return [attempt_message(each, is_trace=is_trace) for each in found]


def attempt_message(attempt: Attempt, *, is_trace: bool = False) -> ActionAttempt:
    """Flyte's message of an attempt.

    Args:
        attempt: The attempt.
        is_trace: Whether the URI of its outputs names their file, not its directory.
    """
    phase = Phase(attempt.phase) if attempt.phase in list(Phase) else Phase.UNSPECIFIED
    phase = phase or Phase.QUEUED
    message = ActionAttempt(
        phase=phase_number(phase),
        attempt=attempt.number,
        cache_status=CatalogCacheStatus.ValueType(attempt.cache_status),
        logs_available=attempt.has_log,
    )
    for transition in attempt.transitions:
        added = message.phase_transitions.add(
            phase=ActionPhase.ValueType(transition.phase), start_time=timestamp(transition.started)
        )
        if transition.ended is not None:
            added.end_time.CopyFrom(timestamp(transition.ended))
    if attempt.transitions:
        message.start_time.CopyFrom(timestamp(attempt.transitions[0].started))
        last = attempt.transitions[-1]
        if phase.is_terminal:
            message.end_time.CopyFrom(timestamp(last.ended or last.started))
    if attempt.failure is not None:
        message.error_info.CopyFrom(error_info(attempt.failure))
    if attempt.output_uri and phase in SUCCESSES:
        directory = attempt.output_uri
        message.outputs.output_uri = directory if is_trace else f"{directory}/{OUTPUTS}"
    return message


def error_info(failure: Failure) -> ErrorInfo:
    """Flyte's message of a failure."""
    kind = _KINDS.get(failure.kind, ErrorInfo.KIND_UNSPECIFIED)
    return ErrorInfo(message=failure.message, kind=kind, code=failure.code)


def phase_number(phase: Phase) -> ActionPhase.ValueType:
    """A phase as messages have it; queued if the action has none."""
    return ActionPhase.ValueType(phase or Phase.QUEUED)


def timestamp(time: datetime) -> Timestamp:
    """A time as messages have it."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


def _queued_first(first: Attempt, action: StoredAction) -> Attempt:
    """The first attempt with its time in the queue, which objects do not have."""
    created, transitions = time_or_none(action.metadata.creation_timestamp), first.transitions
    if created is None or (transitions and transitions[0].phase == Phase.QUEUED):
        return first
    ended = transitions[0].started if transitions else None
    return msgspec.structs.replace(
        first, transitions=(Transition(Phase.QUEUED, created, ended), *transitions)
    )
