"""Keys with their history, at revisions, as etcd's mvcc keeps them. Nothing here waits."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from operator import attrgetter

import msgspec

from etcd_actions.etcd.api import Event, KeyRange, KeyValue, RangeResult

_BY_REVISION = attrgetter("mod_revision")


class Refused(Exception):
    """etcd answers with an error; the text is etcd's own."""


def contains(keys: KeyRange, key: bytes) -> bool:
    """Whether a range has a key, by etcd's rules.

    Without an end the range is one key; an end of one zero byte means no end.
    """
    if not keys.end:
        return key == keys.start
    return keys.start <= key and (keys.end == b"\0" or key < keys.end)


class Keyspace:
    """Every key, with its history since the last compaction.

    Changes are collected, and become the next revision with :meth:`commit`.

    Attributes:
        revision: The newest revision. An empty store has 1.
        compacted: The oldest revision that can be read; 0 before the first compaction.
    """

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self._now: dict[bytes, KeyValue] = {}
        # The states of each key, oldest first; a version of 0 is a deletion.
        self._past: dict[bytes, list[KeyValue]] = {}
        self._names: list[bytes] = []
        self._log: list[Event] = []
        self._changes: list[Event] = []

    @property
    def next_revision(self) -> int:
        """The revision of a read inside a transaction, with its changes so far."""
        return self.revision + bool(self._changes)

    @property
    def size(self) -> int:
        """Bytes of all keys and values with their history."""
        return sum(len(event.key) + len(event.value) for event in self._log)

    def get(self, key: bytes) -> KeyValue | None:
        """The state of a key, with changes that are not committed."""
        return self._now.get(key)

    def find(self, keys: KeyRange) -> Iterator[KeyValue]:
        """All keys of a range in order, with changes that are not committed."""
        for name in self._named(keys):
            if (kv := self._now.get(name)) is not None:
                yield kv

    def range(
        self,
        keys: KeyRange,
        *,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
    ) -> RangeResult:
        """Read a range; see :meth:`~etcd_actions.etcd.api.Etcd.range`.

        Raises:
            Refused: The revision is compacted, or in the future.
        """
        if not keys.start:
            raise Refused("etcdserver: key is not provided")
        if revision > self.next_revision:
            raise Refused("etcdserver: mvcc: required revision is a future revision")
        if 0 < revision < self.compacted:
            raise Refused("etcdserver: mvcc: required revision has been compacted")
        if revision > 0:
            found = [kv for name in self._named(keys) if (kv := self.at(name, revision))]
        else:
            found = list(self.find(keys))
        total, more = len(found), 0 < limit < len(found)
        if count_only:
            found, more = [], False
        if more:
            del found[limit:]
        if keys_only:
            found = [msgspec.structs.replace(kv, value=b"") for kv in found]
        return RangeResult(found, more, total, self.next_revision, 0)

    def at(self, key: bytes, revision: int) -> KeyValue | None:
        """The state of a key at a revision; None if it did not exist, or is compacted."""
        past = self._past.get(key, [])
        index = bisect_right(past, revision, key=_BY_REVISION)
        if revision < self.compacted or index == 0 or past[index - 1].version == 0:
            return None
        return past[index - 1]

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        """Write a key at the next revision."""
        revision = self.revision + 1
        before = self._now.get(key)
        created = revision if before is None else before.create_revision
        version = 0 if before is None else before.version
        kv = KeyValue(key, value, created, revision, version + 1, lease)
        self._now[key] = kv
        self._change(kv)

    def delete(self, keys: KeyRange) -> list[KeyValue]:
        """Delete a range at the next revision; return its keys with their values."""
        if not keys.start:
            raise Refused("etcdserver: key is not provided")
        found = list(self.find(keys))
        for kv in found:
            del self._now[kv.key]
            self._change(KeyValue(kv.key, b"", 0, self.revision + 1, 0))
        return found

    def _change(self, kv: KeyValue) -> None:
        if kv.key not in self._past:
            insort(self._names, kv.key)
        self._past.setdefault(kv.key, []).append(kv)
        self._changes.append(
            Event(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
        )

    def commit(self) -> Sequence[Event]:
        """Make the changes the newest revision, if there are any, and return them."""
        changes, self._changes = self._changes, []
        if changes:
            self.revision += 1
            self._log += changes
        return changes

    def since(self, revision: int) -> Sequence[Event]:
        """All changes from a revision on, in order."""
        return self._log[bisect_left(self._log, revision, key=_BY_REVISION) :]

    def compact(self, revision: int) -> None:
        """Drop history below a revision.

        Raises:
            Refused: It is dropped already, or in the future.
        """
        if revision > self.revision:
            raise Refused("etcdserver: mvcc: required revision is a future revision")
        if revision <= self.compacted:
            raise Refused("etcdserver: mvcc: required revision has been compacted")
        self.compacted = revision
        self._log = list(self.since(revision))
        for key, past in list(self._past.items()):
            index = bisect_right(past, revision, key=_BY_REVISION)
            # The last state up to the revision is still readable, unless it is a deletion.
            keep = past[max(0, index - 1) :] if index and past[index - 1].version else past[index:]
            if keep:
                self._past[key] = keep
            else:
                del self._past[key]
        self._names = sorted(self._past)

    def _named(self, keys: KeyRange) -> Iterator[bytes]:
        """The names in a range, of existing and of deleted keys."""
        for index in range(bisect_left(self._names, keys.start), len(self._names)):
            name = self._names[index]
            if not contains(keys, name):
                break
            yield name
