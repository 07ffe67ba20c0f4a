"""The mark between the first list and later changes, in a stream of changes."""

from __future__ import annotations

import msgspec


class SyncedRow(msgspec.Struct, frozen=True, gc=False, tag="SYNCED"):
    """The list at ``revision`` is complete; the following changes are later ones."""

    revision: int
