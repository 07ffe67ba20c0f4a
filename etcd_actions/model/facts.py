"""The few fields of a TaskAction that decide who is to be told of it.

Most states of most actions concern nobody in this process: no subscriber, and no ending to
record. Decoding these fields only, and skipping the rest, halves what such a state costs.
"""

from __future__ import annotations

import msgspec

from etcd_actions.model import names
from etcd_actions.model.phase import phase_of
from etcd_actions.model.summary import Summary
from etcd_actions.model.taskaction import Int32, UInt32


class _Labels(msgspec.Struct, frozen=True, gc=False):
    recorded: str = msgspec.field(default="", name=names.LABEL_TERMINAL_STATUS_RECORDED)


class _Annotations(msgspec.Struct, frozen=True, gc=False):
    org: str = msgspec.field(default="", name=names.ANNOTATION_ORG)


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
    """A TaskAction seen through a keyhole; what is not named here is not looked at."""

    api_version: str
    kind: str
    metadata: _Metadata
    spec: _Spec
    status: _Status = _Status()

    def summary(self, revision: int, create_revision: int) -> Summary:
        """The same as `summarize` makes of the whole object.

        Raises:
            ValueError: It is no TaskAction.
        """
        if self.api_version != names.API_VERSION or self.kind != names.KIND:
            names.check_type(self.api_version, self.kind)
        spec, status, metadata = self.spec, self.status, self.metadata
        return Summary(
            spec.project,
            spec.domain,
            spec.run_name,
            spec.action_name,
            metadata.annotations.org,
            spec.parent_action_name,
            metadata.uid,
            phase_of(status.conditions),
            status.attempts,
            status.cache_status,
            metadata.labels.recorded == "true",
            spec.run_output_base,
            create_revision,
            revision,
            bool(metadata.deletion_timestamp),
            names.FINALIZER_RECORD in metadata.finalizers,
            spec.action_type == names.ACTION_TYPE_CONDITION,
            names.other_version(self.api_version),
        )
