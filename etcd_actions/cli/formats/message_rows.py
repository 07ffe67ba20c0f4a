"""Flyte's messages as rows for a person or a program. No I/O."""

from __future__ import annotations

from typing import Final

import msgspec
from flyteidl2.workflow import run_definition_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from etcd_actions.cli.formats.rows import ActionRow
from etcd_actions.model import ErrorState, Phase, task_action_name

_KINDS: Final = {pb.ErrorInfo.KIND_USER: "USER", pb.ErrorInfo.KIND_SYSTEM: "SYSTEM"}


class RunRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run. Times are RFC 3339 in UTC; empty if unknown.

    Attributes:
        done: Number of terminal actions; None if the actions were not counted.
        actions: Number of actions.
        created_by: The subject of the token that created it.
    """

    project: str
    domain: str
    run: str
    phase: str
    created_at: str
    ended_at: str = ""
    duration_ms: int | None = None
    done: int | None = None
    actions: int | None = None
    task: str = ""
    version: str = ""
    attempts: int = 1
    created_by: str = ""
    labels: dict[str, str] = {}

    @property
    def path(self) -> str:
        """The name that commands take."""
        return f"{self.project}/{self.domain}/{self.run}"


def run_row(run: pb.Run) -> RunRow:
    """The row of a run, without the numbers of actions."""
    action = run.action
    named, status, task = action.id.run, action.status, action.metadata.task
    return RunRow(
        project=named.project,
        domain=named.domain,
        run=named.name,
        phase=phase_of(status.phase).name,
        created_at=time_text(status.start_time),
        ended_at=time_text(status.end_time) if status.HasField("end_time") else "",
        duration_ms=status.duration_ms if status.HasField("end_time") else None,
        task=task.id.name or task.short_name,
        version=task.id.version,
        attempts=max(status.attempts, 1),
        created_by=action.metadata.executed_by.user.id.subject,
        labels=dict(run.labels),
    )


def action_row(
    action: pb.Action, error: ErrorState | None = None, kind: str = "ACTION"
) -> ActionRow:
    """The row of an action, without the fields that only etcd has.

    Args:
        action: The message.
        error: The error, which the message does not have.
        kind: The kind of the change.
    """
    named, status, metadata = action.id, action.status, action.metadata
    phase = phase_of(status.phase)
    return ActionRow(
        type=kind,
        name=task_action_name(named.run.name, named.name),
        run=named.run.name,
        action=named.name,
        parent=metadata.parent or None,
        phase=phase.name,
        attempts=max(status.attempts, 1),
        terminal=phase.is_terminal,
        recorded=None,
        project=named.run.project,
        domain=named.run.domain,
        short_name=metadata.task.short_name or metadata.condition.name or metadata.trace.name,
        error=error,
        created_at=time_text(status.start_time),
        ended_at=time_text(status.end_time) if status.HasField("end_time") else "",
    )


def error_of(details: pb.ActionDetails) -> ErrorState | None:
    """The error or the reason of the abort of an action; None if unknown."""
    result = details.WhichOneof("result")
    if result == "error_info":
        info = details.error_info
        return ErrorState(info.code, _KINDS.get(info.kind, ""), info.message)
    if result == "abort_info" and details.abort_info.reason:
        return ErrorState("Aborted", "USER", details.abort_info.reason)
    return None


def phase_of(number: int) -> Phase:
    """The phase of Flyte's number: QUEUED if it is not set, RUNNING if it is not known here."""
    try:
        return Phase(number) or Phase.QUEUED
    except ValueError:
        return Phase.RUNNING


def time_text(time: Timestamp) -> str:
    """A time as the commands print it; empty if it is not set."""
    return "" if not (time.seconds or time.nanos) else time.ToJsonString()
