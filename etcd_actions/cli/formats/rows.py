"""What a change or a stored value means, as one line for a person or a program. No I/O."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    ActionObject,
    ActionUpdate,
    ErrorState,
    build_action_update,
    pack,
    parse_key,
    summarize,
    unpack,
)

if TYPE_CHECKING:
    from etcd_actions.watch import Change


class ActionRow(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A state of an action, or its deletion.

    ``type`` is the kind of the change; ACTION for a state that was asked for. What is None
    above the defaults is unknown: nothing readable was ever seen of a deleted key. Only
    ``parent`` is None for a reason of its own, the root of a run.
    """

    type: str
    key: str
    namespace: str
    name: str
    revision: int
    run: str | None
    action: str | None
    parent: str | None
    phase: str | None
    attempts: int | None
    terminal: bool | None
    recorded: bool | None
    project: str = ""
    domain: str = ""
    uid: str = ""
    short_name: str = ""
    output_uri: str = ""
    error: ErrorState | None = None
    created_at: str = ""
    ended_at: str = ""
    """When it was over, as stored; empty where it is not over or nobody noted it."""
    listed: bool = False
    """Read from a list: states before it may have been skipped."""
    synthesised: bool = False
    """A deletion that was not seen but concluded."""
    partial: bool = False
    """Told from what was remembered."""


class UndecodableRow(msgspec.Struct, frozen=True, gc=False, tag="UNDECODABLE"):
    """A value that is no TaskAction."""

    key: str
    revision: int
    reason: str


Row: TypeAlias = ActionRow | UndecodableRow | SyncedRow


class RowMaker:
    """Makes rows of changes, and remembers of each key what its deletion will need.

    Args:
        prefix: What comes before ``<namespace>/<name>`` in the keys.
    """

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._known: dict[bytes, bytes] = {}

    def row(self, change: Change) -> Row:
        """The row of a change. Never fails: what cannot be read says so."""
        key, revision = change.key, change.mod_revision
        try:
            parse_key(self._prefix, key)
            if change.is_delete:
                return self._deleted(change)
            value = change.value
            action = codec_of(value).decode(value, key=key, revision=revision)
        except DecodeError as error:
            return UndecodableRow(as_text(key), revision, error.reason)
        self._known[key] = pack(summarize(action, revision, change.create_revision))
        update = build_action_update(
            action, key=key, revision=revision, create_revision=change.create_revision
        )
        return _row(change.kind.value, update, ended_at(action), listed=change.listed)

    def _deleted(self, change: Change) -> ActionRow:
        """What is known of a deleted key: the previous value tells more than the memory."""
        key, revision = change.key, change.mod_revision
        packed = self._known.pop(key, None)
        kind, listed, synthesised = change.kind.value, change.listed, change.synthesised
        if change.prev_value:
            # One that cannot be read had a row when it was written: memory must do.
            with contextlib.suppress(DecodeError):
                action = codec_of(change.prev_value).decode(change.prev_value, key=key)
                update = build_action_update(action, key=key, revision=revision, deleted=True)
                return _row(kind, update, ended_at(action), listed=listed, synthesised=synthesised)
        if packed is not None:
            update = build_action_update(unpack(packed), key=key, revision=revision, deleted=True)
            return _row(kind, update, "", listed=listed, synthesised=synthesised)
        namespace, name = key.decode().split("/")[-2:]
        return ActionRow(
            type=kind,
            key=as_text(key),
            namespace=namespace,
            name=name,
            revision=revision,
            run=None,
            action=None,
            parent=None,
            phase=None,
            attempts=None,
            terminal=None,
            recorded=None,
            listed=listed,
            synthesised=synthesised,
            partial=True,
        )


def stored_row(prefix: bytes, kv: KeyValue) -> ActionRow | UndecodableRow:
    """The row of what a key holds. Never fails: what cannot be read says so."""
    key, revision = kv.key, kv.mod_revision
    try:
        parse_key(prefix, key)
        action = codec_of(kv.value).decode(kv.value, key=key, revision=revision)
    except DecodeError as error:
        return UndecodableRow(as_text(key), revision, error.reason)
    update = build_action_update(
        action, key=key, revision=revision, create_revision=kv.create_revision
    )
    return _row("ACTION", update, ended_at(action))


def ended_at(action: ActionObject) -> str:
    """When an action was over, as stored; empty where it is not over or nobody noted it."""
    for condition in action.status.conditions if action.is_terminal else ():
        if condition.status == "True" and condition.type in ("Succeeded", "Failed"):
            return condition.last_transition_time
    return ""


def as_text(key: bytes) -> str:
    """A key as text, whatever it holds."""
    return key.decode(errors="backslashreplace")


def _row(
    kind: str,
    update: ActionUpdate,
    ended: str,
    *,
    listed: bool = False,
    synthesised: bool = False,
) -> ActionRow:
    # The key decides, not what the object says of itself.
    key = as_text(update.key)
    namespace, name = key.split("/")[-2:]
    return ActionRow(
        type=kind,
        key=key,
        namespace=namespace,
        name=name,
        revision=update.revision,
        run=update.action_id.run,
        action=update.action_id.name,
        parent=update.parent or None,
        phase=update.phase.name,
        attempts=update.attempts,
        terminal=update.phase.is_terminal,
        recorded=update.recorded,
        project=update.action_id.project,
        domain=update.action_id.domain,
        uid=update.uid,
        short_name=update.short_name,
        output_uri=update.output_uri,
        error=update.error,
        created_at=update.creation_timestamp,
        ended_at=ended,
        listed=listed,
        synthesised=synthesised,
        partial=update.partial,
    )
