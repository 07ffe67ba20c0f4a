"""The leader's cache of dead letters: as its watch delivered them, or as it wrote them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from etcd_actions.dead_letters import dead_letter as form
from etcd_actions.dead_letters.dead_letter import DeadLetter, DeadLetterKeys
from etcd_actions.etcd.api import KeyValue
from etcd_actions.watch import Change


class DeadLetterCache:
    """The sink of the reflector that watches the keys of dead letters.

    Args:
        keys: The keys of dead letters.
        owns: Returns whether this process watches an object; other dead letters are ignored,
            because another leader handles them.

    Attributes:
        entries: The dead letters by their keys.
        size: Bytes of their keys and values.
        on_request: Called with the key of an object when another report of it is requested.
    """

    def __init__(self, keys: DeadLetterKeys, owns: Callable[[bytes], bool]) -> None:
        self.entries: dict[bytes, DeadLetter] = {}
        self.size = 0
        self.on_request: Callable[[bytes], None] = lambda _key: None
        self._keys = keys
        self._owns = owns
        # By key of a dead letter, the revision of a deletion that the watch has yet to deliver.
        self._deleted: dict[bytes, int] = {}
        # By key of an object, the keys of its dead letters that have a request.
        self._requested: dict[bytes, set[bytes]] = {}

    def requested(self, key: bytes) -> list[DeadLetter]:
        """The dead letters about an object for which another report is requested."""
        if not (keys := self._requested.get(key)):
            return []
        return [self.entries[each] for each in keys]

    def put(self, kv: KeyValue) -> None:
        """Note a dead letter that was read or written."""
        dead_letter = form.read(self._keys, kv)
        if dead_letter.key and not self._owns(dead_letter.key):
            return
        self.remove(kv.key)
        self.entries[kv.key] = dead_letter
        self.size += dead_letter.size
        if dead_letter.request is not None:
            self._requested.setdefault(dead_letter.key, set()).add(kv.key)
            self.on_request(dead_letter.key)

    def remove(self, key: bytes, revision: int = 0) -> None:
        """Remove a dead letter; with ``revision`` this process deleted it, at that revision."""
        if revision:
            self._deleted[key] = revision
        dead_letter = self.entries.pop(key, None)
        if dead_letter is None:
            return
        self.size -= dead_letter.size
        if keys := self._requested.get(dead_letter.key):
            keys.discard(key)
            if not keys:
                del self._requested[dead_letter.key]

    def clear(self) -> None:
        """Forget all: another process may be the leader, or the store was replaced."""
        self.entries.clear()
        self._requested.clear()
        self._deleted.clear()
        self.size = 0

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Accept changes of the watch, except those that are older than this process's writes."""
        for change in changes:
            kv = change.kv
            if kv.mod_revision <= self._deleted.get(kv.key, 0):
                if change.is_delete:
                    del self._deleted[kv.key]
                continue
            self._deleted.pop(kv.key, None)
            known = self.entries.get(kv.key)
            if known is not None and kv.mod_revision <= known.dead_letter_revision:
                continue
            if change.is_delete:
                self.remove(kv.key)
            else:
                self.put(kv.plain())

    async def wait_list_capacity(self) -> None:
        """There is capacity: dead letters are bounded."""
        await trio.lowlevel.checkpoint()

    async def wait_stream_capacity(self) -> None:
        """There is capacity: dead letters are bounded."""
