"""TaskActions as protobuf messages: their trees, views and summaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from etcd_actions.codecs._pb import etcd_actions_taskaction_pb2 as pb
from etcd_actions.codecs.message_forms import Elsewhere, Form, read_tree, read_view, write_tree
from etcd_actions.codecs.object_tree import base64_text
from etcd_actions.model import names, summary
from etcd_actions.model.mark import State, details_digest, read_state, subject_digest
from etcd_actions.model.phase import phase_of
from etcd_actions.model.summary import Summary
from etcd_actions.model.taskaction import ActionObject


def parse(data: bytes) -> pb.TaskAction:
    """Parse a message.

    Raises:
        ValueError: It is malformed.
    """
    try:
        return pb.TaskAction.FromString(data)
    except ProtobufDecodeError as error:
        raise ValueError(str(error)) from None


def tree_of(message: pb.TaskAction) -> dict[str, Any]:
    """A message's tree.

    Raises:
        ValueError: A field of JSON has none, or repeats another field.
        RecursionError: It is nested too deeply.
    """
    return read_tree(message, _TASK_ACTION)


def message_of(tree: dict[str, Any]) -> pb.TaskAction:
    """Make the message of a tree that was checked and has no plain floats.

    Raises:
        ValueError: A string is not Unicode.
        RecursionError: It is nested too deeply.
    """
    message = pb.TaskAction()
    write_tree(message, tree, _TASK_ACTION)
    return message


def view_of(message: pb.TaskAction) -> ActionObject | None:
    """A message's typed view; None if not all of it is in typed fields."""
    if not _is_task_action(message):
        return None
    try:
        action: ActionObject = read_view(message, _TASK_ACTION)
    except Elsewhere:
        return None
    return action


def summary_of(message: pb.TaskAction, revision: int, create_revision: int) -> Summary | None:
    """A message's summary; None if not all of it is in typed fields."""
    metadata, spec, status = message.metadata, message.spec, message.status
    if message.other_fields or metadata.other_fields or spec.other_fields or status.other_fields:
        return None
    if not _is_task_action(message):
        return None
    project, domain, run, name = spec.project, spec.domain, spec.run_name, spec.action_name
    # An empty text may be an absent one, which the view refuses.
    if not (project and domain and run and name and message.HasField("metadata")):
        return None
    conditions = status.conditions
    for condition in conditions:
        if condition.other_fields or not condition.type or not condition.status:
            return None
    state = State(phase_of(conditions), status.attempts, False)
    if metadata.labels.get(names.LABEL_TERMINAL_STATUS_RECORDED) == "true":
        error = status.error_state if status.HasField("error_state") else None
        if error is not None and error.other_fields:
            return None
        state = read_state(
            metadata.annotations.get(names.ANNOTATION_RECORDED),
            state.phase,
            state.attempts,
            create_revision,
            subject_digest(project, domain, run, name, metadata.uid),
            details_digest(
                error and read_view(error, _ERROR_STATE),
                base64_text(status.signal_value) if status.signal_value else "",
                status.output_uri if spec.action_type == names.ACTION_TYPE_TRACE else "",
            ),
        )
    return summary.summary_of(message, state, revision, create_revision)


def _is_task_action(message: pb.TaskAction) -> bool:
    return names.is_task_action(message.api_version, message.kind)


def fields_of_later_versions(message: pb.TaskAction) -> str:
    """The paths of the fields that the schema lacks; empty if there are none."""
    known = pb.TaskAction()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    if known.ByteSize() == message.ByteSize():
        return ""
    return ", ".join(_unknown(message, "TaskAction"))


def _unknown(message: Message, path: str) -> list[str]:
    found = [f"{path}.{field.field_number}" for field in unknown_fields(message)]
    for field, item in message.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for each in item if field.is_repeated else [item]:
                found += _unknown(each, f"{path}.{field.name}")
    return found


unknown_fields: Callable[[Message], Iterable[Any]] = UnknownFieldSet  # type: ignore[assignment]
"""The parsed fields that the message's type does not have."""
_TASK_ACTION: Final = Form(pb.TaskAction.DESCRIPTOR)
_ERROR_STATE: Final = Form(pb.ErrorState.DESCRIPTOR)
