"""All runs, in memory, as lists show them: fed by a watch of their records.

A list reads no action and asks nothing of etcd. A run takes some hundred bytes: what it was asked
for and how it went in one struct, texts that many runs have in common once. Runs are kept in the
order of their creation, for all of them, for each project and domain, and for each task.

A record that cannot be read is left out; it is counted, and logged with its key.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final, NamedTuple, TypeAlias

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.runs.run_entry import RunEntry, Tasks, read_entry
from etcd_actions.storage.undecodable import Undecodable
from etcd_actions.watch import Change, ReflectorSettings, Replica, follow

PATIENCE: Final = 10.0
"""Seconds that a list waits for the index at a start."""

_PORTION: Final = 2_000
_MOST_TOLD: Final = 200
"""Runs that a watcher is told at once."""


class OfProject(NamedTuple):
    """The runs of a project and domain."""

    project: str
    domain: str


class OfTask(NamedTuple):
    """The runs of all versions of a task, by the task's own project and domain."""

    project: str
    domain: str
    name: str


Shelf: TypeAlias = OfProject | OfTask | None
"""Which runs are looked at; None for all there are."""

Place: TypeAlias = tuple[int, bytes]
"""Where an entry is in the order of creation: when it was created, and its key."""


def place_of(entry: RunEntry) -> Place:
    """See :data:`Place`."""
    return entry.created, entry.key


class _InOrder:
    """Entries in the order of their creation.

    They are sorted when they are read first: an index that is being loaded gets them by key.
    """

    __slots__ = ("_entries", "_is_sorted")

    def __init__(self) -> None:
        self._entries: list[RunEntry] = []
        self._is_sorted = False

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> list[RunEntry]:
        if not self._is_sorted:
            self._entries.sort()
            self._is_sorted = True
        return self._entries

    def add(self, entry: RunEntry) -> None:
        if self._is_sorted:
            insort(self._entries, entry, key=place_of)
        else:
            self._entries.append(entry)

    def replace(self, old: RunEntry, new: RunEntry) -> None:
        """Put an entry where an older state of it is, which has the same place."""
        entries = self.entries
        entries[bisect_left(entries, place_of(old), key=place_of)] = new

    def remove(self, entry: RunEntry) -> None:
        entries = self.entries
        del entries[bisect_left(entries, place_of(entry), key=place_of)]


class RunWatch:
    """What becomes of some runs, each in its latest state; made by :meth:`RunIndex.watch`."""

    def __init__(self) -> None:
        self._changed: dict[bytes, RunEntry] = {}
        self._more = trio.Event()

    async def receive(self) -> Sequence[RunEntry]:
        """Some that have changed, or are new; waits until there are any."""
        while not self._changed:
            self._more = trio.Event()
            await self._more.wait()
        first = list(self._changed)[:_MOST_TOLD]
        return [self._changed.pop(key) for key in first]

    def note(self, entry: RunEntry) -> None:
        """A run has changed."""
        self._changed[entry.key] = entry
        self._more.set()

    def drop(self, key: bytes) -> None:
        """A run is gone."""
        self._changed.pop(key, None)


class RunIndexStatistics(NamedTuple):
    """How many runs there are, and how many records cannot be read."""

    runs: int
    undecodable: int


class RunIndex:
    """See the module's text; made by :func:`open_run_index`."""

    def __init__(self) -> None:
        self._followed: Replica | None = None
        self._entries: dict[bytes, RunEntry] = {}
        self._shelves: dict[Shelf, _InOrder] = {}
        self._tasks = Tasks()
        self._watches: dict[Shelf, set[RunWatch]] = {}
        self._undecodable = Undecodable()

    def statistics(self) -> RunIndexStatistics:
        """See :class:`RunIndexStatistics`."""
        return RunIndexStatistics(len(self._entries), len(self._undecodable))

    def undecodable(self) -> dict[bytes, str]:
        """The keys of the records that cannot be read, and why."""
        return self._undecodable.reasons()

    async def ready(self, patience: float = PATIENCE) -> None:
        """Return once all runs are known.

        Raises:
            EtcdError: etcd does not show them, or they were not read in time.
        """
        assert self._followed is not None
        await self._followed.ready(patience)

    async def wait_for(self, revision: int, patience: float = 2.0) -> bool:
        """Return once a record that was written is in the index; False if it is not in time.

        Args:
            revision: Of the transaction that wrote it.
            patience: Seconds.
        """
        assert self._followed is not None
        return await self._followed.wait_for(revision, patience)

    def get(self, key: bytes) -> RunEntry | None:
        """The run whose record has this key."""
        return self._entries.get(key)

    def projects(self) -> Collection[str]:
        """The projects that have runs."""
        return {shelf.project for shelf in self._shelves if isinstance(shelf, OfProject)}

    def portions(
        self, shelf: Shelf, *, descending: bool, behind: Place | None = None, first: int = _PORTION
    ) -> Iterator[Sequence[RunEntry]]:
        """Runs in the order of their creation, some at a time.

        The index may change between two portions: a run that was there all the while is given
        exactly once.

        Args:
            shelf: Which runs.
            descending: Whether the newest comes first.
            behind: Where to begin; None for the first.
            first: How many the first portion has; a later one has as many as are cheap to look at.
        """
        size = first
        while (in_order := self._shelves.get(shelf)) is not None:
            entries = in_order.entries
            if descending:
                end = len(entries)
                if behind is not None:
                    end = bisect_left(entries, behind, key=place_of)
                portion = entries[max(0, end - size) : end][::-1]
            else:
                start = 0
                if behind is not None:
                    start = bisect_right(entries, behind, key=place_of)
                portion = entries[start : start + size]
            if not portion:
                return
            yield portion
            behind, size = place_of(portion[-1]), _PORTION

    def latest_of(self, task: OfTask) -> RunEntry | None:
        """The newest run of a task; None where there is none."""
        in_order = self._shelves.get(task)
        return None if in_order is None else in_order.entries[-1]

    def latest_of_versions(self, task: OfTask, versions: Collection[str]) -> dict[str, RunEntry]:
        """The newest run of each of some versions of a task, where there is one."""
        wanted, found = set(versions), dict[str, RunEntry]()
        in_order = self._shelves.get(task)
        for entry in () if in_order is None else reversed(in_order.entries):
            if not wanted:
                break
            if (version := entry.task.version) in wanted:
                wanted.remove(version)
                found[version] = entry
        return found

    @contextmanager
    def watch(self, shelf: Shelf) -> Iterator[RunWatch]:
        """Be told of runs that change, from now on. One that is deleted is not mentioned."""
        watch = RunWatch()
        self._watches.setdefault(shelf, set()).add(watch)
        try:
            yield watch
        finally:
            watches = self._watches[shelf]
            watches.remove(watch)
            if not watches:
                del self._watches[shelf]

    # What the watch brings.

    def take(self, change: Change, /) -> None:
        """Take the change of one record in."""
        key = change.key
        old = self._entries.get(key)
        new = None
        try:
            if not change.is_delete:
                new = read_entry(key, change.value, change.mod_revision, self._tasks)
            self._undecodable.forget(key)
        except BaseException as error:
            self._undecodable.add(key, str(error))
            raise
        finally:
            self._put(key, old, new)

    def forget_all(self) -> None:
        """All records are going to be read anew."""
        self._entries.clear()
        self._shelves.clear()
        self._undecodable.begin_again()

    def _put(self, key: bytes, old: RunEntry | None, new: RunEntry | None) -> None:
        if new is not None:
            self._entries[key] = new
        elif old is not None:
            del self._entries[key]
        before = () if old is None else _shelves_of(old)
        after = () if new is None else _shelves_of(new)
        in_place = old is not None and new is not None and place_of(old) == place_of(new)
        for shelf in before:
            in_order = self._shelves[shelf]
            if in_place and shelf in after:
                assert old is not None
                assert new is not None
                in_order.replace(old, new)
                continue
            assert old is not None
            in_order.remove(old)
            if not in_order:
                del self._shelves[shelf]
        for shelf in after:
            assert new is not None
            if not (in_place and shelf in before):
                self._shelves.setdefault(shelf, _InOrder()).add(new)
        self._tell(key, old, new)

    def _tell(self, key: bytes, old: RunEntry | None, new: RunEntry | None) -> None:
        if not self._watches:
            return
        if new is None:
            for shelf in () if old is None else _shelves_of(old):
                for watch in self._watches.get(shelf, ()):
                    watch.drop(key)
            return
        for shelf in _shelves_of(new):
            for watch in self._watches.get(shelf, ()):
                watch.note(new)


def _shelves_of(entry: RunEntry) -> tuple[Shelf, Shelf, Shelf]:
    task = entry.task
    return (
        None,
        OfProject(entry.project, entry.domain),
        OfTask(task.project, task.domain, task.name),
    )


@asynccontextmanager
async def open_run_index(
    etcd: Etcd,
    keys: Keyspace,
    *,
    settings: ReflectorSettings | None = None,
    containment: Containment | None = None,
) -> AsyncIterator[RunIndex]:
    """Keep an index of all runs below a prefix, for as long as the context lasts.

    Args:
        etcd: The connection; it must live longer.
        keys: Where the records are.
        settings: How they are watched.
        containment: The boundaries of the process.
    """
    index = RunIndex()
    async with follow(
        etcd,
        keys.below(keys.runs),
        index,
        name="runs",
        settings=settings or ReflectorSettings(),
        containment=containment or Containment(),
    ) as followed:
        index._followed = followed
        yield index
