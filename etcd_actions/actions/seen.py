"""Objects as one client saw them last: guesses that spare a read.

What is kept may be old. So a guess is only ever the base of a write that compares the revision
of what was seen, in the same transaction; where that fails, or the guess leads to anything but a
write, the object is read.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from etcd_actions.etcd.api import KeyValue

MOST: Final = 4096
"""Objects."""
MOST_BYTES: Final = 16 * 1024 * 1024
"""Of all together."""
LARGEST: Final = 64 * 1024
"""Bytes of one."""


class Seen:
    """The objects that were seen last, of bounded number and size; those used least go first."""

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, KeyValue] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: bytes) -> KeyValue | None:
        """What was seen there last."""
        kv = self._found.get(key)
        if kv is not None:
            self._found.move_to_end(key)
        return kv

    def keep(self, kv: KeyValue) -> None:
        """Note what was read or written; what is too large is not kept."""
        self.forget(kv.key)
        if len(kv.value) > LARGEST:
            return
        self._found[kv.key] = kv
        self._bytes += len(kv.value)
        while len(self._found) > MOST or self._bytes > MOST_BYTES:
            _, oldest = self._found.popitem(last=False)
            self._bytes -= len(oldest.value)

    def forget(self, key: bytes) -> None:
        """Drop what was seen of a key."""
        before = self._found.pop(key, None)
        if before is not None:
            self._bytes -= len(before.value)

    def clear(self) -> None:
        """Drop everything: after a lost connection etcd may be another, restored store."""
        self._found.clear()
        self._bytes = 0
