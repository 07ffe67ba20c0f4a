"""Runs as Flyte's messages show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flyteidl2.common import phase_pb2
from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier, UserIdentifier
from flyteidl2.common.identity_pb2 import EnrichedIdentity, User
from flyteidl2.workflow import run_definition_pb2 as pb

from etcd_actions.model import ROOT_ACTION
from etcd_actions.server.front.attempt_messages import timestamp

if TYPE_CHECKING:
    from etcd_actions.runs.run_entry import RunEntry
    from etcd_actions.runs.run_record import RunRecord

_MILLISECONDS: Final = 1000


def run_identifier(record: RunRecord | RunEntry) -> RunIdentifier:
    """Flyte's name of a run."""
    return RunIdentifier(
        org=record.org, project=record.project, domain=record.domain, name=record.name
    )


def root_metadata(record: RunRecord) -> pb.ActionMetadata:
    """The metadata of a run's root."""
    task = record.task
    metadata = pb.ActionMetadata(
        action_type=pb.ACTION_TYPE_TASK,
        environment_name=record.environment,
        # Flyte's message spells it so.
        funtion_name=record.short_name,
        source=record.source,
    )
    spec = metadata.task
    spec.task_type, spec.short_name = record.task_type, record.short_name
    name = spec.id
    name.org, name.name, name.version = task.org or record.org, task.name, task.version
    name.project, name.domain = task.project or record.project, task.domain or record.domain
    if record.creator:
        metadata.executed_by.CopyFrom(identity(record.creator))
    if record.recovered_from:
        run = metadata.recovered_from.run
        run.CopyFrom(run_identifier(record))
        run.name = record.recovered_from
        metadata.recovered_from.name = ROOT_ACTION
    return metadata


def root_status(record: RunRecord) -> pb.ActionStatus:
    """The status of a run's root; queued until a status is recorded."""
    status = record.status
    message = pb.ActionStatus(
        phase=phase_pb2.ACTION_PHASE_QUEUED, start_time=timestamp(record.created)
    )
    if status is None:
        return message
    started = status.started or record.created
    message.start_time.CopyFrom(timestamp(started))
    message.phase = status.phase or phase_pb2.ACTION_PHASE_QUEUED
    message.attempts, message.cache_status = status.attempts, status.cache_status
    if status.ended is not None:
        message.end_time.CopyFrom(timestamp(status.ended))
        elapsed = (status.ended - started).total_seconds()
        message.duration_ms = max(0, round(elapsed * _MILLISECONDS))
    return message


def run_message(record: RunRecord) -> pb.Run:
    """A run as lists show it."""
    action = pb.Action(
        id=ActionIdentifier(run=run_identifier(record), name=ROOT_ACTION),
        metadata=root_metadata(record),
        status=root_status(record),
    )
    return pb.Run(action=action, labels=record.labels)


def identity(subject: str) -> EnrichedIdentity:
    """The identity of a token's subject."""
    return EnrichedIdentity(user=User(id=UserIdentifier(subject=subject)))
