"""Builds the object of an action, as Flyte's service does.

What Flyte's object has no field for is kept in annotations of ours: organisation, subject, the
start time of the run, and a digest of the request.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from google.protobuf.message import Message

from etcd_actions.errors import InvalidArgument
from etcd_actions.model import (
    ACTION_TYPE_CONDITION,
    ACTION_TYPE_TASK,
    ACTION_TYPE_TRACE,
    ANNOTATION_DIGEST,
    ANNOTATION_ORG,
    ANNOTATION_RUN_START_TIME,
    ANNOTATION_SUBJECT,
    API_VERSION,
    FINALIZER_RECORD,
    KIND,
    LABEL_ACTION,
    LABEL_ACTION_TYPE,
    LABEL_DOMAIN,
    LABEL_IS_ROOT,
    LABEL_PROJECT,
    LABEL_RUN,
    OWN_DOMAIN,
    ActionId,
    ErrorState,
    ObjectMeta,
    OwnerReference,
    Phase,
    TaskAction,
    TaskActionSpec,
    TaskActionStatus,
)
from etcd_actions.model.conditions import rfc3339

if TYPE_CHECKING:
    from flyteidl2.actions.actions_service_pb2 import Action
    from flyteidl2.core.tasks_pb2 import TaskTemplate
    from flyteidl2.task.run_pb2 import RunSpec

_START_TIME: Final = "{{.runStartTime}}"
_SYSTEM_DOMAIN: Final = "flyte.org/"
_RUN_ANNOTATIONS: Final = (ANNOTATION_RUN_START_TIME,)
_SIMPLE_TYPES: Final = {1: "INTEGER", 2: "FLOAT", 3: "STRING", 4: "BOOLEAN"}


class Request(NamedTuple):
    """A checked request."""

    action: Action
    run_spec: RunSpec | None
    action_id: ActionId
    kind: str
    digest: str

    @property
    def is_root(self) -> bool:
        """Whether the action has no parent."""
        return not self.action.parent_action_name

    @property
    def parent_id(self) -> ActionId:
        """Which action the parent is."""
        run = self.action_id
        return ActionId(run.project, run.domain, run.run, self.action.parent_action_name, run.org)


def read_request(action: Action, run_spec: RunSpec | None) -> Request:
    """Check what is there at all.

    Raises:
        InvalidArgument: A part is missing, or a condition's type is none that can be signalled.
    """
    if not action.HasField("action_id"):
        raise InvalidArgument("action_id", "it is not set: name the action")
    if not action.action_id.HasField("run"):
        raise InvalidArgument("action_id.run", "it is not set: name the run")
    kind = action.WhichOneof("spec")
    if kind is None:
        raise InvalidArgument("spec", "it is not set: give a task, a trace or a condition")
    if kind == ACTION_TYPE_CONDITION:
        declared = action.condition.type
        if declared.WhichOneof("type") != "simple" or declared.simple not in _SIMPLE_TYPES:
            raise InvalidArgument(
                "condition.type",
                "give one of the simple types " + ", ".join(_SIMPLE_TYPES.values()),
            )
    run = action.action_id.run
    action_id = ActionId(run.project, run.domain, run.name, action.action_id.name, run.org)
    for field, text in (
        ("action_id.run.project", run.project),
        ("action_id.run.domain", run.domain),
        ("action_id.run.name", run.name),
        ("action_id.name", action.action_id.name),
    ):
        if not text or "/" in text:
            raise InvalidArgument(field, f"{text!r} is no name: give one, without a slash")
    if "/" in action.parent_action_name:
        raise InvalidArgument("parent_action_name", "a name has no slash")
    if (
        action.parent_action_name
        and action_id.object_name
        == ActionId(run.project, run.domain, run.name, action.parent_action_name).object_name
    ):
        raise InvalidArgument("parent_action_name", "an action is not its own parent")
    if kind == ACTION_TYPE_TRACE and not action.parent_action_name:
        raise InvalidArgument("parent_action_name", "a trace has a parent: name it")
    return Request(action, run_spec, action_id, kind, _digest(action, run_spec))


def build(
    request: Request,
    parent: TaskAction | None,
    *,
    namespace: str,
    now: datetime,
    new_uid: Callable[[], str],
) -> TaskAction:
    """Build the object of a task or condition.

    Args:
        request: What is asked for.
        parent: The parent's object, None for a root.
        namespace: The object's namespace.
        now: The time.
        new_uid: Makes a UUID.
    """
    action, kind = request.action, request.kind
    labels = _own_labels(request)
    annotations: dict[str, str] = {}
    env_vars: dict[str, str] = {}
    interruptible: bool | None = None
    run_spec = request.run_spec
    if parent is not None:
        inherited = parent.metadata
        if kind == ACTION_TYPE_TASK:
            env_vars = dict(parent.spec.env_vars)
            interruptible = parent.spec.interruptible
            # System labels say what the parent is: a mark would hide the child for ever.
            passed_on = {
                label: text
                for label, text in inherited.labels.items()
                if not label.startswith(_SYSTEM_DOMAIN)
            }
            labels = {**passed_on, **labels}
            annotations = {
                annotation: text
                for annotation, text in inherited.annotations.items()
                if not annotation.startswith((_SYSTEM_DOMAIN, OWN_DOMAIN + "/"))
            }
        for annotation in _RUN_ANNOTATIONS:
            if annotation in inherited.annotations:
                annotations[annotation] = inherited.annotations[annotation]
    elif run_spec is not None and kind == ACTION_TYPE_TASK:
        env_vars = {each.key: each.value for each in run_spec.envs.values}
        if run_spec.HasField("interruptible"):
            interruptible = run_spec.interruptible.value
        labels = {**dict(run_spec.labels.values), **labels}
        annotations = dict(run_spec.annotations.values)
    if run_spec is not None and run_spec.HasField("run_start_time"):
        start = run_spec.run_start_time.ToDatetime(tzinfo=now.tzinfo)
        annotations[ANNOTATION_RUN_START_TIME] = rfc3339(start)
    elif parent is None and kind == ACTION_TYPE_TASK:
        annotations.setdefault(ANNOTATION_RUN_START_TIME, rfc3339(now))
    _annotate(annotations, request)
    template = action.task.spec.task_template if kind == ACTION_TYPE_TASK else None
    has_template = kind == ACTION_TYPE_TASK and action.task.spec.HasField("task_template")
    task = action.task
    return TaskAction.new(
        ObjectMeta(
            request.action_id.object_name,
            namespace,
            new_uid(),
            1,
            rfc3339(now),
            labels=labels,
            annotations=annotations,
            finalizers=(FINALIZER_RECORD,),
            owner_references=_owner(parent),
        ),
        TaskActionSpec(
            request.action_id.project,
            request.action_id.domain,
            request.action_id.run,
            request.action_id.name,
            parent_action_name=action.parent_action_name,
            action_type=kind if kind == ACTION_TYPE_CONDITION else "",
            input_uri=action.input_uri,
            run_output_base=action.run_output_base,
            cache_key=task.cache_key.value if kind == ACTION_TYPE_TASK else "",
            task_type=template.type if has_template and template is not None else "",
            short_name=task.spec.short_name if has_template else "",
            group=action.group,
            task_template=(
                _base64(with_start_time(template, annotations.get(ANNOTATION_RUN_START_TIME, "")))
                if has_template and template is not None
                else ""
            ),
            condition_spec=_base64(action.condition) if kind == ACTION_TYPE_CONDITION else "",
            env_vars=env_vars,
            interruptible=interruptible,
        ),
    )


def build_trace(
    request: Request,
    parent: TaskAction,
    before: TaskAction | None,
    error: ErrorState | None,
    *,
    namespace: str,
    now: datetime,
    new_uid: Callable[[], str],
) -> TaskAction:
    """Build the object of a trace, which is over as a rule.

    Recorded again it stays the incarnation that it was: who follows it sees a change.
    """
    from etcd_actions.codecs import json  # noqa: PLC0415
    from etcd_actions.model.conditions import write_phase  # noqa: PLC0415

    action = request.action
    trace = action.trace
    metadata = before.metadata if before is not None else None
    began = trace.start_time.ToDatetime(tzinfo=now.tzinfo) if trace.HasField("start_time") else now
    ended = trace.end_time.ToDatetime(tzinfo=now.tzinfo) if trace.HasField("end_time") else now
    annotations: dict[str, str] = {}
    _annotate(annotations, request)
    built = TaskAction.new(
        ObjectMeta(
            request.action_id.object_name,
            namespace,
            metadata.uid if metadata is not None else new_uid(),
            1,
            rfc3339(began),
            labels=_own_labels(request),
            annotations=annotations,
            finalizers=(FINALIZER_RECORD,),
            owner_references=_owner(parent),
        ),
        TaskActionSpec(
            request.action_id.project,
            request.action_id.domain,
            request.action_id.run,
            request.action_id.name,
            parent_action_name=action.parent_action_name,
            action_type=ACTION_TYPE_TRACE,
            input_uri=action.input_uri,
            run_output_base=action.run_output_base,
            short_name=trace.name[:63],
            task_type=ACTION_TYPE_TRACE,
            group=action.group,
            trace_spec=_base64(trace),
        ),
        TaskActionStatus(output_uri=trace.outputs.output_uri),
    )
    tree = json.decode_tree(json.encode(built))
    phase = Phase(trace.phase)
    write_phase(tree, phase, now=ended if phase.is_terminal else began, attempts=1, error=error)
    return json.decode(json.encode_tree(tree))


def with_start_time(template: TaskTemplate, start_time: str) -> TaskTemplate:
    """The template with ``{{.runStartTime}}`` replaced in its arguments; a copy, or itself."""
    arguments = template.container.args if template.HasField("container") else ()
    if not start_time or not any(_START_TIME in argument for argument in arguments):
        return template
    copy = type(template)()
    copy.CopyFrom(template)
    del copy.container.args[:]
    copy.container.args.extend(each.replace(_START_TIME, start_time) for each in arguments)
    return copy


def same_action(present: TaskAction, built: TaskAction) -> bool:
    """Whether an object that has no digest is what was asked for."""
    one, other = present.spec, built.spec
    return (
        one.project,
        one.domain,
        one.run_name,
        present.action_id.object_name,
        one.parent_action_name,
        one.kind,
        one.task_template,
        one.condition_spec,
    ) == (
        other.project,
        other.domain,
        other.run_name,
        built.action_id.object_name,
        other.parent_action_name,
        other.kind,
        other.task_template,
        other.condition_spec,
    )


def _own_labels(request: Request) -> dict[str, str]:
    action_id = request.action_id
    return {
        LABEL_PROJECT: action_id.project,
        LABEL_DOMAIN: action_id.domain,
        LABEL_RUN: action_id.run,
        LABEL_ACTION: action_id.name,
        LABEL_ACTION_TYPE: request.kind,
        LABEL_IS_ROOT: "true" if request.is_root else "false",
    }


def _annotate(annotations: dict[str, str], request: Request) -> None:
    annotations[ANNOTATION_DIGEST] = request.digest
    if request.action_id.org:
        annotations[ANNOTATION_ORG] = request.action_id.org
    if request.action.subject:
        annotations[ANNOTATION_SUBJECT] = request.action.subject


def _owner(parent: TaskAction | None) -> tuple[OwnerReference, ...]:
    if parent is None:
        return ()
    metadata = parent.metadata
    return (
        OwnerReference(API_VERSION, KIND, metadata.name, metadata.uid, block_owner_deletion=True),
    )


def _base64(message: Message) -> str:
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()


def _digest(action: Action, run_spec: RunSpec | None) -> str:
    """Tells one request from another; maps have no order of their own."""
    digest = hashlib.sha256(action.SerializeToString(deterministic=True))
    if run_spec is not None:
        digest.update(b"\0" + run_spec.SerializeToString(deterministic=True))
    return "sha256:" + digest.hexdigest()
