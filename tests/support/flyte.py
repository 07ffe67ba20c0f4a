"""Flyte's messages, as an SDK sends them."""

from __future__ import annotations

from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.core.identifier_pb2 import Identifier
from flyteidl2.core.literals_pb2 import Literal, Primitive, Scalar
from flyteidl2.core.tasks_pb2 import Container, TaskTemplate
from flyteidl2.core.types_pb2 import LiteralType, SimpleType
from flyteidl2.task.task_definition_pb2 import TaskIdentifier, TaskSpec, TraceSpec
from flyteidl2.workflow.run_definition_pb2 import (
    ActionStatus,
    ConditionAction,
    TaskAction,
    TraceAction,
)

from etcd_actions import ActionId, Phase


def identifier(action_id: ActionId) -> ActionIdentifier:
    run = RunIdentifier(
        org=action_id.org,
        project=action_id.project,
        domain=action_id.domain,
        name=action_id.run,
    )
    return ActionIdentifier(run=run, name=action_id.name)


def _action(action_id: ActionId, parent: str) -> Action:
    action = Action(
        action_id=identifier(action_id),
        input_uri=f"s3://in/{action_id.name}",
        run_output_base="s3://out/base",
    )
    if parent:
        action.parent_action_name = parent
    return action


def task(action_id: ActionId, parent: str = "", *, name: str = "f") -> Action:
    """A Python task in a container."""
    action = _action(action_id, parent)
    template = TaskTemplate(
        id=Identifier(project=action_id.project, domain=action_id.domain, name=name, version="1"),
        type="python",
        container=Container(args=["run", name]),
    )
    action.task.CopyFrom(
        TaskAction(
            id=TaskIdentifier(
                project=action_id.project, domain=action_id.domain, name=name, version="1"
            ),
            spec=TaskSpec(task_template=template, short_name=name),
        )
    )
    return action


def condition(action_id: ActionId, parent: str) -> Action:
    """One that waits for a boolean."""
    action = _action(action_id, parent)
    declared = LiteralType(simple=SimpleType.BOOLEAN)
    action.condition.CopyFrom(ConditionAction(name=action_id.name, type=declared))
    return action


def trace(action_id: ActionId, parent: str, *, phase: Phase = Phase.SUCCEEDED) -> Action:
    action = _action(action_id, parent)
    action.trace.CopyFrom(
        TraceAction(name=action_id.name, phase=ActionPhase.ValueType(phase), spec=TraceSpec())
    )
    action.trace.start_time.FromJsonString("2026-11-23T16:00:00Z")
    action.trace.end_time.FromJsonString("2026-11-23T16:00:01Z")
    action.trace.outputs.output_uri = f"s3://out/{action_id.name}/outputs.pb"
    return action


def status(phase: Phase, attempts: int = 1) -> ActionStatus:
    return ActionStatus(phase=ActionPhase.ValueType(phase), attempts=attempts)


def boolean(value: bool) -> Literal:
    return Literal(scalar=Scalar(primitive=Primitive(boolean=value)))
