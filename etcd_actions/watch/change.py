"""One change of one key, as the reflector hands it out."""

from __future__ import annotations

import enum

import msgspec


class ChangeKind(enum.Enum):
    """What happened to the key, in Kubernetes' words."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


class Change(msgspec.Struct, frozen=True, gc=False):
    """A new state of a key, or its end.

    Attributes:
        kind: ADDED for the first put of an incarnation (etcd's version 1) and for what the
            first list found; DELETED for a delete; else MODIFIED.
        key: The etcd key.
        value: The stored bytes; empty for a delete. None where they were dropped to save
            memory and must be read again, at ``mod_revision``.
        create_revision: Revision of the incarnation's first put, 0 for a delete.
        mod_revision: Revision of this change. A synthesised delete has the highest one that
            the real delete can have had.
        version: Number of puts of the incarnation, 0 for a delete.
        lease: The lease that the key is attached to, 0 without.
        listed: Whether it was read from a list, not from history: states before it may have
            been skipped.
        synthesised: For a delete: it was not seen, but concluded from a list.
        prev_value: What the key held before, where the reflector was told to ask for it and
            etcd still had it.
    """

    kind: ChangeKind
    key: bytes
    value: bytes | None
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0
    listed: bool = False
    synthesised: bool = False
    prev_value: bytes | None = None

    @property
    def is_delete(self) -> bool:
        """Whether the key is gone."""
        return self.version == 0
