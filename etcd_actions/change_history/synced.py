"""Where, in a stream of changes, what was there ends and what is new begins."""

from __future__ import annotations

import msgspec


class SyncedRow(msgspec.Struct, frozen=True, gc=False, tag="SYNCED"):
    """Everything that existed at ``revision`` was shown; what follows is new."""

    revision: int
