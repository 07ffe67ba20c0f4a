"""Runs as Flyte's messages show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier, UserIdentifier
from flyteidl2.common.identity_pb2 import EnrichedIdentity, User
from flyteidl2.core.catalog_pb2 import CatalogCacheStatus
from flyteidl2.workflow import run_definition_pb2 as pb

from etcd_actions.model import ROOT_ACTION, Phase
from etcd_actions.runs.reading import run_spec_of
from etcd_actions.runs.run_record import RunStatus
from etcd_actions.server.front.attempt_messages import phase_number, timestamp

if TYPE_CHECKING:
    from datetime import datetime

    from etcd_actions.runs.run_entry import RunEntry
    from etcd_actions.runs.run_record import RunRecord

_MILLISECONDS: Final = 1000
_PHASES: Final = frozenset(phase.value for phase in Phase)


def run_identifier(record: RunRecord | RunEntry) -> RunIdentifier:
    """Flyte's name of a run."""
    return RunIdentifier(
        org=record.org, project=record.project, domain=record.domain, name=record.name
    )


def run_message(record: RunRecord) -> pb.Run:
    """A run as lists show it."""
    action = pb.Action(
        id=ActionIdentifier(run=run_identifier(record), name=ROOT_ACTION),
        metadata=root_metadata(record, record.org),
        status=root_status(record),
    )
    return pb.Run(action=action, labels=record.labels)


def root_metadata(record: RunRecord, org: str) -> pb.ActionMetadata:
    """The metadata of a run's root, by its record.

    Args:
        record: The record.
        org: The organisation of identifiers.
    """
    task = record.task
    metadata = pb.ActionMetadata(
        action_type=pb.ACTION_TYPE_TASK,
        # Flyte's message spells it so.
        funtion_name=task.name.rpartition(".")[2] or record.short_name,
    )
    spec = metadata.task
    spec.task_type = record.task_type
    spec.short_name = record.short_name or metadata.funtion_name
    name = spec.id
    name.org, name.name, name.version = task.org or org, task.name, task.version
    name.project, name.domain = task.project or record.project, task.domain or record.domain
    add_of_run(metadata, record, org)
    return metadata


def add_of_run(metadata: pb.ActionMetadata, record: RunRecord, org: str) -> None:
    """Add the fields that only the record of a run has to the metadata of its root."""
    metadata.environment_name = record.environment
    if record.source in pb.RunSource.values():
        metadata.source = pb.RunSource.ValueType(record.source)
    if record.creator:
        metadata.executed_by.CopyFrom(identity(record.creator))
    if record.recovered_from:
        run = metadata.recovered_from.run
        run.CopyFrom(run_identifier(record))
        run.org, run.name = org, record.recovered_from
        metadata.recovered_from.name = ROOT_ACTION
    run_spec = run_spec_of(record)
    if run_spec is not None and run_spec.HasField("relation"):
        metadata.relation.CopyFrom(run_spec.relation)


def root_status(record: RunRecord) -> pb.ActionStatus:
    """The status of a run's root; queued until a status is recorded."""
    status = record.status or RunStatus()
    return status_message(
        _phase(status.phase), record.created, status.ended, status.attempts, status.cache_status
    )


def status_message(
    phase: Phase, created: datetime | None, ended: datetime | None, attempts: int, cache: int
) -> pb.ActionStatus:
    """The status of an action. It starts when it is created: its duration includes the queue.

    Args:
        phase: Its phase; unspecified counts as queued.
        created: When it was created; None if unknown.
        ended: When it became terminal; ignored if it is not.
        attempts: Number of attempts; a queued action is sent with its first one, since clients
            count from 1.
        cache: Flyte's number of the cache status.
    """
    message = pb.ActionStatus(
        phase=phase_number(phase),
        attempts=max(attempts, 1),
        cache_status=CatalogCacheStatus.ValueType(cache),
    )
    if created is not None:
        message.start_time.CopyFrom(timestamp(created))
    if ended is not None and phase.is_terminal:
        message.end_time.CopyFrom(timestamp(ended))
        if created is not None:
            elapsed = (ended - created).total_seconds()
            message.duration_ms = max(0, round(elapsed * _MILLISECONDS))
    return message


def _phase(number: int) -> Phase:
    return Phase(number) if number in _PHASES else Phase.UNSPECIFIED


def identity(subject: str) -> EnrichedIdentity:
    """The identity of a token's subject."""
    return EnrichedIdentity(user=User(id=UserIdentifier(subject=subject)))
