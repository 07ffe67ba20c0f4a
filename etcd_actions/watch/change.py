"""One change of one key, as the reflector delivers it."""

from __future__ import annotations

import enum

import msgspec

from etcd_actions.etcd.api import Event, KeyValue


class ChangeKind(enum.Enum):
    """The kind of a change of a key, with the names of Kubernetes."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


class Change(msgspec.Struct, frozen=True, gc=False):
    """A new state of a key, or its deletion.

    Attributes:
        kind: ADDED for the first put of an incarnation (etcd's version 1) and for a key that the
            first list found; DELETED for a delete; else MODIFIED.
        kv: The state. A delete has no value, and ``create_revision`` and ``version`` are 0. The
            ``mod_revision`` of a synthesised delete is the highest that the real one can have had.
            Code that runs for each event reads its fields; the properties below cost more.
        listed: The state was read by a list, not from history: states before it may have been
            skipped.
        synthesised: The delete was not received: a list without the key shows it.
        value_dropped: The value was dropped to save memory. It can be read again, at
            ``mod_revision``.
    """

    kind: ChangeKind
    kv: KeyValue
    listed: bool = False
    synthesised: bool = False
    value_dropped: bool = False

    @classmethod
    def deletion(cls, key: bytes, revision: int, *, synthesised: bool = False) -> Change:
        """The deletion of a key."""
        kv = KeyValue(key, b"", 0, revision, 0)
        return cls(ChangeKind.DELETED, kv, listed=synthesised, synthesised=synthesised)

    @classmethod
    def unread(cls, key: bytes, create_revision: int, revision: int) -> Change:
        """A state of which only the revisions are known; its value can be read at ``revision``."""
        kv = KeyValue(key, b"", create_revision, revision, 1)
        return cls(ChangeKind.MODIFIED, kv, value_dropped=True)

    def without_value(self) -> Change:
        """The same change with its value dropped."""
        kv = msgspec.structs.replace(self.kv.plain(), value=b"")
        return msgspec.structs.replace(self, kv=kv, value_dropped=True)

    def with_value(self, kv: KeyValue) -> Change:
        """The same change with its value, as it was read again."""
        return msgspec.structs.replace(self, kv=kv, value_dropped=False)

    @property
    def key(self) -> bytes:
        """The etcd key."""
        return self.kv.key

    @property
    def value(self) -> bytes:
        """The stored bytes; empty for a delete, and for a value that was dropped."""
        return self.kv.value

    @property
    def create_revision(self) -> int:
        """Revision of the incarnation's first put; 0 for a delete."""
        return self.kv.create_revision

    @property
    def mod_revision(self) -> int:
        """Revision of this change."""
        return self.kv.mod_revision

    @property
    def version(self) -> int:
        """Number of puts of the incarnation; 0 for a delete."""
        return self.kv.version

    @property
    def prev_value(self) -> bytes | None:
        """The value before, if the reflector requests it and etcd still had it; else None."""
        kv = self.kv
        return kv.prev_kv.value if isinstance(kv, Event) and kv.prev_kv is not None else None

    @property
    def is_delete(self) -> bool:
        """Whether the key is deleted."""
        return self.kv.version == 0


def conflated(old: Change, new: Change) -> Change | None:
    """Two changes of a key as one change; None if both have to be delivered.

    They become one if both are states of the same incarnation. A delete, and the first state of
    another incarnation, is always delivered.
    """
    before, after = old.kv, new.kv
    if not (before.version and after.version and before.create_revision == after.create_revision):
        return None
    if old.kind is ChangeKind.ADDED and new.kind is not ChangeKind.ADDED:
        return msgspec.structs.replace(new, kind=ChangeKind.ADDED)
    return new
