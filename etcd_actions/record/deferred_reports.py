"""Terminal states that were accepted too early, to be reported again when no older call can land.

They occupy neither a worker nor their key: each waits here, and returns to the work queue when it
is due. A newer state of its key is handled at once, as if nothing waited.
"""

from __future__ import annotations

import trio

from etcd_actions._internal.keyed_heap import KeyedHeap
from etcd_actions.follow.workqueue import WorkQueue
from etcd_actions.watch import Change

_BUSY = 1.0
"""Seconds until a change is retried whose key had other work."""


class DeferredReports:
    """At most one change a key, each with the time when it is due."""

    def __init__(self) -> None:
        self._changes: dict[bytes, Change] = {}
        self._due: KeyedHeap[bytes, float] = KeyedHeap()
        self._added = trio.Event()

    def __len__(self) -> int:
        return len(self._changes)

    def get(self, key: bytes) -> Change | None:
        """The change of a key; None for none."""
        return self._changes.get(key)

    def put(self, change: Change, until: float) -> None:
        """Keep a change until a time, on trio's clock; it replaces that of the same key."""
        self._changes[change.key] = change
        self._due.put(change.key, until)
        self._added.set()

    def pop(self, key: bytes) -> Change | None:
        """Remove the change of a key; returns it, None for none."""
        self._due.remove(key)
        return self._changes.pop(key, None)

    def clear(self) -> None:
        """Remove all."""
        for key in list(self._changes):
            self.pop(key)

    async def run(self, queue: WorkQueue) -> None:
        """Queue what is due, until cancelled."""
        while True:
            self._added = trio.Event()
            first = self._due.first()
            with trio.move_on_at(float("inf") if first is None else first[1]):
                await self._added.wait()
            while (first := self._due.first()) is not None and first[1] <= trio.current_time():
                key = first[0]
                if queue.dispatch_if_idle(self._changes[key]):
                    self.pop(key)
                else:
                    self._due.put(key, trio.current_time() + _BUSY)
