"""The objects that a client read or wrote last: a write based on one needs no read.

A cached object may be old. So it is only the base of a write that compares its revision in the
same transaction; if that fails, or the object leads to anything but a write, it is read.

A restored store may have other bytes at the same revision. So entries expire soon, and all are
dropped when a connection is lost.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from etcd_actions.etcd.api import KeyValue

MOST: Final = 4096
"""Objects."""
MOST_BYTES: Final = 16 * 1024 * 1024
"""Of all together."""
LARGEST: Final = 64 * 1024
"""Bytes of one."""
OLDEST: Final = 60.0
"""Seconds since it was read or written: afterwards it is read again."""


class ReadCache:
    """Objects by key, of bounded number, size and age.

    Those used least go first.

    Args:
        clock: Seconds of a monotonic clock.
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
        """Drop everything."""
        self._found.clear()
        self._bytes = 0
