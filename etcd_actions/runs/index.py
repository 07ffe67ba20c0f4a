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
from datetime import datetime
from sys import intern
from typing import Annotated, Final, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import msgspec
import trio

from etcd_actions.containment import Containment
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.quoting import quoted
from etcd_actions.runs.filters import microseconds, moment
from etcd_actions.runs.record import FORM, Failure, RunRecord, RunStatus, TaskName
from etcd_actions.undecodable import Undecodable
from etcd_actions.watch import Change, Followed, ReflectorSettings, follow

PATIENCE: Final = 10.0
"""Seconds that a list waits for the index at a start."""

_PORTION: Final = 2_000
_MOST_TOLD: Final = 200
"""Runs that a watcher is told at once."""


_Number = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""What Flyte's messages have room for."""


class _FailureKind(msgspec.Struct, frozen=True):
    kind: str = ""


class _Status(msgspec.Struct, frozen=True, kw_only=True):
    phase: _Number = 0
    attempts: _Number = 0
    cache_status: _Number = 0
    started: datetime | None = None
    ended: datetime | None = None
    updated: datetime | None = None
    failure: _FailureKind | None = None


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """A record without what no list shows, which is skipped instead of read."""

    form: int = 1
    org: str = ""
    project: str
    domain: str
    name: str
    task: TaskName = TaskName()
    short_name: str = ""
    environment: str = ""
    task_type: str = ""
    source: _Number = 0
    created: datetime
    creator: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    recovered_from: str = ""
    status: _Status | None = None


_decoder: Final = msgspec.json.Decoder(_Head)
_NO_STATUS: Final = _Status()


class Task(msgspec.Struct, frozen=True, weakref=True):
    """A version of a task, as its runs show it; one for all of them."""

    project: str
    domain: str
    name: str
    version: str
    org: str
    short_name: str
    environment: str
    type: str


class RunEntry(msgspec.Struct, frozen=True, gc=False, order=True):
    """A run. Times are microseconds since 1970.

    Entries are in order by their creation and key: no two have the same key.

    Attributes:
        created: When it was created.
        key: Of its record.
        task: Which task its root is.
        org: As the client that created it names its organisation.
        project: Of the run.
        domain: Of the run.
        source: Flyte's number of who asked for it.
        creator: Whose token asked for it.
        labels: Keys and values.
        recovered_from: The run whose successes it takes over.
        revision: Of the record.
        phase: Flyte's number of it; 0 until it was recorded.
        attempts: Of the root.
        cache_status: Flyte's number of it.
        started: When it left the queue.
        ended: When it was over.
        updated: When its status was recorded last; else when it was created.
        failed_by: The kind of the failure: USER, SYSTEM, or empty.
    """

    created: int
    key: bytes
    task: Task
    org: str
    project: str
    domain: str
    source: int
    creator: str
    labels: tuple[tuple[str, str], ...]
    recovered_from: str
    revision: int
    phase: int
    attempts: int
    cache_status: int
    started: int | None
    ended: int | None
    updated: int
    failed_by: str

    @property
    def name(self) -> str:
        """Of the run."""
        return self.key.rpartition(b"/")[2].decode()

    def label(self, key: str) -> str | None:
        """The value of a label; None without it."""
        for name, value in self.labels:
            if name == key:
                return value
        return None

    def record(self) -> RunRecord:
        """Its record without what a list does not show."""
        task = self.task
        status = None
        if self.phase:
            status = RunStatus(
                phase=self.phase,
                attempts=self.attempts,
                cache_status=self.cache_status,
                started=None if self.started is None else moment(self.started),
                ended=None if self.ended is None else moment(self.ended),
                updated=moment(self.updated),
                failure=Failure(kind=self.failed_by) if self.failed_by else None,
            )
        return RunRecord(
            org=self.org,
            project=self.project,
            domain=self.domain,
            name=self.name,
            task=TaskName(task.org, task.project, task.domain, task.name, task.version),
            short_name=task.short_name,
            environment=task.environment,
            task_type=task.type,
            source=self.source,
            created=moment(self.created),
            creator=self.creator,
            labels=dict(self.labels),
            recovered_from=self.recovered_from,
            status=status,
        )


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
        self._followed: Followed | None = None
        self._entries: dict[bytes, RunEntry] = {}
        self._shelves: dict[Shelf, _InOrder] = {}
        self._tasks: WeakValueDictionary[tuple[str, ...], Task] = WeakValueDictionary()
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
                new = self._entry(key, change.value or b"", change.mod_revision)
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

    def _entry(self, key: bytes, value: bytes, revision: int) -> RunEntry:
        head = _read(value)
        if key.rpartition(b"/")[2] != head.name.encode():
            raise DecodeError(f"it is the record of another run: {quoted(head.name)}")
        status, task = head.status or _NO_STATUS, head.task
        created = _time(head.created)
        started, ended = _time_or_none(status.started), _time_or_none(status.ended)
        updated = _time_or_none(status.updated)
        if updated is None:
            updated = max(created, started or created, ended or created)
        return RunEntry(
            created,
            key,
            self._task(
                task.project or head.project,
                task.domain or head.domain,
                task.name,
                task.version,
                task.org,
                head.short_name,
                head.environment,
                head.task_type,
            ),
            intern(head.org),
            intern(head.project),
            intern(head.domain),
            head.source,
            intern(head.creator),
            tuple((intern(name), intern(label)) for name, label in head.labels.items()),
            intern(head.recovered_from),
            revision,
            status.phase,
            status.attempts,
            status.cache_status,
            started,
            ended,
            updated,
            intern(status.failure.kind) if status.failure else "",
        )

    def _task(self, *parts: str) -> Task:
        task = self._tasks.get(parts)
        if task is None:
            # The same texts in the key and in the value.
            parts = tuple(map(intern, parts))
            task = self._tasks[parts] = Task(*parts)
        return task


def _shelves_of(entry: RunEntry) -> tuple[Shelf, Shelf, Shelf]:
    task = entry.task
    return (
        None,
        OfProject(entry.project, entry.domain),
        OfTask(task.project, task.domain, task.name),
    )


def _read(value: bytes) -> _Head:
    try:
        head = _decoder.decode(value)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DecodeError(f"no record of a run: {error}") from None
    if head.form != FORM:
        raise DecodeError(f"a record of form {head.form}, not {FORM}")
    return head


def _time(time: datetime) -> int:
    if time.tzinfo is None:
        raise DecodeError(f"a time has no zone: {time}")
    return microseconds(time)


def _time_or_none(time: datetime | None) -> int | None:
    return None if time is None else _time(time)


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
