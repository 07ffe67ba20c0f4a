"""The objects that a client read or wrote last: a write on one of them needs no read.

A cached object may be old. So it is used only for a write that compares its revision in the same
transaction. If the compare fails, or the object leads to an error or to no write, it is read.

A restored store may have other bytes at the same revision. So entries expire after a minute, and
all are dropped when a connection is lost.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from etcd_actions.etcd.api import KeyValue

MOST: Final = 4096
"""The most objects."""
MOST_BYTES: Final = 16 * 1024 * 1024
"""The most bytes of all values."""
LARGEST: Final = 64 * 1024
"""The most bytes of one value."""
OLDEST: Final = 60.0
"""Seconds after which an object expires."""


class ReadCache:
    """Objects by key, of bounded number, size and age; the least recently used is dropped first.

    Args:
        clock: Returns the seconds of a monotonic clock.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._found: OrderedDict[bytes, tuple[KeyValue, float]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: bytes) -> KeyValue | None:
        """Return the object that was read or written last; None if it is not cached."""
        found = self._found.get(key)
        if found is None:
            return None
        kv, since = found
        if self._clock() - since > OLDEST:
            self.forget(key)
            return None
        self._found.move_to_end(key)
        return kv

    def put(self, kv: KeyValue) -> None:
        """Store an object that was read or written; one that is too large is not stored."""
        self.forget(kv.key)
        if len(kv.value) > LARGEST:
            return
        self._found[kv.key] = kv, self._clock()
        self._bytes += len(kv.value)
        while len(self._found) > MOST or self._bytes > MOST_BYTES:
            _, (oldest, _) = self._found.popitem(last=False)
            self._bytes -= len(oldest.value)

    def forget(self, key: bytes) -> None:
        """Drop the object of a key."""
        before = self._found.pop(key, None)
        if before is not None:
            self._bytes -= len(before[0].value)

    def clear(self) -> None:
        """Drop all objects."""
        self._found.clear()
        self._bytes = 0
