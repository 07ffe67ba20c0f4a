"""The few fields of a TaskAction that decide which receivers it is delivered to.

Most states of most actions have no receiver in this process: no subscriber, and no terminal
state to record. To decode these fields only, and skip the rest, halves the cost of such a state.
"""

from __future__ import annotations

from typing import Any

import msgspec

from etcd_actions.model import names
from etcd_actions.model.mark import details_digest, read_state, subject_digest
from etcd_actions.model.phase import Phase, phase_of
from etcd_actions.model.summary import Summary
from etcd_actions.model.taskaction import ErrorState, Int32, UInt32


class _Labels(msgspec.Struct, frozen=True, gc=False):
    recorded: str = msgspec.field(default="", name=names.LABEL_TERMINAL_STATUS_RECORDED)


class _Annotations(msgspec.Struct, frozen=True, gc=False):
    org: str = msgspec.field(default="", name=names.ANNOTATION_ORG)
    queue: str = msgspec.field(default="", name=names.ANNOTATION_QUEUE)
    run_queue: str = msgspec.field(default="", name=names.ANNOTATION_RUN_QUEUE)


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
    action_type: str = ""
    run_output_base: str = ""


class _Condition(msgspec.Struct, frozen=True, gc=False):
    type: str
    status: str
    reason: str = ""


class _Status(msgspec.Struct, rename="camel", frozen=True, gc=False):
    attempts: UInt32 = 0
    cache_status: Int32 = 0
    conditions: tuple[_Condition, ...] = ()


class Facts(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """Partial TaskAction: only the fields that routing needs."""

    api_version: str
    kind: str
    metadata: _Metadata
    spec: _Spec
    status: _Status = _Status()

    def summary(self, revision: int, create_revision: int) -> Summary | None:
        """The same summary as `summarize` makes of the complete object.

        Returns:
            None if the object has the label of a mark: the caller has to decode `MarkedFacts`.

        Raises:
            ValueError: It is not a TaskAction.
        """
        if self.api_version != names.API_VERSION or self.kind != names.KIND:
            names.check_type(self.api_version, self.kind)
        metadata = self.metadata
        if metadata.labels.recorded == "true":
            return None
        status = self.status
        return self._summary(
            revision, create_revision, phase_of(status.conditions), status.attempts
        )

    def _summary(
        self,
        revision: int,
        create_revision: int,
        phase: Phase,
        attempts: int,
        recorded: bool = False,
        stray: bool = False,
        mark: int = 0,
    ) -> Summary:
        spec, metadata = self.spec, self.metadata
        finalizers = metadata.finalizers
        held = names.FINALIZER_RECORD in finalizers
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
            self.status.cache_status,
            recorded,
            spec.run_output_base,
            create_revision,
            revision,
            bool(metadata.deletion_timestamp),
            held,
            len(finalizers) > held,
            stray,
            mark,
            spec.action_type == names.ACTION_TYPE_CONDITION,
            names.other_version(self.api_version),
            metadata.annotations.queue or metadata.annotations.run_queue,
        )


class _MarkedAnnotations(_Annotations, frozen=True, gc=False):
    recorded: str | None = msgspec.field(default=None, name=names.ANNOTATION_RECORDED)


class _MarkedMetadata(_Metadata, rename="camel", frozen=True, gc=False):
    annotations: _MarkedAnnotations = _MarkedAnnotations()


class _MarkedStatus(_Status, rename="camel", frozen=True, gc=False):
    error_state: ErrorState | None = None
    signal_value: Any = ""
    """Base64, or bytes in a stored form that has binary."""
    output_uri: str = ""


class MarkedFacts(Facts, rename="camel", frozen=True, gc=False):
    """The same of an object with the label of a recorded terminal state."""

    metadata: _MarkedMetadata
    status: _MarkedStatus = _MarkedStatus()

    def summary(self, revision: int, create_revision: int) -> Summary:
        """The same summary as `summarize` makes of the complete object."""
        found = super().summary(revision, create_revision)
        if found is not None:
            return found
        spec, status, metadata = self.spec, self.status, self.metadata
        is_trace = spec.action_type == names.ACTION_TYPE_TRACE
        signal = status.signal_value or ""
        if type(signal) is bytes:
            # As Go writes ``[]byte``, by the fastest way.
            signal = msgspec.to_builtins(signal)
        mark = metadata.annotations.recorded
        subject = details = ""
        if mark is not None:
            # `read_state` uses them with an annotation only.
            subject = subject_digest(
                spec.project, spec.domain, spec.run_name, spec.action_name, metadata.uid
            )
            output = status.output_uri if is_trace else ""
            details = details_digest(status.error_state, signal, output)
        phase = phase_of(status.conditions)
        state = read_state(mark, phase, status.attempts, create_revision, subject, details)
        return self._summary(
            revision,
            create_revision,
            state.phase,
            state.attempts,
            state.recorded,
            state.stray,
            state.mark,
        )
