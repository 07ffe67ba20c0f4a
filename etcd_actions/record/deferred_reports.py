"""Defers the second report of a terminal state until no older call can arrive any more.

The run service accepted the state while an older call could still arrive after it, and replace it.
So the state is reported again later, and marked only then. Until then it occupies no worker, and
does not delay newer states of its key.
"""

from __future__ import annotations

import trio

from etcd_actions._internal.keyed_heap import KeyedHeap
from etcd_actions.follow.workqueue import WorkQueue
from etcd_actions.watch import Change

_BUSY = 1.0
"""Seconds until a due change is queued again, if its key had other work."""


class DeferredReports:
    """At most one change of each key, with the time when it is due."""

    def __init__(self) -> None:
        self._changes: dict[bytes, Change] = {}
        self._due: KeyedHeap[bytes, float] = KeyedHeap()
        self._added = trio.Event()

    def __len__(self) -> int:
        return len(self._changes)

    def get(self, key: bytes) -> Change | None:
        """The deferred change of a key; None without one."""
        return self._changes.get(key)

    def put(self, change: Change, until: float) -> None:
        """Keep a change until a time on trio's clock; it replaces the one of the same key."""
        self._changes[change.key] = change
        self._due.put(change.key, until)
        self._added.set()

    def pop(self, key: bytes) -> Change | None:
        """Remove and return the change of a key; None without one."""
        self._due.remove(key)
        return self._changes.pop(key, None)

    def clear(self) -> None:
        """Remove all changes."""
        for key in list(self._changes):
            self.pop(key)

    async def run(self, queue: WorkQueue) -> None:
        """Queue each change when it is due, until cancelled."""
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
