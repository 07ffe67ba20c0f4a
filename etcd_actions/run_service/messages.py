"""What is told to Flyte's run service, in its own messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flyteidl2.common.identity_pb2 import EnrichedIdentity
from flyteidl2.core.catalog_pb2 import CatalogCacheStatus
from flyteidl2.task.task_definition_pb2 import TaskIdentifier, TaskSpec
from flyteidl2.workflow.internal_run_service_pb2 import (
    RecordActionRequest,
    UpdateActionStatusRequest,
)
from flyteidl2.workflow.run_definition_pb2 import ActionStatus, TraceAction
from flyteidl2.workflow.run_definition_pb2 import TaskAction as FlyteTaskAction
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions.errors import DecodeError
from etcd_actions.model import (
    ACTION_TYPE_CONDITION,
    ACTION_TYPE_TRACE,
    ANNOTATION_SUBJECT,
    ActionUpdate,
    Phase,
    TaskAction,
)
from etcd_actions.model import flyte as conversions

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp


def record_action(update: ActionUpdate, action: TaskAction | None) -> RecordActionRequest:
    """The request that makes an action known.

    Without the object, of what was deleted unseen, the run service gets its name only. What
    of it cannot be read is left out, as Flyte's service does: its status must not wait for it.
    """
    request = RecordActionRequest(
        action_id=conversions.action_identifier(update.action_id), parent=update.parent
    )
    if action is None:
        return request
    spec = action.spec
    request.input_uri = spec.input_uri
    request.group = spec.group
    request.subject = action.metadata.annotations.get(ANNOTATION_SUBJECT, "")
    try:
        _describe(request, action)
    except (DecodeError, BadMessage) as error:
        raise DecodeError(f"{update.name}: {error}") from None
    return request


def _describe(request: RecordActionRequest, action: TaskAction) -> None:
    kind = action.spec.kind
    if kind == ACTION_TYPE_CONDITION:
        condition = conversions.condition_action(action)
        if condition is not None:
            request.condition.CopyFrom(condition)
    elif kind == ACTION_TYPE_TRACE:
        request.trace.CopyFrom(TraceAction.FromString(action.spec.trace_spec_bytes))
    elif action.spec.task_type:
        template = conversions.task_template(action)
        task = FlyteTaskAction(spec=TaskSpec(short_name=action.spec.short_name))
        if template is not None:
            task.id.CopyFrom(
                TaskIdentifier(
                    org=action.action_id.org,
                    project=template.id.project,
                    domain=template.id.domain,
                    name=template.id.name,
                    version=template.id.version,
                )
            )
            task.spec.task_template.CopyFrom(template)
        request.task.CopyFrom(task)


def update_action_status(update: ActionUpdate) -> UpdateActionStatusRequest:
    """The request that tells a state of an action."""
    status = ActionStatus(
        phase=update.phase.value,
        attempts=update.attempts or 1,
        cache_status=CatalogCacheStatus.ValueType(update.cache_status),
    )
    _set_time(status.start_time, update.creation_timestamp)
    if update.end_time:
        _set_time(status.end_time, update.end_time)
    request = UpdateActionStatusRequest(
        action_id=conversions.action_identifier(update.action_id), status=status
    )
    value = update.signal_value if update.phase is Phase.SUCCEEDED else None
    if value is not None:
        request.output.CopyFrom(conversions.literal(value))
        if update.signalled_by:
            request.principal.CopyFrom(_identity(update.signalled_by))
    if update.phase is Phase.ABORTED:
        if update.abort_reason:
            request.abort_reason = update.abort_reason
        if update.aborted_by:
            request.principal.CopyFrom(_identity(update.aborted_by))
    return request


def _identity(subject: str) -> EnrichedIdentity:
    identity = EnrichedIdentity()
    identity.user.id.subject = subject
    return identity


def _set_time(field: Timestamp, text: str) -> None:
    if text:
        try:
            field.FromJsonString(text)
        except ValueError as error:
            raise DecodeError(f"no RFC 3339 time: {text!r}: {error}") from None
