"""A change or a stored value as one row for a person or a program. No I/O."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    ActionUpdate,
    ErrorState,
    Phase,
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

    ``type`` is the kind of the change, or ACTION for a stored state. A field that is None is
    unknown, since no value of a deleted key could be decoded; ``parent`` is also None for the root
    of a run. The service does not deliver ``key``, ``namespace``, ``revision``, ``recorded``,
    ``uid`` and ``output_uri``.
    """

    type: str
    key: str = ""
    namespace: str = ""
    name: str
    revision: int = 0
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
    """When it became terminal, as stored; empty if it is not, or if that is not stored."""
    listed: bool = False
    """Read from a list: earlier states may have been skipped."""
    synthesised: bool = False
    """A deletion that was not received: a list without the key shows it."""
    partial: bool = False
    """Made from the cached last state."""

    @property
    def path(self) -> str:
        """The name that commands take."""
        if self.run is None or self.action is None:
            return f"{self.namespace}/{self.name}"
        return f"{self.project}/{self.domain}/{self.run}/{self.action}"


class UndecodableRow(msgspec.Struct, frozen=True, gc=False, tag="UNDECODABLE"):
    """A value that is not a TaskAction."""

    key: str
    revision: int
    reason: str


Row: TypeAlias = ActionRow | UndecodableRow | SyncedRow


class RowMaker:
    """Makes rows of changes, and caches the fields of each key that its deletion needs.

    Args:
        prefix: The part of keys before ``<namespace>/<name>``.
    """

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._cached: dict[bytes, bytes] = {}

    def row(self, change: Change) -> Row:
        """The row of a change; an UndecodableRow if the value cannot be decoded."""
        key, revision = change.key, change.mod_revision
        try:
            parse_key(self._prefix, key)
            if change.is_delete:
                return self._deleted(change)
            value = change.value
            action = codec_of(value).decode(value, key=key, revision=revision)
        except DecodeError as error:
            return UndecodableRow(as_text(key), revision, error.reason)
        self._cached[key] = pack(summarize(action, revision, change.create_revision))
        update = build_action_update(
            action, key=key, revision=revision, create_revision=change.create_revision
        )
        return update_row(change.kind.value, update, listed=change.listed)

    def _deleted(self, change: Change) -> ActionRow:
        """The row of a deletion: of the previous value if there is one, else of the cache."""
        key, revision = change.key, change.mod_revision
        cached = self._cached.pop(key, None)
        update: ActionUpdate | None = None
        if cached is not None:
            update = build_action_update(unpack(cached), key=key, revision=revision, deleted=True)
        if change.prev_value:
            with contextlib.suppress(DecodeError):
                action = codec_of(change.prev_value).decode(change.prev_value, key=key)
                update = build_action_update(action, key=key, revision=revision, deleted=True)
        if update is not None:
            return update_row(
                change.kind.value, update, listed=change.listed, synthesised=change.synthesised
            )
        namespace, name = key.decode().split("/")[-2:]
        return ActionRow(
            type=change.kind.value,
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
            listed=change.listed,
            synthesised=change.synthesised,
            partial=True,
        )


def stored_row(prefix: bytes, kv: KeyValue) -> ActionRow | UndecodableRow:
    """The row of a stored value; an UndecodableRow if it cannot be decoded."""
    key, revision = kv.key, kv.mod_revision
    try:
        parse_key(prefix, key)
        action = codec_of(kv.value).decode(kv.value, key=key, revision=revision)
    except DecodeError as error:
        return UndecodableRow(as_text(key), revision, error.reason)
    update = build_action_update(
        action, key=key, revision=revision, create_revision=kv.create_revision
    )
    return update_row("ACTION", update)


def as_text(key: bytes) -> str:
    """A key as text, also if it is not UTF-8."""
    return key.decode(errors="backslashreplace")


def update_row(
    kind: str, update: ActionUpdate, *, listed: bool = False, synthesised: bool = False
) -> ActionRow:
    """The row of an update; see :class:`ActionRow`."""
    # The names of the key, not those in the object.
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
        phase=(update.phase or Phase.QUEUED).name,
        # Queued for the first one: attempts count from 1, as in Flyte's messages.
        attempts=max(update.attempts, 1),
        terminal=update.phase.is_terminal,
        recorded=update.recorded,
        project=update.action_id.project,
        domain=update.action_id.domain,
        uid=update.uid,
        short_name=update.short_name,
        output_uri=update.output_uri,
        error=update.error,
        created_at=update.creation_timestamp,
        ended_at=update.end_time,
        listed=listed,
        synthesised=synthesised,
        partial=update.partial,
    )
