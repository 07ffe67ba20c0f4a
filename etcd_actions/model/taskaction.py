"""A TaskAction as Flyte stores it: the fields that this package reads, typed.

The structs are a view. They lack other fields (``managedFields``, fields of later versions), so
a change of a stored object goes through the codec's tree instead. Base64 and times stay text,
which keeps decoding cheap; properties decode them on demand.
"""

from __future__ import annotations

import binascii
from datetime import datetime
from typing import Annotated

import msgspec

from etcd_actions.errors import DecodeError
from etcd_actions.model import names
from etcd_actions.model.mark import State, details_digest, read_state, subject_digest
from etcd_actions.model.output_location import output_uri
from etcd_actions.model.phase import Condition, Phase, phase_of

# Flyte's messages cannot carry a number beyond these.
UInt32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class OwnerReference(msgspec.Struct, rename="camel", frozen=True, gc=False, omit_defaults=True):
    """One entry of ``metadata.ownerReferences``: the parent's object."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(msgspec.Struct, rename="camel", frozen=True, gc=False, omit_defaults=True):
    """``metadata``: the fields of Kubernetes' ``metav1.ObjectMeta`` that this package uses."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def created_at(self) -> datetime | None:
        """When the object was created.

        Raises:
            DecodeError: The time is not RFC 3339.
        """
        return parse_time(self.creation_timestamp, "metadata.creationTimestamp")

    @property
    def deleted_at(self) -> datetime | None:
        """When its deletion was requested, None if it was not.

        Raises:
            DecodeError: The time is not RFC 3339.
        """
        return parse_time(self.deletion_timestamp, "metadata.deletionTimestamp")


class TaskActionSpec(msgspec.Struct, rename="camel", frozen=True, gc=False, omit_defaults=True):
    """``spec``: the work. Flyte's schema requires the first four fields."""

    project: str
    domain: str
    run_name: str
    action_name: str
    parent_action_name: str = ""
    """Empty for the root of a run."""
    action_type: str = ""
    """``condition``, or ours, ``trace``; a task has it empty, or ``task``."""
    input_uri: str = ""
    run_output_base: str = ""
    cache_key: str = ""
    task_type: str = ""
    short_name: str = ""
    group: str = ""
    task_template: str = ""
    """Base64 of a ``flyteidl2.core.TaskTemplate``."""
    condition_spec: str = ""
    """Base64 of a ``flyteidl2.workflow.ConditionAction``."""
    env_vars: dict[str, str] = {}
    interruptible: bool | None = None
    trace_spec: str = ""
    """Ours, base64 of a ``flyteidl2.workflow.TraceAction``: only traces have it."""

    @property
    def kind(self) -> str:
        """``task``, ``condition`` or ``trace``."""
        return self.action_type or names.ACTION_TYPE_TASK

    @property
    def is_condition(self) -> bool:
        """Whether the action waits for a signal instead of running a task."""
        return self.action_type == "condition"

    @property
    def task_template_bytes(self) -> bytes:
        """The serialized task template, empty if there is none.

        Raises:
            DecodeError: The field is not base64.
        """
        return parse_base64(self.task_template, "spec.taskTemplate")

    @property
    def condition_spec_bytes(self) -> bytes:
        """The serialized condition, empty if there is none.

        Raises:
            DecodeError: The field is not base64.
        """
        return parse_base64(self.condition_spec, "spec.conditionSpec")

    @property
    def trace_spec_bytes(self) -> bytes:
        """The serialized trace, empty if the action is none.

        Raises:
            DecodeError: The field is not base64.
        """
        return parse_base64(self.trace_spec, "spec.traceSpec")


class PhaseTransition(msgspec.Struct, rename="camel", frozen=True, gc=False, omit_defaults=True):
    """One entry of ``status.phaseHistory``."""

    phase: str
    """The reason of the condition (``Executing``), not a name of `Phase`."""
    occurred_at: str
    message: str = ""


class ErrorState(msgspec.Struct, rename="camel", frozen=True, gc=False, omit_defaults=True):
    """``status.errorState``: why the action failed."""

    code: str = ""
    kind: str = ""
    """``USER`` or ``SYSTEM``; any other text counts as unknown."""
    message: str = ""
    recoverable: bool | None = None
    """Ours, of traces only: whether a retry may help."""


class TaskActionStatus(msgspec.Struct, rename="camel", frozen=True, gc=False, omit_defaults=True):
    """``status``: the progress of the action. A new object has none of its fields."""

    state_json: str = ""
    plugin_state: str = ""
    """Base64, opaque: only the executor reads it."""
    plugin_state_version: int = 0
    plugin_phase: str = ""
    plugin_phase_version: int = 0
    attempts: UInt32 = 0
    system_failures: int = 0
    cache_status: Int32 = 0
    """A number of ``flyteidl2.core.CatalogCacheStatus``."""
    conditions: tuple[Condition, ...] = ()
    phase_history: tuple[PhaseTransition, ...] = ()
    error_state: ErrorState | None = None
    signal_value: str = ""
    """Base64 of a ``flyteidl2.core.Literal``."""
    signalled_by: str = ""
    signalled_at: str = ""
    output_uri: str = ""
    """Ours, of traces only: the directory of the outputs, which is computed for other actions."""

    @property
    def plugin_state_bytes(self) -> bytes:
        """The executor's state, empty if there is none.

        Raises:
            DecodeError: The field is not base64.
        """
        return parse_base64(self.plugin_state, "status.pluginState")

    @property
    def signal_value_bytes(self) -> bytes | None:
        """The serialized literal of the signal, None before the signal.

        Raises:
            DecodeError: The field is not base64.
        """
        if not self.signal_value:
            return None
        return parse_base64(self.signal_value, "status.signalValue")

    @property
    def signal_time(self) -> datetime | None:
        """When the signal was delivered, None before that.

        Raises:
            DecodeError: The time is not RFC 3339.
        """
        return parse_time(self.signalled_at, "status.signalledAt")


_NO_STATUS = TaskActionStatus()


class ActionObject(msgspec.Struct, rename="camel", frozen=True, gc=False, omit_defaults=True):
    """One action of a run, as stored.

    An API server may store another version of the API than `API_VERSION`. The known fields of such
    an object are read.
    """

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: TaskActionSpec
    status: TaskActionStatus = _NO_STATUS

    def __post_init__(self) -> None:
        if self.api_version != names.API_VERSION or self.kind != names.KIND:
            names.check_type(self.api_version, self.kind)

    @classmethod
    def new(
        cls, metadata: ObjectMeta, spec: TaskActionSpec, status: TaskActionStatus = _NO_STATUS
    ) -> ActionObject:
        """Create one of `API_VERSION` and `KIND`."""
        return cls(names.API_VERSION, names.KIND, metadata, spec, status)

    def state(self, create_revision: int = 0) -> State:
        """The state by its conditions and its mark; see `read_state`.

        Args:
            create_revision: The key's, 0 if it is not known. If it is known, a mark that was
                copied from an earlier incarnation does not count.
        """
        metadata, status = self.metadata, self.status
        phase = phase_of(status.conditions)
        # Only this value counts, as in Flyte's ``shouldSkipTaskAction``.
        if metadata.labels.get(names.LABEL_TERMINAL_STATUS_RECORDED) != "true":
            return State(phase, status.attempts, False)
        spec = self.spec
        is_trace = spec.action_type == names.ACTION_TYPE_TRACE
        return read_state(
            metadata.annotations.get(names.ANNOTATION_RECORDED),
            phase,
            status.attempts,
            create_revision,
            subject_digest(
                spec.project, spec.domain, spec.run_name, spec.action_name, metadata.uid
            ),
            details_digest(
                status.error_state, status.signal_value, status.output_uri if is_trace else ""
            ),
        )

    @property
    def phase(self) -> Phase:
        """The phase of its conditions, see `phase_of`.

        If the conditions are older than the recorded terminal state, it is that state's phase.
        """
        return self.state().phase

    @property
    def attempts(self) -> int:
        """The attempt that `phase` belongs to, 0 if it was not counted."""
        return self.state().attempts

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended."""
        return self.phase.is_terminal

    @property
    def is_recorded(self) -> bool:
        """Whether the run service accepted the terminal state in `phase` and `attempts`."""
        return self.state().recorded

    @property
    def end_time(self) -> str:
        """The transition time of its terminal condition (RFC 3339), empty before that."""
        if not self.is_terminal:
            return ""
        for condition in self.status.conditions:
            if condition.status == "True" and condition.type in ("Succeeded", "Failed"):
                return condition.last_transition_time
        return ""

    @property
    def is_deleting(self) -> bool:
        """Whether its deletion was requested and waits for finalizers."""
        return bool(self.metadata.deletion_timestamp)

    @property
    def action_id(self) -> names.ActionId:
        """The identity of the action; ``org`` is this package's annotation, else empty."""
        spec = self.spec
        annotations = self.metadata.annotations
        return names.ActionId(
            spec.project,
            spec.domain,
            spec.run_name,
            spec.action_name,
            annotations.get(names.ANNOTATION_ORG, "") if annotations else "",
        )

    @property
    def parent(self) -> str:
        """The parent action's name, empty for the root of a run."""
        return self.spec.parent_action_name

    @property
    def output_uri(self) -> str:
        """The directory of the current attempt's outputs, see `output_uri`."""
        return self.outputs_of(self.attempts)

    def outputs_of(self, attempt: int) -> str:
        """The directory of an attempt's outputs.

        The object of a trace, which has one attempt, has the directory. So has the object of an
        action whose outputs come from another run. Of all others it is computed.
        """
        if self.spec.action_type == names.ACTION_TYPE_TRACE:
            return self.status.output_uri
        annotations = self.metadata.annotations
        if annotations and (taken := annotations.get(names.ANNOTATION_RECOVERED_OUTPUTS)):
            return taken
        return output_uri(
            self.metadata.namespace,
            self.metadata.name,
            self.spec.run_output_base,
            self.spec.action_name,
            attempt,
        )


def parse_base64(text: str, field: str) -> bytes:
    """Decode base64 in its standard alphabet with padding, as Go writes ``[]byte``.

    Raises:
        DecodeError: It is not base64; the message names the field.
    """
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise DecodeError(f"{field}: not base64: {error}") from None


def parse_time(text: str, field: str) -> datetime | None:
    """Parse an RFC 3339 time, with the digits below a microsecond truncated.

    Returns:
        An aware time, None for an empty text.

    Raises:
        DecodeError: It is not RFC 3339; the message names the field.
    """
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise DecodeError(f"{field}: not an RFC 3339 time: {text!r}")
    return time
