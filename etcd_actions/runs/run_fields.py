"""The fields of runs for filters and sort keys, by the names of Flyte's run service."""

from __future__ import annotations

from typing import Final

from flyteidl2.common import phase_pb2
from flyteidl2.workflow import run_definition_pb2

from etcd_actions.runs.filters import Field, Fields, Kind
from etcd_actions.runs.run_entry import RunEntry
from etcd_actions.runs.run_record import ANONYMOUS

CREATED: Final = "created_at"
"""The default sort key of runs."""

PHASE_PREFIX: Final = "ACTION_PHASE_"
PHASES: Final = {
    name.removeprefix(PHASE_PREFIX): number
    for name, number in phase_pb2.ActionPhase.items()
    if number
}
"""Flyte's phases of an action, by their names without the prefix."""

_SOURCE_PREFIX: Final = "RUN_SOURCE_"
_SOURCES: Final = {
    name.removeprefix(_SOURCE_PREFIX): number
    for name, number in run_definition_pb2.RunSource.items()
}
_QUEUED: Final = PHASES["QUEUED"]


def phase_of(entry: RunEntry) -> int:
    """Flyte's number of a run's phase; without a recorded one the run is queued."""
    return entry.phase or _QUEUED


def duration_of(entry: RunEntry) -> int | None:
    """Milliseconds from the creation of a run to its end; None if it is not terminal."""
    return None if entry.ended is None else max(0, entry.ended - entry.created) // 1000


RUN_FIELDS: Final[Fields[RunEntry]] = Fields(
    {
        "name": Field(lambda run: run.name),
        "run_name": Field(lambda run: run.name),
        "project": Field(lambda run: run.project),
        "domain": Field(lambda run: run.domain),
        "phase": Field(phase_of, Kind.CHOICE, PHASES, PHASE_PREFIX),
        "task_name": Field(lambda run: run.task.name),
        "task_version": Field(lambda run: run.task.version),
        "task_type": Field(lambda run: run.task.type),
        "task_short_name": Field(lambda run: run.task.short_name),
        "function_name": Field(lambda run: run.task.short_name),
        "environment_name": Field(lambda run: run.task.environment),
        CREATED: Field(lambda run: run.created, Kind.TIME),
        "started_at": Field(lambda run: run.started, Kind.TIME),
        "ended_at": Field(lambda run: run.ended, Kind.TIME),
        "updated_at": Field(lambda run: run.updated, Kind.TIME),
        "duration_ms": Field(duration_of, Kind.NUMBER),
        "attempts": Field(lambda run: run.attempts, Kind.NUMBER),
        "created_by": Field(lambda run: run.creator or ANONYMOUS),
        "creator": Field(lambda run: run.creator or ANONYMOUS),
        "run_source": Field(lambda run: run.source, Kind.CHOICE, _SOURCES, _SOURCE_PREFIX),
        "recovered_from": Field(lambda run: run.recovered_from),
    },
    RunEntry.label,
)
"""The fields of a run, and its labels."""
