"""Builds the object of an action, as Flyte's service does.

Annotations of ours have the data for which Flyte's object has no field: the organization, the
subject, the start time of the run, and a digest of the request.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError as BadMessage
from google.protobuf.message import Message

from etcd_actions._internal.tracing import traceparent
from etcd_actions.actions import validation
from etcd_actions.actions.stored_action import same_run
from etcd_actions.codecs import json
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.model import (
    ACTION_TYPE_CONDITION,
    ACTION_TYPE_TASK,
    ACTION_TYPE_TRACE,
    ANNOTATION_CACHE_SCOPE,
    ANNOTATION_DIGEST,
    ANNOTATION_MOST_AT_ONCE,
    ANNOTATION_ORG,
    ANNOTATION_OVERWRITE_CACHE,
    ANNOTATION_QUEUE,
    ANNOTATION_RECOVERS,
    ANNOTATION_RUN_QUEUE,
    ANNOTATION_RUN_START_TIME,
    ANNOTATION_SUBJECT,
    ANNOTATION_TRACEPARENT,
    API_VERSION,
    CACHE_SCOPE_GLOBAL,
    FAILURES,
    FINALIZER_RECORD,
    KIND,
    LABEL_ACTION,
    LABEL_ACTION_TYPE,
    LABEL_DOMAIN,
    LABEL_IS_ROOT,
    LABEL_PROJECT,
    LABEL_RUN,
    OWN_DOMAIN,
    RUN_ANNOTATIONS,
    ActionId,
    ActionObject,
    ErrorState,
    ObjectMeta,
    OwnerReference,
    Phase,
    TaskActionSpec,
    TaskActionStatus,
    canonical_name,
)
from etcd_actions.model.conditions import rfc3339, write_phase
from etcd_actions.model.flyte_types import Action, RunSpec, TaskTemplate, Timestamp

_START_TIME: Final = "{{.runStartTime}}"
_SYSTEM_DOMAIN: Final = "flyte.org/"
_MOST_OF_A_SHORT_NAME: Final = 63
# Flyte's ``CACHE_LOOKUP_SCOPE_GLOBAL``.
_GLOBAL: Final = 1
_SIMPLE_TYPES: Final = {1: "INTEGER", 2: "FLOAT", 3: "STRING", 4: "BOOLEAN"}


class Trace(NamedTuple):
    """The phase, times and error of a trace; a time is None if the request lacks it."""

    phase: Phase
    began: datetime | None
    ended: datetime | None
    error: ErrorState | None


class Request(NamedTuple):
    """A checked request.

    Attributes:
        action: Flyte's message.
        run_spec: The settings of the run.
        action_id: The action.
        kind: ``task``, ``condition`` or ``trace``.
        digest: A digest of the request; different requests have different ones.
        run_start_time: The start time of the run in RFC 3339; empty if the request lacks it.
        trace: The course of a trace; None for a task or a condition.
    """

    action: Action
    run_spec: RunSpec | None
    action_id: ActionId
    kind: str
    digest: str
    run_start_time: str
    trace: Trace | None

    @property
    def is_root(self) -> bool:
        """Whether the action has no parent."""
        return not self.action.parent_action_name

    @property
    def parent_id(self) -> ActionId:
        """The identity of the parent."""
        run = self.action_id
        return ActionId(run.project, run.domain, run.run, self.action.parent_action_name, run.org)


def read_request(
    action: Action, run_spec: RunSpec | None, trace_error: ErrorState | None = None
) -> Request:
    """Check a request, as far as that is possible without its parent.

    Raises:
        InvalidArgument: A part is missing or unusable; it names the field.
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
    validation.check_names(action_id, action.parent_action_name)
    is_root_task = kind == ACTION_TYPE_TASK and not action.parent_action_name
    if run_spec is not None and is_root_task:
        validation.check_run_spec(run_spec.labels.values, run_spec.annotations.values)
    parent = action.parent_action_name
    if parent and canonical_name(run.name, parent) == canonical_name(run.name, action_id.name):
        raise InvalidArgument("parent_action_name", "an action is not its own parent")
    if kind == ACTION_TYPE_TRACE and not parent:
        raise InvalidArgument("parent_action_name", "a trace has a parent: name it")
    started = None
    if run_spec is not None and run_spec.HasField("run_start_time"):
        started = _time(run_spec.run_start_time, "run_spec.run_start_time")
    return Request(
        action,
        run_spec,
        action_id,
        kind,
        _digest(action, run_spec, is_root_task=is_root_task),
        "" if started is None else rfc3339(started),
        _trace(action, trace_error),
    )


def _trace(action: Action, error: ErrorState | None) -> Trace | None:
    if action.WhichOneof("spec") != ACTION_TYPE_TRACE:
        if error is not None:
            raise InvalidArgument("trace_error", "the action is not a trace: omit it")
        return None
    trace = action.trace
    if trace.phase not in list(Phase):
        raise InvalidArgument("trace.phase", f"{trace.phase} is not a valid phase")
    phase = Phase(trace.phase)
    if error is not None and phase not in FAILURES:
        raise InvalidArgument("trace_error", f"the trace is {phase.name}: omit it")
    return Trace(
        phase,
        _time(trace.start_time, "trace.start_time") if trace.HasField("start_time") else None,
        _time(trace.end_time, "trace.end_time") if trace.HasField("end_time") else None,
        error,
    )


def _time(timestamp: Timestamp, field: str) -> datetime:
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(field, str(error)) from None


class Inherited(NamedTuple):
    """The data that children inherit from their parent; all children share it.

    Attributes:
        owner: The owner reference to the parent's object.
        labels: The labels that a task inherits: all but those of the system.
        annotations: The annotations that a task inherits: those of the run and of users.
        env_vars: The environment variables that a task inherits.
        interruptible: Whether a task is interruptible.
        recovers: The annotation with the runs to recover from; empty without recovery.
        run_start_time: The start time of the run; empty if the parent lacks it.
        org: The organization of the run; empty if it is not known.
        traceparent: The trace context of the span that created the parent; empty for none.
    """

    owner: OwnerReference
    labels: dict[str, str]
    annotations: dict[str, str]
    env_vars: dict[str, str]
    interruptible: bool | None
    recovers: str
    run_start_time: str
    org: str
    traceparent: str

    @classmethod
    def of(cls, parent: ActionObject) -> Inherited:
        """The data that the children of an object inherit."""
        metadata, spec = parent.metadata, parent.spec
        return cls(
            OwnerReference(
                API_VERSION, KIND, metadata.name, metadata.uid, block_owner_deletion=True
            ),
            # System labels are about the parent: a mark would count for the child, too.
            {
                label: text
                for label, text in metadata.labels.items()
                if not label.startswith(_SYSTEM_DOMAIN)
            },
            {
                annotation: text
                for annotation, text in metadata.annotations.items()
                if annotation in RUN_ANNOTATIONS
                or not annotation.startswith((_SYSTEM_DOMAIN, OWN_DOMAIN + "/"))
            },
            spec.env_vars,
            spec.interruptible,
            metadata.annotations.get(ANNOTATION_RECOVERS, ""),
            _run_start_time(parent),
            parent.action_id.org,
            metadata.annotations.get(ANNOTATION_TRACEPARENT, ""),
        )


def build(
    request: Request,
    parent: Inherited | None,
    *,
    namespace: str,
    now: datetime,
    new_uid: Callable[[], str],
    finalizer: bool = True,
) -> ActionObject:
    """Build the object of a task or condition.

    Args:
        request: The request.
        parent: The data that it inherits; None for a root.
        namespace: The object's namespace.
        now: The present time.
        new_uid: Makes a UUID.
        finalizer: Whether it gets our finalizer, until it is recorded.
    """
    action, kind = request.action, request.kind
    labels = _own_labels(request)
    annotations: dict[str, str] = {}
    env_vars: dict[str, str] = {}
    interruptible: bool | None = None
    run_spec = request.run_spec
    if parent is not None:
        if kind == ACTION_TYPE_TASK:
            env_vars = dict(parent.env_vars)
            interruptible = parent.interruptible
            labels = {**parent.labels, **labels}
            annotations = dict(parent.annotations)
        elif parent.recovers:
            annotations = {ANNOTATION_RECOVERS: parent.recovers}
        if run_start_time := request.run_start_time or parent.run_start_time:
            annotations[ANNOTATION_RUN_START_TIME] = run_start_time
    elif run_spec is not None and kind == ACTION_TYPE_TASK:
        env_vars = {each.key: each.value for each in run_spec.envs.values}
        if run_spec.HasField("interruptible"):
            interruptible = run_spec.interruptible.value
        labels = {**dict(run_spec.labels.values), **labels}
        annotations = {**dict(run_spec.annotations.values), **_of_run(run_spec)}
    if parent is None and (request.run_start_time or kind == ACTION_TYPE_TASK):
        annotations[ANNOTATION_RUN_START_TIME] = request.run_start_time or rfc3339(now)
    _annotate(annotations, request, parent)
    task = action.task if kind == ACTION_TYPE_TASK else None
    if task is not None and task.queue:
        annotations[ANNOTATION_QUEUE] = task.queue
    spec = task.spec if task is not None and task.spec.HasField("task_template") else None
    start_time = annotations.get(ANNOTATION_RUN_START_TIME, "")
    return ActionObject.new(
        ObjectMeta(
            request.action_id.object_name,
            namespace,
            new_uid(),
            1,
            rfc3339(now),
            labels=labels,
            annotations=annotations,
            finalizers=(FINALIZER_RECORD,) if finalizer else (),
            owner_references=() if parent is None else (parent.owner,),
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
            cache_key=task.cache_key.value if task is not None else "",
            task_type=spec.task_template.type if spec is not None else "",
            short_name=spec.short_name if spec is not None else "",
            group=action.group,
            task_template=(
                _base64(with_start_time(spec.task_template, start_time)) if spec is not None else ""
            ),
            condition_spec=_base64(action.condition) if kind == ACTION_TYPE_CONDITION else "",
            env_vars=env_vars,
            interruptible=interruptible,
        ),
    )


def build_trace(
    request: Request,
    trace: Trace,
    parent: Inherited,
    before: ActionObject | None,
    *,
    namespace: str,
    now: datetime,
    new_uid: Callable[[], str],
) -> ActionObject:
    """Build the object of a trace.

    A trace that is recorded again keeps its uid, so subscribers receive a change.

    Args:
        request: The request.
        trace: Its course.
        parent: The data that it inherits.
        before: The stored object of the same trace; None without one.
        namespace: The object's namespace.
        now: The present time, for times that the trace lacks.
        new_uid: Makes a UUID.
    """
    action = request.action
    began, ended = trace.began or now, trace.ended or now
    annotations: dict[str, str] = {}
    _annotate(annotations, request, parent)
    built = ActionObject.new(
        ObjectMeta(
            request.action_id.object_name,
            namespace,
            before.metadata.uid if before is not None else new_uid(),
            1,
            rfc3339(began),
            labels=_own_labels(request),
            annotations=annotations,
            finalizers=(FINALIZER_RECORD,),
            owner_references=(parent.owner,),
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
            short_name=action.trace.name[:_MOST_OF_A_SHORT_NAME],
            task_type=ACTION_TYPE_TRACE,
            group=action.group,
            trace_spec=_base64(action.trace),
        ),
        TaskActionStatus(output_uri=action.trace.outputs.output_uri),
    )
    tree = json.decode_tree(json.encode(built))
    when = ended if trace.phase.is_terminal else began
    write_phase(tree, trace.phase, now=when, attempts=1, error=trace.error)
    return json.decode(json.encode_tree(tree))


def with_start_time(template: TaskTemplate, start_time: str) -> TaskTemplate:
    """The template, or a copy in which ``{{.runStartTime}}`` is replaced in the arguments."""
    arguments = template.container.args if template.HasField("container") else ()
    if not start_time or not any(_START_TIME in argument for argument in arguments):
        return template
    copy = type(template)()
    copy.CopyFrom(template)
    del copy.container.args[:]
    copy.container.args.extend(each.replace(_START_TIME, start_time) for each in arguments)
    return copy


def same_action(present: ActionObject, request: Request) -> bool:
    """Whether an object without a digest is the requested action, by identity and content."""
    action, spec, action_id = request.action, present.spec, request.action_id
    run = action_id.run
    if not same_run(present.action_id, action_id) or spec.kind != request.kind:
        return False
    for there, requested in (
        (spec.action_name, action_id.name),
        (present.parent, action.parent_action_name),
    ):
        if canonical_name(run, there) != canonical_name(run, requested):
            return False
    try:
        if request.kind == ACTION_TYPE_CONDITION:
            return _equal(action.condition, spec.condition_spec_bytes)
        noted = present.metadata.annotations.get(ANNOTATION_RUN_START_TIME)
        template = with_start_time(action.task.spec.task_template, noted or request.run_start_time)
        return _equal(template, spec.task_template_bytes)
    except (DecodeError, BadMessage):
        return False


def _equal(message: Message, stored: bytes) -> bool:
    """Whether a message equals a stored one. Go writes the entries of a map in any order."""
    return message == type(message).FromString(stored)


def _run_start_time(parent: ActionObject) -> str:
    """The start time of the run, by the parent."""
    noted = parent.metadata.annotations.get(ANNOTATION_RUN_START_TIME, "")
    # Flyte's service does not store it, but it creates the root when the run starts.
    return noted or ("" if parent.parent else parent.metadata.creation_timestamp)


def _of_run(run_spec: RunSpec) -> dict[str, str]:
    """Settings of the run that have no field in Flyte's object."""
    noted: dict[str, str] = {}
    cache = run_spec.cache_config
    if run_spec.overwrite_cache or cache.overwrite_cache:
        noted[ANNOTATION_OVERWRITE_CACHE] = "true"
    if cache.cache_lookup_scope == _GLOBAL:
        noted[ANNOTATION_CACHE_SCOPE] = CACHE_SCOPE_GLOBAL
    if run_spec.max_action_concurrency:
        noted[ANNOTATION_MOST_AT_ONCE] = str(run_spec.max_action_concurrency)
    if queue := run_spec.queue or run_spec.cluster_pool:
        noted[ANNOTATION_RUN_QUEUE] = queue
    return noted


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


def _annotate(annotations: dict[str, str], request: Request, parent: Inherited | None) -> None:
    annotations[ANNOTATION_DIGEST] = request.digest
    # All actions of a run have one organization.
    if org := request.action_id.org or (parent.org if parent is not None else ""):
        annotations[ANNOTATION_ORG] = org
    if parent_span := traceparent("" if parent is None else parent.traceparent):
        annotations[ANNOTATION_TRACEPARENT] = parent_span
    if request.action.subject:
        annotations[ANNOTATION_SUBJECT] = request.action.subject


def _base64(message: Message) -> str:
    data = message.SerializeToString(deterministic=True)
    try:
        # A message that is nested too deeply can be encoded, but not decoded.
        type(message).FromString(data)
    except BadMessage as error:
        raise InvalidArgument(message.DESCRIPTOR.name, f"it cannot be stored: {error}") from None
    return base64.b64encode(data).decode()


def _digest(action: Action, run_spec: RunSpec | None, *, is_root_task: bool) -> str:
    """A digest of a request. The order of maps does not count.

    Both names of the root have the same digest, and only the used parts of the run's settings
    count.
    """
    run = action.action_id.run.name
    if run in (action.action_id.name, action.parent_action_name):
        copy = type(action)()
        copy.CopyFrom(action)
        copy.action_id.name = canonical_name(run, action.action_id.name)
        if action.parent_action_name:
            copy.parent_action_name = canonical_name(run, action.parent_action_name)
        action = copy
    digest = hashlib.sha256(action.SerializeToString(deterministic=True))
    if run_spec is not None:
        used: Message = run_spec if is_root_task else run_spec.run_start_time
        if data := used.SerializeToString(deterministic=True):
            digest.update(b"\0" + data)
    return "sha256:" + digest.hexdigest()
