"""Endings that were accepted too early, to be told again when nothing older can land any more.

They hold neither a worker nor their key: each waits here, and is given back when its time has
come. A newer state of its key is handled meanwhile as if nothing waited.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from etcd_actions._internal.keyed_heap import KeyedHeap
from etcd_actions.watch import Change

_BUSY = 1.0
"""Seconds after which one is given back whose key had other work."""


class HeldEndings:
    """What waits, at most one change a key.

    Args:
        give_back: Takes a change; False while its key has other work.
    """

    def __init__(self, give_back: Callable[[Change], bool]) -> None:
        self._give_back = give_back
        self._held: dict[bytes, Change] = {}
        self._due: KeyedHeap[bytes, float] = KeyedHeap()
        self._added = trio.Event()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: bytes) -> Change | None:
        """What waits of a key."""
        return self._held.get(key)

    def hold(self, change: Change, until: float) -> None:
        """Keep a change until a time, in trio's; it takes the place of what waits of its key."""
        self._held[change.key] = change
        self._due.put(change.key, until)
        self._added.set()

    def drop(self, key: bytes) -> None:
        """Nothing of a key is to be given back any more."""
        if self._held.pop(key, None) is not None:
            self._due.remove(key)

    async def run(self) -> None:
        """Give back what is due, until cancelled."""
        while True:
            self._added = trio.Event()
            first = self._due.first()
            with trio.move_on_at(float("inf") if first is None else first[1]):
                await self._added.wait()
            while (first := self._due.first()) is not None and first[1] <= trio.current_time():
                key = first[0]
                if self._give_back(self._held[key]):
                    self.drop(key)
                else:
                    self._due.put(key, trio.current_time() + _BUSY)
