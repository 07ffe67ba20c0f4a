"""Endings that were accepted too early, to be told again when nothing older can land any more.

They hold neither a worker nor their key: each waits here, and is given back when its time has
come. A newer state of its key is handled meanwhile as if nothing waited.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import trio

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
        self._held: dict[bytes, tuple[int, Change]] = {}
        self._times: list[tuple[float, int, bytes]] = []
        self._numbers = itertools.count()
        self._added = trio.Event()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: bytes) -> Change | None:
        """What waits of a key."""
        held = self._held.get(key)
        return None if held is None else held[1]

    def hold(self, change: Change, until: float) -> None:
        """Keep a change until a time, in trio's; it takes the place of what waits of its key."""
        number = next(self._numbers)
        self._held[change.key] = (number, change)
        heapq.heappush(self._times, (until, number, change.key))
        self._added.set()

    def drop(self, key: bytes) -> None:
        """Nothing of a key is to be given back any more."""
        self._held.pop(key, None)

    async def run(self) -> None:
        """Give back what is due, until cancelled."""
        while True:
            self._added = trio.Event()
            with trio.move_on_at(self._times[0][0] if self._times else float("inf")):
                await self._added.wait()
            while self._times and self._times[0][0] <= trio.current_time():
                _, number, key = heapq.heappop(self._times)
                held = self._held.get(key)
                if held is None or held[0] != number:
                    continue
                if self._give_back(held[1]):
                    del self._held[key]
                else:
                    heapq.heappush(self._times, (trio.current_time() + _BUSY, number, key))
