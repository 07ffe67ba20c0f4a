"""Objects as one client saw them last: guesses that spare a read.

What is kept may be old. So a guess is only ever the base of a write that compares the revision
of what was seen, in the same transaction; where that fails, or the guess leads to anything but a
write, the object is read.

A restored store may come to the same revision with other bytes. So nothing is kept for long, and
all is dropped when a connection is lost.
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
"""Seconds since it was read or written: beyond them it is read anew."""


class ReadCache:
    """The objects that were seen last, of bounded number, size and age.

    Those used least go first.

    Args:
        clock: Seconds of a clock that nobody sets.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._found: OrderedDict[bytes, tuple[KeyValue, float]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: bytes) -> KeyValue | None:
        """What was seen there last."""
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
        """Note what was read or written; what is too large is not kept."""
        self.forget(kv.key)
        if len(kv.value) > LARGEST:
            return
        self._found[kv.key] = kv, self._clock()
        self._bytes += len(kv.value)
        while len(self._found) > MOST or self._bytes > MOST_BYTES:
            _, (oldest, _) = self._found.popitem(last=False)
            self._bytes -= len(oldest.value)

    def forget(self, key: bytes) -> None:
        """Drop what was seen of a key."""
        before = self._found.pop(key, None)
        if before is not None:
            self._bytes -= len(before[0].value)

    def clear(self) -> None:
        """Drop everything."""
        self._found.clear()
        self._bytes = 0
