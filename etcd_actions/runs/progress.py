"""The record and the history that follow from a state of an action; no I/O."""

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
    TERMINAL,
    ActionObject,
    ActionUpdate,
    ErrorState,
    Phase,
)
from etcd_actions.model import flyte as conversions
from etcd_actions.model.earlier_attempts import shortened
from etcd_actions.model.names import ROOT_ACTION, task_action_name
from etcd_actions.runs.attempts import attempts, time_or_none
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
"""Flyte's numbers of the terminal phases."""
_LEFT_THE_QUEUE: Final = (Phase.INITIALIZING, Phase.RUNNING, Phase.PAUSED)


class Recorded(NamedTuple):
    """The identity of the stored state."""

    create_revision: int
    revision: int
    phase: int
    attempts: int


def is_root(update: ActionUpdate) -> bool:
    """Whether this is a state of a run's root."""
    which = update.action_id
    if update.parent or update.action_type == ACTION_TYPE_TRACE:
        return False
    return which.object_name == task_action_name(which.run, ROOT_ACTION)


def is_another(update: ActionUpdate, recorded: Recorded, seen: KeyValue) -> bool:
    """Whether the stored state is of another incarnation, or from another store."""
    if recorded.revision >= seen.mod_revision:
        # A write comes after the state that it records: this one was copied from another store.
        return True
    return 0 not in (recorded.create_revision, update.create_revision) and (
        recorded.create_revision != update.create_revision
    )


def is_news(update: ActionUpdate, recorded: Recorded, seen: KeyValue) -> bool:
    """Whether a state is newer than the stored one."""
    if recorded.revision >= seen.mod_revision:
        return True
    if is_another(update, recorded, seen):
        return update.create_revision > recorded.create_revision
    phase = update.phase
    if update.revision == recorded.revision:
        # A queued parent is reported as running once it has children.
        return phase is Phase.RUNNING and recorded.phase in _BEFORE_RUNNING
    if update.revision < recorded.revision:
        return False
    ended = recorded.phase in TERMINAL and not phase.is_terminal
    return not ended or update.attempts > recorded.attempts


def is_of_another(record: RunRecord, seen: KeyValue | None, update: ActionUpdate) -> bool:
    """Whether a record is of an earlier run of the same name."""
    return seen is not None and is_older(record, seen.mod_revision, update.create_revision)


def is_older(record: RunRecord, revision: int, root_created: int) -> bool:
    """Whether a record is of an earlier run than the present root.

    Args:
        record: The record.
        revision: The record's mod_revision.
        root_created: The root's create_revision; 0 if it is not known.
    """
    if root_created == 0:
        return False
    status = record.status
    # A record without a status was written in the transaction that created its root.
    if status is None or status.create_revision == 0:
        return revision < root_created
    if status.revision >= revision:
        return False
    return status.create_revision < root_created


def history_of(
    update: ActionUpdate, action: ActionObject | None, before: ActionHistory | None
) -> ActionHistory:
    """The history of an action at a state.

    Args:
        update: The state.
        action: The object; None if it is deleted.
        before: The stored history of the same incarnation, for facts that the object lacks.
    """
    which = update.action_id
    before = before or ActionHistory()
    if action is not None:
        kv = KeyValue(update.key, b"", update.create_revision, update.revision, 0)
        found = attempts(StoredAction.at(kv, action), before)
    else:
        number = max(update.attempts, 1)
        earlier = tuple(each for each in before.attempts if each.number < number)
        same = [each for each in before.attempts if each.number == number]
        found = (*earlier, *(same or [Attempt(number=number)]))
    last = found[-1]
    if last.phase not in TERMINAL and update.phase is not Phase.UNSPECIFIED:
        # The deletion of a running action ends it.
        last = msgspec.structs.replace(last, phase=update.phase.value)
    if action is None:
        last = msgspec.structs.replace(
            last,
            failure=_clipped_failure(update.error) or last.failure,
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


def _clipped(attempt: Attempt) -> Attempt:
    transitions = attempt.transitions
    if len(transitions) > _MOST_TRANSITIONS:
        transitions = (transitions[0], *transitions[1 - _MOST_TRANSITIONS :])
    failure = _clipped_failure(attempt.failure)
    return msgspec.structs.replace(attempt, failure=failure, transitions=transitions)


def _clipped_failure(error: Failure | ErrorState | None) -> Failure | None:
    if error is None:
        return None
    return Failure(
        shortened(error.code, 256),
        shortened(error.kind, 64),
        shortened(error.message, MOST_OF_A_MESSAGE),
    )


def _task_name(action: ActionObject) -> TaskName:
    """The task of a root; empty if it cannot be decoded."""
    try:
        template = conversions.task_template(action)
    except DecodeError:
        template = None
    if template is None:
        return TaskName()
    which = template.id
    return TaskName(which.org, which.project, which.domain, which.name, which.version)


def new_record(update: ActionUpdate, action: ActionObject | None, now: datetime) -> RunRecord:
    """The record of a run that was created without one."""
    which = update.action_id
    created = time_or_none(update.creation_timestamp) or now
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
    """The status of a run at a state of its root; fields that the state lacks stay."""
    before = before or RunStatus()
    is_terminal = update.phase.is_terminal
    ended = None
    if is_terminal:
        ended = time_or_none(update.end_time) or before.ended or now
    failure = _clipped_failure(update.error)
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
        abort_reason=update.abort_reason or (before.abort_reason if is_terminal else ""),
        aborted_by=update.aborted_by or (before.aborted_by if is_terminal else ""),
    )


def _started(update: ActionUpdate, action: ActionObject | None, now: datetime) -> datetime | None:
    """When it left the queue; None if it is queued, or this is unknown."""
    if action is not None:
        for attempt in attempts(action):
            for transition in attempt.transitions:
                if transition.phase in _LEFT_THE_QUEUE:
                    return transition.started
    return now if update.phase in _LEFT_THE_QUEUE else None
