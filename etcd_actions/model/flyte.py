"""Conversions to Flyte's protobuf messages, which are imported on first use only."""

from __future__ import annotations

import importlib
from typing import Any, Final, Generic, NamedTuple, TypeVar

from etcd_actions.errors import ConfigError, DecodeError, InvalidArgument
from etcd_actions.model.flyte_types import (
    ActionIdentifier,
    ConditionAction,
    Literal,
    TaskTemplate,
    TraceAction,
)
from etcd_actions.model.names import ANNOTATION_RECOVERED_FROM, ActionId
from etcd_actions.model.taskaction import ActionObject

# A bool is an int, too, so it comes first.
_PRIMITIVES: Final = {
    bool: "boolean",
    int: "integer",
    float: "float_value",
    str: "string_value",
}
_Message = TypeVar("_Message")


class _Kind(NamedTuple, Generic[_Message]):
    """The module and the name of a message's class."""

    module: str
    name: str


_LITERAL: Final[_Kind[Literal]] = _Kind("flyteidl2.core.literals_pb2", "Literal")
_TASK_TEMPLATE: Final[_Kind[TaskTemplate]] = _Kind("flyteidl2.core.tasks_pb2", "TaskTemplate")
_CONDITION: Final[_Kind[ConditionAction]] = _Kind(
    "flyteidl2.workflow.run_definition_pb2", "ConditionAction"
)
_TRACE: Final[_Kind[TraceAction]] = _Kind("flyteidl2.workflow.run_definition_pb2", "TraceAction")


def action_identifier(action_id: ActionId) -> ActionIdentifier:
    """Make Flyte's identifier of an action.

    Raises:
        ConfigError: ``flyteidl2`` is not installed.
    """
    messages = _import("flyteidl2.common.identifier_pb2")
    run = messages.RunIdentifier(
        org=action_id.org,
        project=action_id.project,
        domain=action_id.domain,
        name=action_id.run,
    )
    identifier: ActionIdentifier = messages.ActionIdentifier(run=run, name=action_id.name)
    return identifier


def task_template(action: ActionObject) -> TaskTemplate | None:
    """Read the task template of an action, None if it has none.

    Raises:
        DecodeError: The field is not base64 or not a template.
        ConfigError: ``flyteidl2`` is not installed.
    """
    data = action.spec.task_template_bytes
    return _parse(_TASK_TEMPLATE, data, "spec.taskTemplate") if data else None


def short_name(action: ActionObject) -> str:
    """Return the name to show: ``spec.shortName``, or else the name that Flyte shows.

    Flyte's is the last part, by dots, of the name in the task template; empty without a template.

    Raises:
        DecodeError: The template cannot be read.
        ConfigError: ``flyteidl2`` is not installed.
    """
    if action.spec.short_name:
        return action.spec.short_name
    template = task_template(action)
    return template.id.name.rpartition(".")[2] if template is not None else ""


def condition_action(action: ActionObject) -> ConditionAction | None:
    """Read the specification of a condition, None if the action is not a condition.

    Raises:
        DecodeError: The field is not base64 or not a condition.
        ConfigError: ``flyteidl2`` is not installed.
    """
    data = action.spec.condition_spec_bytes
    return _parse(_CONDITION, data, "spec.conditionSpec") if data else None


def trace_action(action: ActionObject) -> TraceAction | None:
    """Read the specification of a trace, None if the action is not a trace.

    Raises:
        DecodeError: The field is not base64 or not a trace.
        ConfigError: ``flyteidl2`` is not installed.
    """
    data = action.spec.trace_spec_bytes
    return _parse(_TRACE, data, "spec.traceSpec") if data else None


def signal_value(action: ActionObject) -> Literal | None:
    """Read the value that a condition was signalled with, None if there is none.

    Raises:
        DecodeError: The field is not base64 or not a literal.
        ConfigError: ``flyteidl2`` is not installed.
    """
    data = action.status.signal_value_bytes
    return None if data is None else literal(data)


def literal(data: bytes) -> Literal:
    """Parse a signal's value, see `ActionUpdate.signal_literal`.

    Raises:
        DecodeError: It is not a literal.
        ConfigError: ``flyteidl2`` is not installed.
    """
    return _parse(_LITERAL, data, "status.signalValue")


def literal_of(value: bool | float | str) -> Literal:
    """Make Flyte's message of a primitive value.

    Raises:
        InvalidArgument: An integer has more than 64 bits, or a string lone surrogates.
        ConfigError: ``flyteidl2`` is not installed.
    """
    messages = _import("flyteidl2.core.literals_pb2")
    field = next(name for kind, name in _PRIMITIVES.items() if isinstance(value, kind))
    try:
        primitive = messages.Primitive(**{field: value})
    except ValueError as error:
        raise InvalidArgument("value", str(error)) from None
    made: Literal = messages.Literal(scalar=messages.Scalar(primitive=primitive))
    return made


def value_of(message: Literal) -> bool | float | str | None:
    """Return the boolean, integer, float or string in a literal; None if it has another form."""
    primitive = message.scalar.primitive
    field = primitive.WhichOneof("value")
    return getattr(primitive, field) if field in _PRIMITIVES.values() else None


def recovered_from(action: ActionObject) -> ActionIdentifier | None:
    """The action of another run whose outputs an action has; None if it ran itself.

    Raises:
        ConfigError: ``flyteidl2`` is not installed.
    """
    run = action.metadata.annotations.get(ANNOTATION_RECOVERED_FROM, "")
    if not run:
        return None
    there = action.action_id
    return action_identifier(ActionId(there.project, there.domain, run, there.name, there.org))


def _parse(kind: _Kind[_Message], data: bytes, field: str) -> _Message:
    # Before protobuf's own import, so that a missing extra is named.
    message = getattr(_import(kind.module), kind.name)
    from google.protobuf.message import DecodeError as BadMessage  # noqa: PLC0415

    try:
        parsed: _Message = message.FromString(data)
    except BadMessage as error:
        raise DecodeError(f"{field}: not a {kind.name}: {error}") from None
    return parsed


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Flyte's messages are not installed ({error}): pip install etcd-actions[flyte]"
        ) from error
