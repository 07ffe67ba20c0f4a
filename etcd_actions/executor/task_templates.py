"""The task template of an action, and the error of an action that has no usable one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.model import ErrorState
from etcd_actions.model import flyte as conversions

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

INVALID_SPEC: Final = "InvalidSpec"


def template_of(action: StoredAction) -> TaskTemplate:
    """The task template of an action.

    Raises:
        InvalidArgument: There is none.
        DecodeError: It cannot be read.
    """
    template = conversions.task_template(action)
    if template is None:
        raise InvalidArgument("spec.taskTemplate", "it is empty")
    return template


def invalid_spec(error: DecodeError | InvalidArgument) -> ErrorState:
    """The error of an invalid action; of kind USER, unless the field is of the metadata."""
    field = error.field if isinstance(error, InvalidArgument) else ""
    kind = "SYSTEM" if field.startswith("metadata.") else "USER"
    return ErrorState(code=INVALID_SPEC, kind=kind, message=str(error))
