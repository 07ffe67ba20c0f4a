"""Updates of actions as Flyte's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flyteidl2.actions.actions_service_pb2 import WatchForUpdatesResponse
from flyteidl2.core.execution_pb2 import ContainerError, ExecutionError
from flyteidl2.workflow import state_service_pb2 as pb

from etcd_actions._internal.readable_parts import readable
from etcd_actions.model import ACTION_TYPE_CONDITION, FAILURES, ActionUpdate, ErrorState, Phase
from etcd_actions.model import flyte as conversions

if TYPE_CHECKING:
    from flyteidl2.core.literals_pb2 import Literal

_KINDS: Final = {"USER": ExecutionError.USER, "SYSTEM": ExecutionError.SYSTEM}


def sentinel() -> WatchForUpdatesResponse:
    """The message after a snapshot, and after a silence."""
    return WatchForUpdatesResponse(control_message=pb.ControlMessage(sentinel=True))


def is_sent(update: ActionUpdate) -> bool:
    """Whether a stream delivers this state.

    Of a condition it delivers only the terminal state. A restarted parent that finds a waiting
    condition in its snapshot would take the missing value for the signal.
    """
    return update.phase.is_terminal or update.action_type != ACTION_TYPE_CONDITION


def response(update: ActionUpdate, org: str) -> WatchForUpdatesResponse:
    """The message with a state; ``org`` is the organisation of an object that has none."""
    message = pb.ActionUpdate(
        action_id=conversions.action_identifier(update.action_id),
        phase=update.phase.value,
        output_uri=update.output_uri,
    )
    if not update.action_id.org:
        message.action_id.run.org = org
    if (error := execution_error(update)) is not None:
        message.error.CopyFrom(error)
    value = _value(update)
    if value is not None:
        message.value.CopyFrom(value)
    return WatchForUpdatesResponse(action_update=message)


def execution_error(update: ActionUpdate) -> ExecutionError | None:
    """Why an action failed, timed out or was aborted; None if no reason is stored."""
    error = update.error
    if update.phase is Phase.ABORTED and error is None and update.abort_reason:
        error = ErrorState(code="Aborted", kind="USER", message=update.abort_reason)
    if error is None or update.phase not in FAILURES:
        return None
    message = ExecutionError(
        code=error.code,
        message=error.message,
        kind=_KINDS.get(error.kind, ExecutionError.UNKNOWN),
    )
    if error.recoverable:
        message.recoverability = ContainerError.RECOVERABLE
    return message


def _value(update: ActionUpdate) -> Literal | None:
    if not update.signal_base64:
        return None
    literal = update.signal_literal or b""
    return readable(update, lambda: conversions.literal(literal), event="sent_without_field")
