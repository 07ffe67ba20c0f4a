"""What a state of an action says of its run and its history, and whether that is news; no I/O."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    ACTION_TYPE_TRACE,
    ANNOTATION_SUBJECT,
    ActionObject,
    ActionUpdate,
    Phase,
)
from etcd_actions.model import flyte as conversions
from etcd_actions.model.earlier_attempts import shortened
from etcd_actions.model.names import ROOT_ACTION, task_action_name
from etcd_actions.model.taskaction import parse_time
from etcd_actions.runs.attempts import attempts
from etcd_actions.runs.run_record import (
    ActionHistory,
    Attempt,
    Failure,
    RunRecord,
    RunStatus,
    TaskName,
)

MOST_OF_A_MESSAGE: Final = 4 * 1024
"""Characters of an error's message that are kept."""
MOST_ATTEMPTS: Final = 100
"""Attempts that a history keeps, the newest."""
_MOST_TRANSITIONS: Final = 32
_BEFORE_RUNNING: Final = (Phase.QUEUED, Phase.WAITING_FOR_RESOURCES, Phase.INITIALIZING)
_ENDS: Final = frozenset(phase.value for phase in Phase if phase.is_terminal)
_LEFT_THE_QUEUE: Final = (Phase.INITIALIZING, Phase.RUNNING, Phase.PAUSED)


class Told(NamedTuple):
    """Which state is kept."""

    create_revision: int
    revision: int
    phase: int
    attempts: int


def is_root(update: ActionUpdate) -> bool:
    """Whether it is a state of a run's root."""
    which = update.action_id
    if update.parent or update.action_type == ACTION_TYPE_TRACE:
        return False
    return which.object_name == task_action_name(which.run, ROOT_ACTION)


def is_another(update: ActionUpdate, told: Told, seen: KeyValue) -> bool:
    """Whether what is kept is about another incarnation, or comes from another store."""
    if told.revision >= seen.mod_revision:
        # It was written after the state that it is about: elsewhere, and copied.
        return True
    return 0 not in (told.create_revision, update.create_revision) and (
        told.create_revision != update.create_revision
    )


def is_news(update: ActionUpdate, told: Told, seen: KeyValue) -> bool:
    """Whether a state is newer than what is kept."""
    if told.revision >= seen.mod_revision:
        return True
    if is_another(update, told, seen):
        return update.create_revision > told.create_revision
    phase = update.phase
    if update.revision == told.revision:
        # A parent that is queued is told as running once it has children.
        return phase is Phase.RUNNING and told.phase in _BEFORE_RUNNING
    if update.revision < told.revision:
        return False
    over = told.phase in _ENDS and not phase.is_terminal
    return not over or update.attempts > told.attempts


def is_of_another(record: RunRecord, seen: KeyValue | None, update: ActionUpdate) -> bool:
    """Whether a record is of a run that had the name before.

    One that was created with a run has no status, and was written when its root was.
    """
    return seen is not None and is_older(record, seen.mod_revision, update.create_revision)


def is_older(record: RunRecord, revision: int, root_created: int) -> bool:
    """Whether a record is of a run that had the name before the root that has it now.

    Args:
        record: The record.
        revision: When it was written.
        root_created: The root's create_revision; 0 where that is not known.
    """
    if root_created == 0:
        return False
    status = record.status
    if status is None or status.create_revision == 0:
        return revision < root_created
    if status.revision >= revision:
        return False
    return status.create_revision < root_created


def history_of(
    update: ActionUpdate, action: ActionObject | None, before: ActionHistory | None
) -> ActionHistory:
    """The history of an action as of a state of it.

    Args:
        update: The state.
        action: The object that it is a state of; None where that is gone.
        before: What is kept of the same incarnation; it fills in what the object does not say.
    """
    which = update.action_id
    before = before or ActionHistory()
    if action is not None:
        found = attempts(_placed(update, action), before)
    else:
        number = max(update.attempts, 1)
        earlier = tuple(each for each in before.attempts if each.number < number)
        same = [each for each in before.attempts if each.number == number]
        found = (*earlier, *(same or [Attempt(number=number)]))
    last = found[-1]
    if last.phase not in _ENDS and update.phase is not Phase.UNSPECIFIED:
        # A deletion, of what went on, ends it.
        last = msgspec.structs.replace(last, phase=update.phase.value)
    if action is None:
        last = msgspec.structs.replace(
            last,
            failure=_failure(update) or last.failure,
            output_uri=update.output_uri or last.output_uri,
        )
    found = tuple(_clipped(each) for each in (*found[:-1], last)[-MOST_ATTEMPTS:])
    return ActionHistory(
        org=which.org or before.org,
        project=which.project,
        domain=which.domain,
        run=which.run,
        name=which.name,
        parent=update.parent,
        kind=update.action_type or before.kind,
        short_name=update.short_name or before.short_name,
        task_type=update.task_type or before.task_type,
        uid=update.uid,
        create_revision=update.create_revision or before.create_revision,
        revision=update.revision,
        attempts=found,
    )


def _placed(update: ActionUpdate, action: ActionObject) -> StoredAction:
    """The object with its place, which its mark is read by."""
    kv = KeyValue(update.key, b"", update.create_revision, update.revision, 0)
    return StoredAction.at(kv, action)


def _clipped(attempt: Attempt) -> Attempt:
    failure, transitions = attempt.failure, attempt.transitions
    if failure is not None:
        failure = Failure(
            shortened(failure.code, 256),
            shortened(failure.kind, 64),
            shortened(failure.message, MOST_OF_A_MESSAGE),
        )
    if len(transitions) > _MOST_TRANSITIONS:
        transitions = (transitions[0], *transitions[1 - _MOST_TRANSITIONS :])
    return msgspec.structs.replace(attempt, failure=failure, transitions=transitions)


def _failure(update: ActionUpdate) -> Failure | None:
    error = update.error
    if error is None:
        return None
    return Failure(
        shortened(error.code, 256),
        shortened(error.kind, 64),
        shortened(error.message, MOST_OF_A_MESSAGE),
    )


def _task_name(action: ActionObject) -> TaskName:
    """Which task a root runs; what cannot be read is left out."""
    try:
        template = conversions.task_template(action)
    except DecodeError:
        template = None
    if template is None:
        return TaskName()
    which = template.id
    return TaskName(which.org, which.project, which.domain, which.name, which.version)


def _time(text: str) -> datetime | None:
    try:
        return parse_time(text, "time")
    except DecodeError:
        return None


def new_record(update: ActionUpdate, action: ActionObject | None, now: datetime) -> RunRecord:
    """A record of what the object alone says: nobody created one with the run."""
    which = update.action_id
    created = _time(update.creation_timestamp) or now
    record = RunRecord(
        org=which.org,
        project=which.project,
        domain=which.domain,
        name=which.run,
        short_name=update.short_name,
        task_type=update.task_type,
        created=created,
    )
    if action is None:
        return record
    return msgspec.structs.replace(
        record,
        task=_task_name(action),
        creator=action.metadata.annotations.get(ANNOTATION_SUBJECT, ""),
        input_uri=action.spec.input_uri,
        output_base=action.spec.run_output_base,
    )


def status_of(
    update: ActionUpdate, action: ActionObject | None, before: RunStatus | None, now: datetime
) -> RunStatus:
    """How a run is, as a state of its root says; what that leaves out stays as it was."""
    before = before or RunStatus()
    is_over = update.phase.is_terminal
    ended = None
    if is_over:
        ended = _time(update.end_time) or before.ended or now
    failure = _failure(update)
    if failure is None and update.partial and before.phase == update.phase:
        failure = before.failure
    return RunStatus(
        create_revision=update.create_revision or before.create_revision,
        revision=update.revision,
        phase=update.phase.value,
        attempts=update.attempts,
        cache_status=update.cache_status,
        started=before.started or _started(update, action, now),
        ended=ended,
        failure=failure,
        abort_reason=update.abort_reason or (before.abort_reason if is_over else ""),
        aborted_by=update.aborted_by or (before.aborted_by if is_over else ""),
    )


def _started(update: ActionUpdate, action: ActionObject | None, now: datetime) -> datetime | None:
    """When it left the queue, as far as anybody says."""
    if action is not None:
        for attempt in attempts(action):
            for transition in attempt.transitions:
                if transition.phase in _LEFT_THE_QUEUE:
                    return transition.started
    return now if update.phase in _LEFT_THE_QUEUE else None
