"""The index: the facts of each key, once in this process. All parts read it, and none copies it.

Of each key it has the facts that its deletion needs, packed, with the revision that was delivered
last; the deletions that are not reported yet; and the children of each action. One key takes less
than 250 bytes, whatever the number of keys, and nothing walks over all of them while events are
handled, the checkpoint is saved or metrics are read.

The reflector compares its lists with it, as its
:class:`~etcd_actions.watch.delivered.DeliveredRevisions`. The part that accepts a change notes it
here in the same step: a change that was not noted is delivered again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final, Protocol

from etcd_actions._internal.keyed_heap import KeyedHeap
from etcd_actions.etcd.api import KeyRange
from etcd_actions.follow.packing import (
    Packing,
    have_one_parent,
    parent_name,
    parent_of,
    revision_in,
)
from etcd_actions.model import ActionUpdate, Summary
from etcd_actions.watch import Change

_FEW: Final = 32
"""Children up to which a tuple is small and fast enough."""

_Children = tuple[bytes, ...] | dict[bytes, None]


class Watching(Protocol):
    """Says how far a watch is."""

    def revision_of(self, key: bytes, /) -> int:
        """Every change of a key up to it was delivered; 0 if the key is not watched."""
        ...

    def progress(self, keys: KeyRange, /) -> list[tuple[KeyRange, int]]:
        """Up to which revision each part of a range was delivered; none if it is not watched."""
        ...


class _Siblings:
    """The keys that differ only behind the last slash."""

    __slots__ = ("children", "facts")

    def __init__(self) -> None:
        self.facts: dict[bytes, bytes] = {}
        # By the parent's name; which may be none of the facts.
        self.children: dict[bytes, _Children] = {}


class Index:
    """The facts of each key, its children and its unreported deletions. No method waits."""

    def __init__(self) -> None:
        self._groups: defaultdict[bytes, _Siblings] = defaultdict(_Siblings)
        self._packing = Packing()
        self._count = 0
        # By key, the revision that was delivered but not handled yet; 0 for a deletion.
        self._delivered: dict[bytes, int] = {}
        # Keys that the present watch delivers again.
        self._again: set[bytes] = set()
        # States that a snapshot showed, and the watch has yet to deliver.
        self._expected: dict[bytes, ActionUpdate] = {}
        # By key, the updates that report its deletions, by their revisions.
        self._deletions: dict[bytes, dict[int, ActionUpdate]] = {}
        self._by_revision: KeyedHeap[tuple[bytes, int], int] = KeyedHeap()
        # Deletions that were inferred from a list: their revision is not known.
        self._concluded: set[tuple[bytes, int]] = set()
        self._watching: Watching | None = None

    # For the reflector.

    def __len__(self) -> int:
        return sum(1 for _ in self) if self._delivered else self._count

    def __iter__(self) -> Iterator[bytes]:
        """The keys that exist, as far as is known."""
        for head, siblings in list(self._groups.items()):
            for name in list(siblings.facts):
                key = head + b"/" + name
                if self._delivered.get(key) != 0:
                    yield key
        for key, revision in list(self._delivered.items()):
            if revision and self._packed(key) is None:
                yield key

    def revision_of(self, key: bytes, /) -> int:
        """The revision that was delivered last, 0 for none; negative until it is redelivered."""
        revision = self._delivered.get(key)
        if revision is None:
            packed = self._packed(key)
            revision = 0 if packed is None else revision_in(packed)
        return -revision if self._again and key in self._again else revision

    def expected_in(self, keys: KeyRange, revision: int, /) -> list[bytes]:
        """See :class:`~etcd_actions.watch.delivered.DeliveredRevisions`."""
        expected = self._expected.items()
        return [key for key, update in expected if key in keys and update.revision <= revision]

    def redeliver_all(self) -> None:
        """A watch begins, or the store is another one: all states are going to come again.

        What waits to be handled still waits, and counts as delivered until then.
        """
        self._again = set(self)

    # For the parts that accept changes.

    def note(self, change: Change) -> None:
        """A change was taken, and its facts are not known yet, or never will be."""
        key, version = change.kv.key, change.kv.version
        if version:
            self._delivered[key] = change.kv.mod_revision
        elif self._packed(key) is None:
            self._delivered.pop(key, None)
        else:
            self._delivered[key] = 0
        self._again.discard(key)
        if version:
            self._expected.pop(key, None)

    def put(self, key: bytes, summary: Summary) -> None:
        """The facts of a state that was taken, behind which nothing waits."""
        head, _, name = key.rpartition(b"/")
        siblings = self._groups[head]
        before = siblings.facts.get(name)
        packed = self._packing.pack(name, summary)
        siblings.facts[name] = packed
        if before is None:
            self._count += 1
            self._add_child(siblings, parent_name(summary.run, summary.parent), name)
        else:
            if not have_one_parent(before, packed):
                self._remove_child(siblings, parent_of(name, before), name)
                self._add_child(siblings, parent_of(name, packed), name)
            self._packing.release(before)
        if self._delivered:
            self._delivered.pop(key, None)
        if self._again:
            self._again.discard(key)
        if self._expected:
            self._expected.pop(key, None)

    def remove(self, key: bytes) -> None:
        """A deletion was handled."""
        if self._expected:
            self._expected.pop(key, None)
        if self._delivered:
            self._delivered.pop(key, None)
        if self._again:
            self._again.discard(key)
        head, _, name = key.rpartition(b"/")
        siblings = self._groups.get(head)
        if siblings is None or (packed := siblings.facts.pop(name, None)) is None:
            return
        self._count -= 1
        self._remove_child(siblings, parent_of(name, packed), name)
        self._packing.release(packed)
        if not siblings.facts:
            del self._groups[head]

    def watched_by(self, watching: Watching | None) -> None:
        """A watch begins, which brings the changes from now on."""
        self._watching = watching

    # For all readers.

    def get(self, key: bytes) -> Summary | None:
        """The facts of the last state that was handled and could be read; None for none."""
        packed = self._packed(key)
        return None if packed is None else self._packing.unpack(key.rpartition(b"/")[2], packed)

    def children(self, key: bytes) -> list[bytes]:
        """The keys with the same head whose objects name this key's as their parent, of any run.

        The parent itself need not be known. Traces of an action are next to the key that the
        action would have among the traces.
        """
        head, _, name = key.rpartition(b"/")
        siblings = self._groups.get(head)
        if siblings is None:
            return []
        return [head + b"/" + child for child in siblings.children.get(name, ())]

    def is_redelivery(self, key: bytes) -> bool:
        """Whether the watch that began has yet to deliver what is known of a key."""
        return key in self._again

    def expect(self, update: ActionUpdate, read_at: int) -> bool:
        """Note a state that a snapshot at a revision shows, if the watch has yet to deliver it.

        If the key is deleted, and a compaction takes its history, the next list ends it.

        Returns:
            Whether the key may exist: the watch has delivered no later revision without it.
        """
        key = update.key
        if self._watching is None or key in self._delivered or self._packed(key) is not None:
            return True
        for _, delivered in self._watching.progress(KeyRange.of_key(key)):
            if delivered > read_at:
                return False
            self._expected[key] = update
        return True

    def watched_up_to(self, key: bytes) -> int:
        """Every change of a key up to this revision was delivered; 0 if it is not watched."""
        return 0 if self._watching is None else self._watching.revision_of(key)

    def expected(self, key: bytes) -> ActionUpdate | None:
        """The state of a key that a snapshot showed, and the watch has yet to deliver."""
        return self._expected.get(key)

    def is_newest(self, key: bytes, revision: int, since: int) -> bool:
        """Whether a state surely was the newest of its key at revision ``since``.

        All changes up to then have come, of this key none is to be handled yet, and the last
        one that was handled is this.
        """
        if self._watching is None or key in self._delivered or key in self._again:
            return False
        packed = self._packed(key)
        return (
            packed is not None
            and revision_in(packed) == revision
            and self._watching.revision_of(key) >= since
        )

    # Deletions that are not done with.

    def add_deletion(self, update: ActionUpdate, *, concluded: bool = False) -> None:
        """A deletion needs a report by the leader; it is kept until that is done.

        Args:
            update: The update that reports it.
            concluded: It was concluded from a list: it may have been earlier than its revision.
        """
        key, revision = update.key, update.revision
        if concluded:
            self._concluded.add((key, revision))
        self._deletions.setdefault(key, {})[revision] = update
        self._by_revision.put((key, revision), revision)

    def forget_deletion(self, key: bytes, revision: int) -> None:
        """A deletion is done with, and so are those of the key before it."""
        deletions = self._deletions.get(key)
        if deletions is None:
            return
        for each in [each for each in deletions if each <= revision]:
            del deletions[each]
            self._by_revision.remove((key, each))
            self._concluded.discard((key, each))
        if not deletions:
            del self._deletions[key]

    def forget_deletions(self, revision: int) -> None:
        """All deletions up to a revision are done with."""
        while (first := self._by_revision.first()) is not None and first[1] <= revision:
            self.forget_deletion(first[0][0], first[1])

    def deletions(self) -> list[ActionUpdate]:
        """The updates that report deletions, those of a key in their order."""
        return [each for updates in self._deletions.values() for each in updates.values()]

    @property
    def oldest_deletion(self) -> int | None:
        """The lowest revision that one of these may have; None without one."""
        if self._concluded:
            return 1
        first = self._by_revision.first()
        return None if first is None else first[1]

    def _packed(self, key: bytes) -> bytes | None:
        head, _, name = key.rpartition(b"/")
        siblings = self._groups.get(head)
        return None if siblings is None else siblings.facts.get(name)

    def _add_child(self, siblings: _Siblings, parent: bytes, name: bytes) -> None:
        if not parent:
            return
        children = siblings.children.get(parent, ())
        if isinstance(children, dict):
            children[name] = None
        elif len(children) < _FEW:
            siblings.children[parent] = (*children, name)
        else:
            siblings.children[parent] = dict.fromkeys((*children, name))

    def _remove_child(self, siblings: _Siblings, parent: bytes, name: bytes) -> None:
        if not parent:
            return
        children = siblings.children.get(parent, ())
        if isinstance(children, dict):
            children.pop(name, None)
        else:
            children = tuple(each for each in children if each != name)
            siblings.children[parent] = children
        if not children:
            siblings.children.pop(parent, None)
