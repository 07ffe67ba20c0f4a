"""Runs with all that a page shows of them, written into etcd as the service would have left them.

Times are the caller's, so two sets of data for the same time are the same bytes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

from flyteidl2.actions.actions_service_pb2 import Action

from etcd_actions import ActionId, Phase
from etcd_actions.actions.object_builder import Inherited, build, build_trace, read_request
from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd, Put, Txn
from etcd_actions.model import (
    ANNOTATION_ABORT_REASON,
    ANNOTATION_ABORTED_BY,
    ROOT_ACTION,
    ActionObject,
    ErrorState,
    Keyspace,
)
from etcd_actions.model.conditions import rfc3339, write_phase
from etcd_actions.model.earlier_attempts import note_earlier
from etcd_actions.runs.run_record import Failure, RunRecord, RunStatus, TaskName, encode
from tests.support import flyte

_PUTS_AT_ONCE: Final = 100
_NAMESPACE: Final = uuid.UUID(int=0)

Phases = Sequence[tuple[Phase, float]]
"""Phases and when each began, in seconds after the beginning of the run."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One action of a run.

    Attributes:
        name: The action's name.
        parent: The parent's; empty for the root.
        task: The name of the task's function, as people see it; of a condition or trace its name.
        kind: ``task``, ``condition`` or ``trace``.
        group: The group in which the parent has it.
        phases: The phases of the last attempt.
        error: Why the last attempt failed.
        earlier: The phases of the attempts before, and why each failed.
        created: When the object was created, in seconds after the beginning of the run; by default
            at its first phase.
        aborted: Who aborted it, and why.
        reports: Whether the task writes a report.
    """

    name: str
    parent: str = ROOT_ACTION
    task: str = ""
    kind: str = "task"
    group: str = ""
    phases: Phases = ()
    error: ErrorState | None = None
    earlier: Sequence[tuple[Phases, ErrorState]] = ()
    created: float | None = None
    aborted: tuple[str, str] | None = None
    reports: bool = False

    @property
    def begins(self) -> float:
        """When it was created."""
        if self.created is not None:
            return self.created
        first = self.earlier[0][0] if self.earlier else self.phases
        return first[0][1] if first else 0.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run: the root comes first among its steps, and parents before their children."""

    name: str
    started: datetime
    steps: Sequence[Step]
    task: str = "pipelines.main"
    project: str = "flytesnacks"
    domain: str = "development"
    creator: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    output_base: str = ""
    input_uri: str = ""

    def action_id(self, name: str = ROOT_ACTION) -> ActionId:
        """The id of an action of it."""
        return ActionId(self.project, self.domain, self.name, name)

    @property
    def path(self) -> str:
        """The path of its page."""
        return f"/v2/domain/{self.domain}/project/{self.project}/runs/{self.name}"


async def put_runs(etcd: Etcd, keys: Keyspace, runs: Iterable[Run]) -> None:
    """Write runs, and their actions, in transactions of some hundred."""
    puts = (Put(key, value) for run in runs for key, value in stored(run, keys))
    while some := tuple(islice(puts, _PUTS_AT_ONCE)):
        await etcd.txn(Txn((), some))


def stored(run: Run, keys: Keyspace) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a run: its record, and the objects of its actions."""
    root = run.steps[0]
    yield keys.run_record(run.action_id()), encode(_record(run, root))
    objects: dict[str, ActionObject] = {}
    for step in run.steps:
        action_id = run.action_id(step.name)
        built = _object(run, step, objects.get(step.parent), keys.namespace_of(action_id))
        if step.kind == "task":
            objects[step.name] = built
        key = keys.trace(action_id) if step.kind == "trace" else keys.task_action(action_id)
        yield key, json.encode(built)


def _object(run: Run, step: Step, parent: ActionObject | None, namespace: str) -> ActionObject:
    inherited = None if parent is None else Inherited.of(parent)
    request = read_request(_action(run, step), None)
    created = _at(run, step.begins)

    def new_uid() -> str:
        return str(uuid.uuid5(_NAMESPACE, f"{run.name}/{step.name}"))

    if request.trace is not None:
        assert inherited is not None
        return build_trace(
            request,
            request.trace,
            inherited,
            None,
            namespace=namespace,
            now=created,
            new_uid=new_uid,
        )
    built = build(request, inherited, namespace=namespace, now=created, new_uid=new_uid)
    tree = json.decode_tree(json.encode(built))
    for number, (phases, error) in enumerate(step.earlier, 1):
        _write(tree, run, phases, number, error)
        following = step.earlier[number][0] if number < len(step.earlier) else step.phases
        entries = len(tree.get("status", {}).get("phaseHistory", ()))
        ended = rfc3339(_at(run, following[0][1]))
        note_earlier(tree, number, error, entries=entries, ended=ended)
    _write(tree, run, step.phases, len(step.earlier) + 1, step.error)
    if step.aborted is not None:
        by, reason = step.aborted
        notes = tree["metadata"].setdefault("annotations", {})
        notes |= {ANNOTATION_ABORTED_BY: by, ANNOTATION_ABORT_REASON: reason}
    return json.decode(json.encode_tree(tree))


def _write(
    tree: dict[str, Any], run: Run, phases: Phases, attempt: int, error: ErrorState | None
) -> None:
    for phase, at in phases:
        why = error if phase in (Phase.FAILED, Phase.TIMED_OUT) else None
        write_phase(tree, phase, now=_at(run, at), attempts=attempt, error=why)


def _action(run: Run, step: Step) -> Action:
    action_id, title = run.action_id(step.name), step.task or step.name
    match step.kind:
        case "condition":
            action = flyte.condition(action_id, step.parent)
            action.condition.name = title
        case "trace":
            phase, ended = step.phases[-1]
            action = flyte.trace(action_id, step.parent, phase=phase)
            action.trace.name = title
            action.trace.start_time.FromDatetime(_at(run, step.begins))
            action.trace.end_time.FromDatetime(_at(run, ended))
        case _:
            environment = run.task.rpartition(".")[0]
            action = flyte.task(action_id, step.parent, name=f"{environment}.{title}")
            action.task.spec.short_name = title
            if step.reports:
                action.task.spec.task_template.metadata.generates_deck.value = True
    action.group = step.group
    action.input_uri = run.input_uri or f"s3://in/{step.name}"
    action.run_output_base = run.output_base or "s3://out/base"
    return action


def _record(run: Run, root: Step) -> RunRecord:
    environment, _, short_name = run.task.rpartition(".")
    phase, entered = root.phases[-1] if root.phases else (Phase.QUEUED, 0.0)
    began = next((at for phase, at in root.phases if phase >= Phase.INITIALIZING), None)
    error = root.error
    status = RunStatus(
        phase=phase.value,
        attempts=len(root.earlier) + 1,
        started=None if began is None else _at(run, began),
        ended=_at(run, entered) if phase.is_terminal else None,
        failure=None if error is None else Failure(error.code, error.kind, error.message),
        aborted_by="" if root.aborted is None else root.aborted[0],
        abort_reason="" if root.aborted is None else root.aborted[1],
    )
    return RunRecord(
        project=run.project,
        domain=run.domain,
        name=run.name,
        task=TaskName("", run.project, run.domain, run.task, "8f3c1d"),
        short_name=short_name,
        environment=environment,
        task_type="python",
        source=2,
        created=run.started,
        creator=run.creator,
        labels=run.labels,
        input_uri=run.input_uri,
        output_base=run.output_base,
        status=status,
    )


def _at(run: Run, seconds: float) -> datetime:
    return run.started + timedelta(seconds=seconds)
