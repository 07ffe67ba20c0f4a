"""The updates that subscribers and the run service receive."""

from __future__ import annotations

from datetime import datetime

import msgspec

from etcd_actions.model import flyte
from etcd_actions.model.incarnation import Incarnation
from etcd_actions.model.names import (
    ANNOTATION_ABORT_REASON,
    ANNOTATION_ABORTED_BY,
    ANNOTATION_MOST_AT_ONCE,
    ActionId,
)
from etcd_actions.model.output_location import output_uri
from etcd_actions.model.phase import Phase
from etcd_actions.model.summary import Summary
from etcd_actions.model.taskaction import ActionObject, ErrorState, parse_base64, parse_time

_MOST_DIGITS = 10  # of a number of 32 bits


class ActionUpdate(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One state of one action."""

    key: bytes
    """The etcd key of its object."""
    namespace: str
    name: str
    """The object's name, ``<run>-<action>``."""
    action_id: ActionId
    parent: str
    """The parent action's name, empty for the root of a run."""
    phase: Phase
    attempts: int
    cache_status: int
    """A number of ``flyteidl2.core.CatalogCacheStatus``."""
    output_uri: str
    uid: str
    create_revision: int
    """0 if it is not known."""
    revision: int
    """``mod_revision`` of the value; of a deletion, the revision of the delete."""
    recorded: bool
    """Whether the run service had accepted the terminal status."""
    is_deleted: bool = False
    """Whether the object was deleted from etcd."""
    partial: bool = False
    """Whether only the facts in the index are known: the fields below have their defaults."""
    error: ErrorState | None = None
    signal_base64: str = ""
    """As it is stored; see `signal_value`."""
    signalled_by: str = ""
    short_name: str = ""
    """``spec.shortName`` only: see :func:`etcd_actions.model.flyte.short_name`."""
    task_type: str = ""
    action_type: str = ""
    """``task``, ``condition`` or ``trace``."""
    creation_timestamp: str = ""
    """RFC 3339, as it is stored; see `created_at`."""
    end_time: str = ""
    """The same, empty before the end; see `ended_at`."""
    abort_reason: str = ""
    aborted_by: str = ""
    most_at_once: int = 0
    """How many actions of its run may be busy at once; 0 for no limit."""

    @property
    def incarnation(self) -> Incarnation:
        """The object whose state it is."""
        return Incarnation(self.key, self.create_revision, self.uid)

    @property
    def created_at(self) -> datetime | None:
        """When the object was created.

        Raises:
            DecodeError: The time is not RFC 3339.
        """
        return parse_time(self.creation_timestamp, "metadata.creationTimestamp")

    @property
    def ended_at(self) -> datetime | None:
        """When the action ended; None before that.

        Raises:
            DecodeError: The time is not RFC 3339.
        """
        return parse_time(self.end_time, "status.conditions")

    @property
    def signal_value(self) -> bool | float | str | None:
        """The value that a condition was signalled with; None before that.

        Raises:
            DecodeError: The stored field is not base64 of a literal.
            ConfigError: ``flyteidl2`` is not installed.
        """
        data = self.signal_literal
        return None if data is None else flyte.value_of(flyte.literal(data))

    @property
    def signal_literal(self) -> bytes | None:
        """The same as Flyte's message ``Literal``, serialized.

        Raises:
            DecodeError: The stored field is not base64.
        """
        if not self.signal_base64:
            return None
        return parse_base64(self.signal_base64, "status.signalValue")


def build_action_update(
    source: ActionObject | Summary,
    *,
    key: bytes,
    revision: int,
    create_revision: int = 0,
    deleted: bool = False,
) -> ActionUpdate:
    """The update of one state of an action, as of Flyte's ``buildActionUpdate``.

    The deletion of an action that had not ended is reported as ABORTED. The deletion of an ended
    one is reported with its terminal phase.

    Args:
        source: The object, or its summary in the index.
        key: Its etcd key, ``<prefix><namespace>/<name>``.
        revision: ``mod_revision`` of the value; of a deletion, the revision of the delete.
        create_revision: That of the key, 0 if it is not known (etcd's DELETE events); then a
            summary's own is used.
        deleted: Whether the object was deleted from etcd.
    """
    if isinstance(source, Summary):
        return _from_summary(source, key, revision, create_revision, deleted)
    metadata = source.metadata
    spec = source.spec
    status = source.status
    state = source.state(create_revision)
    return ActionUpdate(
        key=key,
        namespace=metadata.namespace,
        name=metadata.name,
        action_id=source.action_id,
        parent=spec.parent_action_name,
        phase=_final(state.phase, deleted),
        attempts=state.attempts,
        cache_status=status.cache_status,
        output_uri=source.outputs_of(state.attempts),
        uid=metadata.uid,
        create_revision=create_revision,
        revision=revision,
        recorded=state.recorded,
        is_deleted=deleted,
        # An older status was written over the terminal state: only its mark remains.
        partial=state.outdated,
        error=status.error_state,
        signal_base64=status.signal_value,
        signalled_by=status.signalled_by,
        short_name=spec.short_name,
        task_type=spec.task_type,
        action_type=spec.kind,
        creation_timestamp=metadata.creation_timestamp,
        end_time=source.end_time,
        abort_reason=metadata.annotations.get(ANNOTATION_ABORT_REASON, ""),
        aborted_by=metadata.annotations.get(ANNOTATION_ABORTED_BY, ""),
        most_at_once=_count(metadata.annotations.get(ANNOTATION_MOST_AT_ONCE, "")),
    )


def _from_summary(
    summary: Summary, key: bytes, revision: int, create_revision: int, deleted: bool
) -> ActionUpdate:
    # A key of another program may have fewer parts.
    _, namespace, name = ["", "", *key.decode(errors="replace").rsplit("/", 2)][-3:]
    return ActionUpdate(
        key=key,
        namespace=namespace,
        name=name,
        action_id=summary.action_id,
        parent=summary.parent,
        phase=_final(summary.phase, deleted),
        attempts=summary.attempts,
        cache_status=summary.cache_status,
        output_uri=output_uri(
            namespace, name, summary.run_output_base, summary.action, summary.attempts
        ),
        uid=summary.uid,
        create_revision=create_revision or summary.create_revision,
        revision=revision,
        recorded=summary.recorded,
        is_deleted=deleted,
        partial=True,
    )


def _count(text: str) -> int:
    """A number in decimal digits; 0 for another text, which any writer may have stored."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else 0


def _final(phase: Phase, deleted: bool) -> Phase:
    return Phase.ABORTED if deleted and not phase.is_terminal else phase
