"""Flyte's messages, by name, for annotations.

The package ``flyteidl2`` is an extra and takes long to import, so type checkers see its classes,
and at run time, as in :func:`typing.get_type_hints`, each name is :data:`typing.Any`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flyteidl2.actions.actions_service_pb2 import Action
    from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier
    from flyteidl2.common.identity_pb2 import EnrichedIdentity
    from flyteidl2.core.literals_pb2 import Literal
    from flyteidl2.core.tasks_pb2 import TaskTemplate
    from flyteidl2.task.run_pb2 import RunSpec
    from flyteidl2.workflow.run_definition_pb2 import ConditionAction, TraceAction
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp
else:
    Action = ActionIdentifier = RunIdentifier = EnrichedIdentity = Literal = Any
    TaskTemplate = RunSpec = ConditionAction = TraceAction = Duration = Timestamp = Any

__all__ = [
    "Action",
    "ActionIdentifier",
    "ConditionAction",
    "Duration",
    "EnrichedIdentity",
    "Literal",
    "RunIdentifier",
    "RunSpec",
    "TaskTemplate",
    "Timestamp",
    "TraceAction",
]
