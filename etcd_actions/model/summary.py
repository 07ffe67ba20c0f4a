"""The facts of an action that are kept in memory, to report its deletion.

A DELETE event of etcd carries no value, and after a compaction not the previous one either. So the
index (`etcd_actions.follow.packing`) keeps a summary of each key.
"""

from __future__ import annotations

from typing import Any

import msgspec

from etcd_actions.errors import DecodeError
from etcd_actions.model.mark import State
from etcd_actions.model.names import (
    ACTION_TYPE_CONDITION,
    ANNOTATION_ORG,
    ANNOTATION_QUEUE,
    ANNOTATION_RUN_QUEUE,
    FINALIZER_RECORD,
    ActionId,
    other_version,
)
from etcd_actions.model.phase import Phase
from etcd_actions.model.taskaction import ActionObject


class Summary(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The facts of one key. Packed as an array: a new field has to be the last one."""

    project: str
    domain: str
    run: str
    action: str
    org: str
    parent: str
    uid: str
    phase: Phase
    attempts: int
    cache_status: int
    recorded: bool
    run_output_base: str
    create_revision: int
    """0 if the writer of the summary did not know it."""
    revision: int
    """``mod_revision`` of the summarized value."""
    deleting: bool = False
    """Whether its deletion was requested and waits for finalizers."""
    held: bool = False
    """Whether our finalizer is on it."""
    held_by_others: bool = False
    """Whether other finalizers are on it."""
    stray: bool = False
    """Whether it has the label without a terminal state; see `State`."""
    mark: int = 0
    """The `mark_number` of its mark, 0 without one."""
    condition: bool = False
    """Whether it waits for a signal instead of running a task."""
    other_version: str = ""
    """The API version of the stored object if it is not the known one; else empty."""
    pool: str = ""
    """The queue or cluster pool whose workers run it; empty for the default."""

    @property
    def action_id(self) -> ActionId:
        """The identity of the action."""
        return ActionId(self.project, self.domain, self.run, self.action, self.org)

    @property
    def is_terminal(self) -> bool:
        """Whether the action had ended."""
        return self.phase.is_terminal


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Summary).decode


def summarize(action: ActionObject, revision: int, create_revision: int = 0) -> Summary:
    """Summarize an action; ``create_revision`` is 0 if it is not known."""
    return summary_of(action, action.state(create_revision), revision, create_revision)


def summary_of(action: Any, state: State, revision: int, create_revision: int) -> Summary:
    """Summarize an object of a known state.

    Args:
        action: An :class:`ActionObject`, or a message of protobuf with the same fields.
        state: Its state.
        revision: Its ``mod_revision``.
        create_revision: Its ``create_revision``; 0 if it is not known.
    """
    metadata, spec = action.metadata, action.spec
    annotations, finalizers = metadata.annotations or {}, metadata.finalizers
    held = FINALIZER_RECORD in finalizers
    return Summary(
        spec.project,
        spec.domain,
        spec.run_name,
        spec.action_name,
        annotations.get(ANNOTATION_ORG, ""),
        spec.parent_action_name,
        metadata.uid,
        state.phase,
        state.attempts,
        action.status.cache_status,
        state.recorded,
        spec.run_output_base,
        create_revision,
        revision,
        bool(metadata.deletion_timestamp),
        held,
        len(finalizers) > held,
        state.stray,
        state.mark,
        spec.action_type == ACTION_TYPE_CONDITION,
        other_version(action.api_version),
        annotations.get(ANNOTATION_QUEUE, "") or annotations.get(ANNOTATION_RUN_QUEUE, ""),
    )


def pack(summary: Summary) -> bytes:
    """Encode a summary, see `unpack`."""
    return _encode(summary)


def unpack(packed: bytes) -> Summary:
    """Decode the bytes of `pack`.

    Raises:
        DecodeError: They are something else.
    """
    try:
        return _decode(packed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"not a summary of an action: {error}") from None
