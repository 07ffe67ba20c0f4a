"""The boundary in a stream of changes between the first state and later changes."""

from __future__ import annotations

import msgspec


class SyncedRow(msgspec.Struct, frozen=True, gc=False, tag="SYNCED"):
    """The state at ``revision`` is complete; the following changes are later ones."""

    revision: int
