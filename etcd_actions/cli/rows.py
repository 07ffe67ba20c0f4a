"""What a change means, as one line for a person or a program. No I/O."""

from __future__ import annotations

import contextlib
from typing import TypeAlias

import msgspec

from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError
from etcd_actions.model import (
    ActionUpdate,
    ErrorState,
    Summary,
    TaskAction,
    build_action_update,
    pack,
    parse_key,
    summarize,
    unpack,
)
from etcd_actions.watch import Change


class ActionRow(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A state of an action, or its deletion.

    What is None above the defaults is unknown: nothing readable was ever seen of a deleted
    key. Only ``parent`` is None for a reason of its own, the root of a run.
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


class SyncedRow(msgspec.Struct, frozen=True, gc=False, tag="SYNCED"):
    """Everything that existed at ``revision`` was shown; what follows is new."""

    revision: int


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
        key = change.key
        try:
            namespace, name = parse_key(self._prefix, key)
            update = self._deleted(change) if change.is_delete else self._stored(change)
        except DecodeError as error:
            return UndecodableRow(_text(key), change.mod_revision, error.reason)
        return _row(change, namespace, name, update)

    def _stored(self, change: Change) -> ActionUpdate:
        key, revision, value = change.key, change.mod_revision, change.value or b""
        action = codec_of(value).decode(value, key=key, revision=revision)
        self._known[key] = pack(summarize(action, revision, change.create_revision))
        return build_action_update(
            action, key=key, revision=revision, create_revision=change.create_revision
        )

    def _deleted(self, change: Change) -> ActionUpdate | None:
        """What is known of a deleted key: the previous value tells more than the memory."""
        packed = self._known.pop(change.key, None)
        source: TaskAction | Summary | None = None if packed is None else unpack(packed)
        if change.prev_value:
            # One that cannot be read had a row when it was written: memory must do.
            with contextlib.suppress(DecodeError):
                source = codec_of(change.prev_value).decode(change.prev_value, key=change.key)
        if source is None:
            return None
        return build_action_update(
            source, key=change.key, revision=change.mod_revision, deleted=True
        )


def _row(change: Change, namespace: str, name: str, update: ActionUpdate | None) -> ActionRow:
    if update is None:
        return ActionRow(
            type=change.kind.value,
            key=_text(change.key),
            namespace=namespace,
            name=name,
            revision=change.mod_revision,
            run=None,
            action=None,
            parent=None,
            phase=None,
            attempts=None,
            terminal=None,
            recorded=None,
            listed=change.listed,
            synthesised=change.synthesised,
            partial=True,
        )
    return ActionRow(
        type=change.kind.value,
        key=_text(change.key),
        namespace=namespace,
        name=name,
        revision=change.mod_revision,
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
        listed=change.listed,
        synthesised=change.synthesised,
        partial=update.partial,
    )


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
