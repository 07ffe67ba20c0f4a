"""The index: the facts of each key, once in this process. All parts read it, and none copies it.

For each key it has the packed facts that a report of its deletion needs, and the revision that was
delivered last. It also has the children of each action, and the deletions that are not reported
yet. A key takes less than 250 bytes. No loop over all keys runs while events are handled, the
checkpoint is saved or metrics are read.

The reflector compares its lists with the index, as its
:class:`~etcd_actions.watch.delivered.DeliveredRevisions`. The handler notes each change in the turn
in which it accepts it: a change that was not noted is delivered again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from etcd_actions._internal.keyed_heap import KeyedHeap
from etcd_actions.etcd.api import KeyRange
from etcd_actions.follow.packing import (
    Packing,
    have_one_parent,
    parent_name,
    parent_of,
    phase_in,
    revision_in,
    run_of,
)
from etcd_actions.follow.run_counts import RunCount
from etcd_actions.model import ActionUpdate, Summary
from etcd_actions.watch import Change

_FEW: Final = 32
"""The most children that are kept in a tuple; more are in a dict."""

_Children = tuple[bytes, ...] | dict[bytes, None]


class Watching(Protocol):
    """The delivered revisions of a watch, as :class:`~etcd_actions.watch.Reflector` has them."""

    def revision_of(self, key: bytes, /) -> int:
        """Every change of a key up to it was delivered; 0 if the key is not watched."""

    def progress(self, keys: KeyRange, /) -> list[tuple[KeyRange, int]]:
        """Adjacent parts of a range, with the revision up to which each was delivered."""


class _Siblings:
    """The facts of the keys that differ only after the last slash, by that last part."""

    __slots__ = ("children", "facts")

    def __init__(self) -> None:
        self.facts: dict[bytes, bytes] = {}
        # By the parent's name. The parent itself need not be in ``facts``.
        self.children: dict[bytes, _Children] = {}


class Index:
    """The facts of each key, its children and its unreported deletions. No method waits."""

    def __init__(self) -> None:
        self._groups: defaultdict[bytes, _Siblings] = defaultdict(_Siblings)
        self._packing = Packing()
        self._count = 0
        # By pool, the actions that are not started; a pool without one is absent.
        self._queued: Counter[str] = Counter()
        # By key, the revision of an accepted change whose facts are not here: it is put off, or
        # cannot be decoded; 0 for a deletion.
        self._without_facts: dict[bytes, int] = {}
        # Keys that the present watch has yet to deliver again.
        self._to_redeliver: set[bytes] = set()
        # By key, a state in a subscriber's snapshot that the watch has yet to deliver.
        self._expected: dict[bytes, ActionUpdate] = {}
        # By key, the updates that report its deletions, by their revisions.
        self._deletions: dict[bytes, dict[int, ActionUpdate]] = {}
        self._by_revision: KeyedHeap[tuple[bytes, int], int] = KeyedHeap()
        # The synthesised ones of these deletions: their real revision is not known.
        self._synthesised: set[tuple[bytes, int]] = set()
        self._watching: Watching | None = None
        # The counts that readers need, by the start of the keys and the run.
        self._run_counts: dict[tuple[bytes, str], RunCount] = {}

    # For the reflector.

    def __len__(self) -> int:
        return sum(1 for _ in self) if self._without_facts else self._count

    def __iter__(self) -> Iterator[bytes]:
        """The keys that were delivered and not deleted since."""
        for head, siblings in list(self._groups.items()):
            for name in list(siblings.facts):
                key = head + b"/" + name
                if self._without_facts.get(key) != 0:
                    yield key
        for key, revision in list(self._without_facts.items()):
            if revision and self._packed(key) is None:
                yield key

    def revision_of(self, key: bytes, /) -> int:
        """The revision that was delivered last, 0 for none; negative until it is redelivered."""
        revision = self._without_facts.get(key)
        if revision is None:
            packed = self._packed(key)
            revision = 0 if packed is None else revision_in(packed)
        return -revision if self._to_redeliver and key in self._to_redeliver else revision

    def expected_in(self, keys: KeyRange, revision: int, /) -> list[bytes]:
        """See :class:`~etcd_actions.watch.delivered.DeliveredRevisions`."""
        expected = self._expected.items()
        return [key for key, update in expected if key in keys and update.revision <= revision]

    def redeliver_all(self) -> None:
        """See :class:`~etcd_actions.watch.delivered.DeliveredRevisions`.

        A change that was put off stays, and counts as delivered.
        """
        self._to_redeliver = set(self)

    # For the parts that accept changes.

    def note(self, change: Change) -> None:
        """Note that a change was accepted, without its facts: it is put off, or undecodable."""
        key, version = change.kv.key, change.kv.version
        if version:
            self._without_facts[key] = change.kv.mod_revision
        elif self._packed(key) is None:
            self._without_facts.pop(key, None)
        else:
            self._without_facts[key] = 0
        self._to_redeliver.discard(key)
        if version:
            self._expected.pop(key, None)

    def put(self, key: bytes, summary: Summary) -> None:
        """Note the facts of a state that was handled, and is the key's last accepted one."""
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
            self._count_queued(before, -1)
            self._packing.release(before)
        self._count_queued(packed, 1)
        if self._run_counts:
            self._note_in_counts(key, before, summary)
        if self._without_facts:
            self._without_facts.pop(key, None)
        if self._to_redeliver:
            self._to_redeliver.discard(key)
        if self._expected:
            self._expected.pop(key, None)

    def remove(self, key: bytes) -> None:
        """Note that a deletion was handled."""
        if self._expected:
            self._expected.pop(key, None)
        if self._without_facts:
            self._without_facts.pop(key, None)
        if self._to_redeliver:
            self._to_redeliver.discard(key)
        head, _, name = key.rpartition(b"/")
        siblings = self._groups.get(head)
        if siblings is None or (packed := siblings.facts.pop(name, None)) is None:
            return
        self._count -= 1
        self._remove_child(siblings, parent_of(name, packed), name)
        self._count_queued(packed, -1)
        if self._run_counts:
            self._note_in_counts(key, packed, None)
        self._packing.release(packed)
        if not siblings.facts:
            del self._groups[head]

    def watched_by(self, watching: Watching | None) -> None:
        """Note the watch that delivers the changes from now on."""
        self._watching = watching

    # For all readers.

    def get(self, key: bytes) -> Summary | None:
        """The facts of the last state that was handled and decoded; None without one."""
        packed = self._packed(key)
        return None if packed is None else self._packing.unpack(key.rpartition(b"/")[2], packed)

    def queued(self) -> dict[str, int]:
        """The number of actions that are not started, by pool; the empty name is the default."""
        return dict(self._queued)

    def children(self, key: bytes) -> list[bytes]:
        """The keys of the children of a key's object, below the same prefix and of any run.

        The parent itself need not be in the index. The traces of an action are the children of the
        key that the action would have among the traces.
        """
        head, _, name = key.rpartition(b"/")
        siblings = self._groups.get(head)
        if siblings is None:
            return []
        return [head + b"/" + child for child in siblings.children.get(name, ())]

    def has_ended(self, key: bytes, run: str) -> bool | None:
        """Whether an action of a run is terminal; None if the run has no such action."""
        packed = self._packed(key)
        if packed is None or run_of(key.rpartition(b"/")[2], packed) != run:
            return None
        return phase_in(packed).is_terminal

    def count(self, run: str, heads: Sequence[bytes]) -> RunCount:
        """Count the actions of a run from now on; see :class:`RunCount`.

        Call :meth:`stop_counting` afterwards.

        Args:
            run: The name of the run.
            heads: The keys of its objects and of its traces, up to the last slash.
        """
        count = self._run_counts.get((heads[0], run))
        if count is None:
            count = RunCount(run, heads)
            self._run_counts.update(((head, run), count) for head in count.heads)
        count.users += 1
        return count

    def stop_counting(self, count: RunCount) -> None:
        """Note that one reader less needs a count."""
        count.users -= 1
        if not count.users:
            for head in count.heads:
                del self._run_counts[head, count.run]

    def is_redelivery(self, key: bytes) -> bool:
        """Whether the watch has yet to deliver a key again: its state may be older than in etcd."""
        return key in self._to_redeliver

    def expect(self, update: ActionUpdate, read_at: int) -> bool:
        """Note a state of a subscriber's snapshot, if the watch has yet to deliver it.

        So a deletion of the key is delivered to the subscriber, also if only a list shows it.

        Args:
            update: The state.
            read_at: The revision of the snapshot.

        Returns:
            Whether the key may exist. It does not if the watch has delivered all changes up to a
            later revision, and the index does not have the key.
        """
        key = update.key
        if self._watching is None or key in self._without_facts or self._packed(key) is not None:
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
        """The state of a key in a subscriber's snapshot that the watch has yet to deliver."""
        return self._expected.get(key)

    def is_newest(self, key: bytes, revision: int, since: int) -> bool:
        """Whether a key's state of ``revision`` surely was its newest one at ``since``.

        It was if all changes up to ``since`` were delivered, no change of the key is put off, and
        the last one that was handled has this revision.
        """
        if self._watching is None or key in self._without_facts or key in self._to_redeliver:
            return False
        packed = self._packed(key)
        return (
            packed is not None
            and revision_in(packed) == revision
            and self._watching.revision_of(key) >= since
        )

    # Deletions that are not reported yet.

    def add_deletion(self, update: ActionUpdate, *, synthesised: bool = False) -> None:
        """Keep a deletion until the leader has reported it.

        Args:
            update: The update that reports it.
            synthesised: Whether it was not received, but synthesised after a list. Then the real
                one may have a lower revision.
        """
        key, revision = update.key, update.revision
        if synthesised:
            self._synthesised.add((key, revision))
        self._deletions.setdefault(key, {})[revision] = update
        self._by_revision.put((key, revision), revision)

    def forget_deletion(self, key: bytes, revision: int) -> None:
        """Forget the deletions of a key up to a revision: they are reported."""
        deletions = self._deletions.get(key)
        if deletions is None:
            return
        for each in [each for each in deletions if each <= revision]:
            del deletions[each]
            self._by_revision.remove((key, each))
            self._synthesised.discard((key, each))
        if not deletions:
            del self._deletions[key]

    def forget_deletions(self, revision: int) -> None:
        """Forget the deletions of all keys up to a revision: they are reported."""
        while (first := self._by_revision.first()) is not None and first[1] <= revision:
            self.forget_deletion(first[0][0], first[1])

    def deletions(self) -> list[ActionUpdate]:
        """The updates that report deletions; those of one key in the order of their revisions."""
        return [each for updates in self._deletions.values() for each in updates.values()]

    @property
    def oldest_deletion(self) -> int | None:
        """The lowest possible revision of an unreported deletion; None without one."""
        if self._synthesised:
            return 1
        first = self._by_revision.first()
        return None if first is None else first[1]

    def _count_queued(self, packed: bytes, by: int) -> None:
        pool = self._packing.queued_pool(packed)
        if pool is not None:
            self._queued[pool] += by
            if not self._queued[pool]:
                del self._queued[pool]

    def _note_in_counts(self, key: bytes, before: bytes | None, summary: Summary | None) -> None:
        """Note a change of a key, with its former facts, in the counts of its runs."""
        head, _, name = key.rpartition(b"/")
        after = None if summary is None else summary.run
        if before is not None and (run := run_of(name, before)) != after:
            # Two runs can have one key: r-1 with the action a0, and r with 1-a0.
            count = self._run_counts.get((head, run))
            if count is not None:
                count.remove(key)
        if summary is not None and (count := self._run_counts.get((head, summary.run))) is not None:
            count.put(key, summary.phase.is_terminal)

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
