"""All runs, in memory, as lists show them: fed by a watch of their records.

A list makes no request to etcd. A run takes some hundred bytes: one struct; texts that many runs
have in common are stored once. Runs are in the order of their creation, for all of them, for each
project and domain, and for each task.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Final, NamedTuple, TypeAlias

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.runs.run_entry import RunEntry, Tasks, read_entry
from etcd_actions.storage.prefix_index import PrefixIndex, keep_index
from etcd_actions.watch import Change, ReflectorSettings

_PORTION: Final = 2_000
_MOST_RECEIVED: Final = 200
"""Runs that a watch returns at once."""


class OfProject(NamedTuple):
    """The runs of a project and domain."""

    project: str
    domain: str


class OfTask(NamedTuple):
    """The runs of all versions of a task, by the task's own project and domain."""

    project: str
    domain: str
    name: str


RunScope: TypeAlias = OfProject | OfTask | None
"""The runs that a list reads; None for all."""

Place: TypeAlias = tuple[int, bytes]
"""The sort key of the order of creation: the time, and the record's key."""


def _place_of(entry: RunEntry) -> Place:
    return entry.created, entry.key


class _InOrder:
    """Entries in the order of their creation; sorted at the first read, since a list is by key."""

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
            insort(self._entries, entry, key=_place_of)
        else:
            self._entries.append(entry)

    def replace(self, old: RunEntry, new: RunEntry) -> None:
        """Replace an older state of an entry, which has the same place."""
        entries = self.entries
        entries[bisect_left(entries, _place_of(old), key=_place_of)] = new

    def remove(self, entry: RunEntry) -> None:
        entries = self.entries
        del entries[bisect_left(entries, _place_of(entry), key=_place_of)]


class RunWatch:
    """The changes of some runs, conflated; created by :meth:`RunIndex.watch`."""

    def __init__(self) -> None:
        self._changed: dict[bytes, RunEntry] = {}
        self._more = trio.Event()

    async def receive(self) -> Sequence[RunEntry]:
        """Wait for runs that have changed or are new; cancelled, none is lost."""
        while not self._changed:
            self._more = trio.Event()
            await self._more.wait()
        first = list(self._changed)[:_MOST_RECEIVED]
        return [self._changed.pop(key) for key in first]

    def note(self, entry: RunEntry) -> None:
        """Add a changed run."""
        self._changed[entry.key] = entry
        self._more.set()

    def drop(self, key: bytes) -> None:
        """Remove a deleted run."""
        self._changed.pop(key, None)


class RunIndexStatistics(NamedTuple):
    """The numbers of runs, and of records that cannot be decoded."""

    runs: int
    undecodable: int


class RunIndex(PrefixIndex[RunEntry]):
    """The index of all runs; created by :func:`open_run_index`."""

    def __init__(self) -> None:
        super().__init__()
        self._entries: dict[bytes, RunEntry] = {}
        self._by_scope: dict[RunScope, _InOrder] = {}
        self._tasks = Tasks()
        self._watches: dict[RunScope, set[RunWatch]] = {}

    def statistics(self) -> RunIndexStatistics:
        """The present counts."""
        return RunIndexStatistics(len(self._entries), len(self._undecodable))

    def get(self, key: bytes) -> RunEntry | None:
        """The run whose record has this key."""
        return self._entries.get(key)

    def projects(self) -> Collection[str]:
        """The projects that have runs."""
        return {scope.project for scope in self._by_scope if isinstance(scope, OfProject)}

    def portions(
        self,
        scope: RunScope,
        *,
        descending: bool,
        after: Place | None = None,
        first: int = _PORTION,
    ) -> Iterator[Sequence[RunEntry]]:
        """Runs in the order of their creation, some at a time.

        The index may change between two portions: a run that exists all the time is yielded
        exactly once.

        Args:
            scope: The runs.
            descending: Whether the newest is first.
            after: The sort key after which the first portion begins; None for the beginning.
            first: The size of the first portion; later ones are large.
        """
        size = first
        while (in_order := self._by_scope.get(scope)) is not None:
            entries = in_order.entries
            if descending:
                end = len(entries)
                if after is not None:
                    end = bisect_left(entries, after, key=_place_of)
                portion = entries[max(0, end - size) : end][::-1]
            else:
                start = 0
                if after is not None:
                    start = bisect_right(entries, after, key=_place_of)
                portion = entries[start : start + size]
            if not portion:
                return
            yield portion
            after, size = _place_of(portion[-1]), _PORTION

    def latest_of(self, task: OfTask) -> RunEntry | None:
        """The newest run of a task; None without one."""
        in_order = self._by_scope.get(task)
        return None if in_order is None else in_order.entries[-1]

    def latest_of_versions(self, task: OfTask, versions: Collection[str]) -> dict[str, RunEntry]:
        """The newest run of each of some versions of a task that have one."""
        missing, found = set(versions), dict[str, RunEntry]()
        in_order = self._by_scope.get(task)
        for entry in () if in_order is None else reversed(in_order.entries):
            if not missing:
                break
            if (version := entry.task.version) in missing:
                missing.remove(version)
                found[version] = entry
        return found

    @contextmanager
    def watch(self, scope: RunScope) -> Iterator[RunWatch]:
        """Watch the runs that change from now on; deleted ones are not reported."""
        watch = RunWatch()
        self._watches.setdefault(scope, set()).add(watch)
        try:
            yield watch
        finally:
            self._note_use()
            watches = self._watches[scope]
            watches.remove(watch)
            if not watches:
                del self._watches[scope]

    def has_readers(self) -> bool:
        """See :meth:`PrefixIndex.has_readers`."""
        return bool(self._watches)

    def _decode(self, change: Change) -> RunEntry:
        return read_entry(change.key, change.value, change.mod_revision, self._tasks)

    def _clear(self) -> None:
        self._entries.clear()
        self._by_scope.clear()

    def _put(self, key: bytes, record: RunEntry | None) -> None:
        old = self._entries.pop(key, None)
        if record is not None:
            self._entries[key] = record
        before = () if old is None else _scopes_of(old)
        after = () if record is None else _scopes_of(record)
        in_place = old is not None and record is not None and _place_of(old) == _place_of(record)
        for scope in before:
            assert old is not None
            in_order = self._by_scope[scope]
            if in_place and scope in after:
                assert record is not None
                in_order.replace(old, record)
                continue
            in_order.remove(old)
            if not in_order:
                del self._by_scope[scope]
        for scope in after:
            assert record is not None
            if not (in_place and scope in before):
                self._by_scope.setdefault(scope, _InOrder()).add(record)
        for scope in before if record is None else after:
            for watch in self._watches.get(scope, ()):
                if record is None:
                    watch.drop(key)
                else:
                    watch.note(record)


def _scopes_of(entry: RunEntry) -> tuple[RunScope, ...]:
    task = entry.task
    return (
        None,
        OfProject(entry.project, entry.domain),
        OfTask(task.project, task.domain, task.name),
    )


def open_run_index(
    etcd: Etcd,
    keys: Keyspace,
    *,
    settings: ReflectorSettings | None = None,
    containment: Containment | None = None,
    on_demand: bool = False,
) -> AbstractAsyncContextManager[RunIndex]:
    """Keep an index of all runs; see :func:`etcd_actions.storage.prefix_index.keep_index`."""
    return keep_index(
        RunIndex(),
        etcd,
        keys.below(keys.runs),
        name="runs",
        settings=settings,
        containment=containment,
        on_demand=on_demand,
    )
