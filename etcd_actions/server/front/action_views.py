"""Runs and actions as Flyte's messages, from the object and the record of the run.

The organisation in a message is the one that the client named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from flyteidl2.common.identifier_pb2 import ActionIdentifier
from flyteidl2.task.run_pb2 import RunSpec
from flyteidl2.task.task_definition_pb2 import TaskSpec
from flyteidl2.workflow import run_definition_pb2 as pb

from etcd_actions._internal.readable_parts import readable
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.model import (
    ACTION_TYPE_CONDITION,
    ACTION_TYPE_TASK,
    ACTION_TYPE_TRACE,
    ANNOTATION_ABORT_REASON,
    ANNOTATION_ABORTED_BY,
    ANNOTATION_SUBJECT,
    OWN_DOMAIN,
    ROOT_ACTION,
    SUCCESSES,
    ActionId,
    Phase,
)
from etcd_actions.model import flyte as conversions
from etcd_actions.model.names import task_action_name
from etcd_actions.model.output_location import output_uri
from etcd_actions.runs.attempts import time_or_none
from etcd_actions.runs.reading import Found
from etcd_actions.runs.run_record import Attempt, Failure, RunRecord, RunStatus, Transition
from etcd_actions.server.front.attempt_messages import (
    OUTPUTS,
    attempt_message,
    attempts_of,
    error_info,
)
from etcd_actions.server.front.run_views import (
    add_of_run,
    identity,
    root_metadata,
    root_status,
    status_message,
)

_Part = TypeVar("_Part")

_SYSTEM_DOMAIN: Final = "flyte.org/"
_TYPES: Final = {
    ACTION_TYPE_TASK: pb.ACTION_TYPE_TASK,
    ACTION_TYPE_CONDITION: pb.ACTION_TYPE_CONDITION,
    ACTION_TYPE_TRACE: pb.ACTION_TYPE_TRACE,
}
_FAILURES: Final = (Phase.FAILED, Phase.TIMED_OUT)
_GONE: Final = "its objects were deleted before its end was recorded"


def run_message(
    action: StoredAction | None, record: RunRecord | None, run: ActionId, org: str
) -> pb.Run:
    """A run as lists show it, from its root or its record.

    Args:
        action: Its root; None if it has expired.
        record: The record of the run; None if there is none.
        run: The run.
        org: The organisation that the client named.
    """
    if record is not None:
        labels: Mapping[str, str] = record.labels
    else:
        labels = {} if action is None else _free(action.metadata.labels)
    return pb.Run(action=action_message(action, record, run, org), labels=labels)


def action_message(
    action: StoredAction | None, record: RunRecord | None, action_id: ActionId, org: str
) -> pb.Action:
    """An action as lists show it; see :func:`run_message`."""
    if action is None:
        return pb.Action(
            id=identifier(action_id, org),
            metadata=None if record is None else root_metadata(record, org),
            status=pb.ActionStatus() if record is None else root_status(record),
        )
    return pb.Action(
        id=identifier(action_id_of(action), org),
        metadata=metadata(action, record, org),
        status=status(action),
    )


def run_details(found: Found, org: str) -> pb.RunDetails:
    """The details of a run."""
    run_spec = found.run_spec
    if run_spec is None and found.action is not None:
        run_spec = _run_spec(found.action)
    return pb.RunDetails(run_spec=run_spec, action=action_details(found, org))


def action_details(found: Found, org: str) -> pb.ActionDetails:
    """The details of an action; of an expired root by its record."""
    action, record = found.action, found.record
    if action is None:
        return _details_of_record(found, org)
    message = pb.ActionDetails(
        id=identifier(action_id_of(action), org),
        metadata=metadata(action, record, org),
        status=status(action),
        attempts=attempts_of(action, found.history),
    )
    _add_result(message, action)
    kind = action.spec.kind
    if kind == ACTION_TYPE_TASK:
        message.task.CopyFrom(found.task or _task_spec(action))
    elif kind == ACTION_TYPE_CONDITION:
        if (declared := _read(action, conversions.condition_action)) is not None:
            message.condition.CopyFrom(declared)
    elif (trace := _read(action, conversions.trace_action)) is not None:
        message.trace.CopyFrom(trace.spec)
    return message


def data_uris(found: Found, namespace: str) -> tuple[str, str]:
    """The URIs of an action's inputs and outputs; empty for none."""
    action, record = found.action, found.record
    if action is not None:
        outputs = ""
        if action.phase in SUCCESSES and (directory := action.output_uri):
            is_trace = action.spec.kind == ACTION_TYPE_TRACE
            outputs = directory if is_trace else f"{directory}/{OUTPUTS}"
        return action.spec.input_uri, outputs
    if record is None:
        return "", ""
    how = record.status
    if how is None or how.phase not in SUCCESSES:
        return record.input_uri, ""
    name = task_action_name(record.name, ROOT_ACTION)
    directory = output_uri(namespace, name, record.output_base, ROOT_ACTION, how.attempts)
    return record.input_uri, f"{directory}/{OUTPUTS}" if directory else ""


def identifier(action_id: ActionId, org: str) -> ActionIdentifier:
    """An action's identifier, with the organisation that the client named."""
    message = conversions.action_identifier(action_id)
    message.run.org = org
    return message


def action_id_of(action: StoredAction) -> ActionId:
    """The id of an action; a root has one name here."""
    spec = action.spec
    name = ROOT_ACTION if spec.action_name == spec.run_name else spec.action_name
    return ActionId(spec.project, spec.domain, spec.run_name, name)


def metadata(action: StoredAction, record: RunRecord | None, org: str) -> pb.ActionMetadata:
    """The metadata of an action."""
    spec = action.spec
    message = pb.ActionMetadata(
        parent=spec.parent_action_name,
        group=spec.group,
        action_type=_TYPES.get(spec.kind, pb.ACTION_TYPE_UNSPECIFIED),
    )
    if subject := action.metadata.annotations.get(ANNOTATION_SUBJECT, ""):
        message.executed_by.CopyFrom(identity(subject))
    if spec.kind == ACTION_TYPE_TASK:
        message.task.task_type = spec.task_type
        message.task.short_name = spec.short_name
        if (template := _read(action, conversions.task_template)) is not None:
            named = template.id
            message.task.id.org = named.org
            message.task.id.project = named.project or spec.project
            message.task.id.domain = named.domain or spec.domain
            message.task.id.name = named.name
            message.task.id.version = named.version
            message.funtion_name = named.name.rpartition(".")[2]
            message.task.short_name = spec.short_name or message.funtion_name
    elif spec.kind == ACTION_TYPE_CONDITION:
        if (declared := _read(action, conversions.condition_action)) is not None:
            message.condition.name = declared.name
            message.condition.type.CopyFrom(declared.type)
    else:
        trace = _read(action, conversions.trace_action)
        message.trace.name = spec.short_name if trace is None else trace.name
    if record is not None and not spec.parent_action_name:
        add_of_run(message, record, org)
    if source := conversions.recovered_from(action):
        source.run.org = org
        message.recovered_from.CopyFrom(source)
    return message


def status(action: StoredAction) -> pb.ActionStatus:
    """The status of an action."""
    state = action.state()
    return status_message(
        state.phase,
        time_or_none(action.metadata.creation_timestamp),
        time_or_none(action.end_time) if state.phase.is_terminal else None,
        state.attempts,
        action.status.cache_status,
    )


def _add_result(message: pb.ActionDetails, action: StoredAction) -> None:
    phase, annotations = action.phase, action.metadata.annotations
    if phase is Phase.ABORTED:
        message.abort_info.reason = annotations.get(ANNOTATION_ABORT_REASON, "")
        if by := annotations.get(ANNOTATION_ABORTED_BY, ""):
            message.abort_info.aborted_by.CopyFrom(identity(by))
    elif phase in _FAILURES:
        error = action.status.error_state
        if error is not None:
            failure = Failure(error.code, error.kind, error.message)
        else:
            failure = Failure(message=_message_of_failure(action))
        message.error_info.CopyFrom(error_info(failure))
    elif action.spec.kind == ACTION_TYPE_CONDITION and action.status.signal_value:
        value = _read(action, conversions.signal_value)
        if value is not None:
            message.signal_info.output.CopyFrom(value)
            if by := action.status.signalled_by:
                message.signal_info.signalled_by.CopyFrom(identity(by))


def _message_of_failure(action: StoredAction) -> str:
    for condition in action.status.conditions:
        if condition.type == "Failed" and condition.status == "True":
            return condition.message
    return ""


def _task_spec(action: StoredAction) -> TaskSpec:
    spec = TaskSpec(short_name=action.spec.short_name)
    if (template := _read(action, conversions.task_template)) is not None:
        spec.task_template.CopyFrom(template)
    return spec


def _run_spec(action: StoredAction) -> RunSpec:
    """The run spec of a run without a record, by its root."""
    spec = RunSpec()
    spec.labels.values.update(_free(action.metadata.labels))
    spec.annotations.values.update(_free(action.metadata.annotations))
    for key, value in action.spec.env_vars.items():
        spec.envs.values.add(key=key, value=value)
    if action.spec.interruptible is not None:
        spec.interruptible.value = action.spec.interruptible
    return spec


def _free(pairs: Mapping[str, str]) -> dict[str, str]:
    """The pairs that the user set."""
    reserved = (_SYSTEM_DOMAIN, f"{OWN_DOMAIN}/")
    return {key: value for key, value in pairs.items() if not key.startswith(reserved)}


def _details_of_record(found: Found, org: str) -> pb.ActionDetails:
    record = found.record
    assert record is not None
    how = record.status
    if how is None or not Phase(how.phase).is_terminal:
        # A running action that was deleted is aborted.
        how = RunStatus(
            phase=Phase.ABORTED, ended=None if how is None else how.ended, abort_reason=_GONE
        )
    phase = Phase(how.phase)
    message = pb.ActionDetails(
        id=identifier(found.action_id, org),
        metadata=root_metadata(record, org),
        status=status_message(phase, record.created, how.ended, how.attempts, how.cache_status),
        attempts=attempts_of(None, found.history) or [_attempt_of_record(record, how)],
        task=found.task,
    )
    if phase is Phase.ABORTED:
        message.abort_info.reason = how.abort_reason
        if how.aborted_by:
            message.abort_info.aborted_by.CopyFrom(identity(how.aborted_by))
    elif phase in _FAILURES:
        message.error_info.CopyFrom(error_info(how.failure or Failure()))
    return message


def _attempt_of_record(record: RunRecord, how: RunStatus) -> pb.ActionAttempt:
    queued = Transition(Phase.QUEUED, record.created, how.started or how.ended)
    transitions = [queued]
    if how.started is not None:
        transitions.append(Transition(Phase.RUNNING, how.started, how.ended))
    if how.ended is not None:
        transitions.append(Transition(how.phase, how.ended))
    failed = how.phase in _FAILURES
    attempt = Attempt(
        number=max(how.attempts, 1),
        phase=how.phase,
        transitions=tuple(transitions),
        failure=how.failure if failed else None,
        cache_status=how.cache_status,
    )
    return attempt_message(attempt)


def _read(action: StoredAction, read: Callable[[StoredAction], _Part | None]) -> _Part | None:
    """A part of an object; None if it cannot be decoded, so that the rest is sent."""
    return readable(action, lambda: read(action), event="sent_without_field")
