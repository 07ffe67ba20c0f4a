"""The few fields of a TaskAction that decide who is to be told of it.

Most states of most actions concern nobody in this process: no subscriber, and no ending to
record. Decoding these fields only, and skipping the rest, halves what such a state costs.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from etcd_actions.model import names
from etcd_actions.model.mark import State, details_digest, read_state, subject_digest
from etcd_actions.model.phase import Phase, phase_of
from etcd_actions.model.summary import Summary, is_held_by_others
from etcd_actions.model.taskaction import ErrorState, Int32, UInt32


class _Labels(msgspec.Struct, frozen=True, gc=False):
    recorded: str = msgspec.field(default="", name=names.LABEL_TERMINAL_STATUS_RECORDED)


class _Annotations(msgspec.Struct, frozen=True, gc=False):
    org: str = msgspec.field(default="", name=names.ANNOTATION_ORG)
    recorded: str | None = msgspec.field(default=None, name=names.ANNOTATION_RECORDED)


class _Metadata(msgspec.Struct, rename="camel", frozen=True, gc=False):
    uid: str = ""
    deletion_timestamp: str = ""
    finalizers: tuple[str, ...] = ()
    labels: _Labels = _Labels()
    annotations: _Annotations = _Annotations()


class _Spec(msgspec.Struct, rename="camel", frozen=True, gc=False):
    project: str
    domain: str
    run_name: str
    action_name: str
    parent_action_name: str = ""
    run_output_base: str = ""
    action_type: str = ""


class _Condition(msgspec.Struct, frozen=True, gc=False):
    type: str
    status: str
    reason: str = ""


class _Status(msgspec.Struct, rename="camel", frozen=True, gc=False):
    attempts: UInt32 = 0
    cache_status: Int32 = 0
    conditions: tuple[_Condition, ...] = ()
    error_state: ErrorState | None = None
    signal_value: Any = ""
    """Base64, or in a form that has it the binary."""
    output_uri: str = ""


class Facts(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """A TaskAction seen through a keyhole; what is not named here is not looked at."""

    api_version: Literal["flyte.org/v1"]
    kind: Literal["TaskAction"]
    metadata: _Metadata
    spec: _Spec
    status: _Status = _Status()

    def summary(self, revision: int, create_revision: int) -> Summary:
        """The same as `summarize` makes of the whole object."""
        spec, status, metadata = self.spec, self.status, self.metadata
        finalizers = metadata.finalizers
        phase, attempts = phase_of(status.conditions), status.attempts
        recorded, stray, mark = False, False, 0
        if metadata.labels.recorded == "true":
            phase, attempts, recorded, _, stray, mark = self._state(phase, create_revision)
        return Summary(
            spec.project,
            spec.domain,
            spec.run_name,
            spec.action_name,
            metadata.annotations.org,
            spec.parent_action_name,
            metadata.uid,
            phase,
            attempts,
            status.cache_status,
            recorded,
            spec.run_output_base,
            create_revision,
            revision,
            bool(metadata.deletion_timestamp),
            names.FINALIZER_RECORD in finalizers,
            bool(finalizers) and is_held_by_others(finalizers),
            stray,
            mark,
        )

    def _state(self, phase: Phase, create_revision: int) -> State:
        """What it is with the label."""
        spec, status, metadata = self.spec, self.status, self.metadata
        is_trace = spec.action_type == names.ACTION_TYPE_TRACE
        signal = status.signal_value or ""
        if type(signal) is bytes:
            # As Go writes ``[]byte``, by the fastest way.
            signal = msgspec.to_builtins(signal)
        return read_state(
            metadata.annotations.recorded,
            phase,
            status.attempts,
            create_revision,
            subject_digest(
                spec.project, spec.domain, spec.run_name, spec.action_name, metadata.uid
            ),
            details_digest(status.error_state, signal, status.output_uri if is_trace else ""),
        )
