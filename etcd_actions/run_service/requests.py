"""Makes Flyte's messages of the reports to the run service.

If a part of an object cannot be decoded, the action is reported without that part: the run service
needs the record for the status, and a terminal state must not wait for a bad field.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from flyteidl2.common.identity_pb2 import EnrichedIdentity
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.core.catalog_pb2 import CatalogCacheStatus
from flyteidl2.task.task_definition_pb2 import TaskIdentifier, TaskSpec
from flyteidl2.workflow import internal_run_service_pb2 as pb
from flyteidl2.workflow.run_definition_pb2 import ActionStatus, ConditionAction, TraceAction
from flyteidl2.workflow.run_definition_pb2 import TaskAction as FlyteTaskAction

from etcd_actions._internal.readable_parts import readable
from etcd_actions.model import (
    ACTION_TYPE_CONDITION,
    ACTION_TYPE_TRACE,
    ANNOTATION_SUBJECT,
    SUCCESSES,
    ActionObject,
    ActionUpdate,
    Phase,
)
from etcd_actions.model import flyte as conversions
from etcd_actions.model.taskaction import parse_time

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_EVENT: Final = "reported_without_field"


def answer(method: str) -> Any:
    """The class of a method's answers."""
    return getattr(pb, f"{method}Response")


def record_action(update: ActionUpdate, action: ActionObject | None) -> pb.RecordActionRequest:
    """The request that makes an action known.

    Without the object, as of a deletion that only a list showed, it has the name and no ``spec``:
    an invented one could replace the real one that another process has recorded.
    """
    request = pb.RecordActionRequest(
        action_id=conversions.action_identifier(update.action_id), parent=update.parent
    )
    if action is None:
        return request
    spec = action.spec
    request.input_uri = spec.input_uri
    request.group = spec.group
    request.subject = action.metadata.annotations.get(ANNOTATION_SUBJECT, "")
    if source := conversions.recovered_from(action):
        request.recovered_from.CopyFrom(source)
    if spec.kind == ACTION_TYPE_CONDITION:
        condition = readable(update, lambda: conversions.condition_action(action), event=_EVENT)
        request.condition.CopyFrom(condition or ConditionAction(name=spec.action_name))
    elif spec.kind == ACTION_TYPE_TRACE:
        trace = readable(update, lambda: conversions.trace_action(action), event=_EVENT)
        request.trace.CopyFrom(
            trace
            or TraceAction(name=spec.short_name, phase=ActionPhase.ValueType(update.phase.value))
        )
    else:
        request.task.CopyFrom(_task(update, action))
    return request


def update_action_status(update: ActionUpdate) -> pb.UpdateActionStatusRequest:
    """The request that reports a state of an action."""
    status = ActionStatus(
        phase=ActionPhase.ValueType(update.phase.value),
        # Flyte demands one at least; none has started before the executor reports it.
        attempts=max(1, update.attempts),
        cache_status=CatalogCacheStatus.ValueType(update.cache_status),
    )
    _set_time(update, status.start_time, update.creation_timestamp, "metadata.creationTimestamp")
    _set_time(update, status.end_time, update.end_time, "status.conditions")
    request = pb.UpdateActionStatusRequest(
        action_id=conversions.action_identifier(update.action_id), status=status
    )
    subject = ""
    if update.phase in SUCCESSES and update.signal_base64:
        subject = update.signalled_by
        value = readable(
            update, lambda: conversions.literal(update.signal_literal or b""), event=_EVENT
        )
        if value is not None:
            request.output.CopyFrom(value)
    elif update.phase is Phase.ABORTED:
        subject = update.aborted_by
        if update.abort_reason:
            request.abort_reason = update.abort_reason
    if subject:
        request.principal.CopyFrom(_identity(subject))
    return request


def _task(update: ActionUpdate, action: ActionObject) -> FlyteTaskAction:
    spec = action.spec
    task = FlyteTaskAction(spec=TaskSpec(short_name=spec.short_name))
    if spec.cache_key:
        task.cache_key.value = spec.cache_key
    template = readable(update, lambda: conversions.task_template(action), event=_EVENT)
    if template is not None:
        task.id.CopyFrom(
            TaskIdentifier(
                org=template.id.org or action.action_id.org,
                project=template.id.project,
                domain=template.id.domain,
                name=template.id.name,
                version=template.id.version,
            )
        )
        task.spec.task_template.CopyFrom(template)
    return task


def _identity(subject: str) -> EnrichedIdentity:
    identity = EnrichedIdentity()
    identity.user.id.subject = subject
    return identity


def _set_time(update: ActionUpdate, field: Timestamp, text: str, name: str) -> None:
    time = readable(update, lambda: parse_time(text, name), event=_EVENT)
    if time is not None:
        field.seconds = math.floor(time.timestamp())
        field.nanos = time.microsecond * 1000
