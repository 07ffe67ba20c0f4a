"""The index of runs, fed by a real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from etcd_actions._internal.containment import Containment
from etcd_actions.errors import PermissionDenied, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, WatchStream
from etcd_actions.model import Keyspace
from etcd_actions.runs.run_entry import RunEntry
from etcd_actions.runs.run_index import OfProject, OfTask, RunIndex, RunScope, open_run_index
from etcd_actions.runs.run_record import encode
from etcd_actions.watch import demand
from tests.support.runs import FedIndex, key_of, record, status
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

P = OfProject("p", "d")


@pytest.fixture
def keys(prefix: bytes) -> Keyspace:
    return Keyspace(prefix)


@pytest.fixture
def containment() -> Containment:
    return Containment()


@pytest.fixture
async def index(etcd: Etcd, keys: Keyspace, containment: Containment) -> AsyncIterator[RunIndex]:
    async with open_run_index(etcd, keys, containment=containment) as index:
        yield index


def names(index: RunIndex, scope: RunScope, *, descending: bool = True) -> list[str]:
    portions = index.portions(scope, descending=descending, first=2)
    return [entry.name for portion in portions for entry in portion]


@pytest.mark.network
async def test_runs_are_in_the_order_of_their_creation(
    etcd: Etcd, keys: Keyspace, index: RunIndex
) -> None:
    runs = [
        record("old", at=1),
        record("new", at=3, task="env.other", version="v2"),
        record("middle", at=2, project="q"),
        record("alike", at=3),
    ]
    revision = 0
    for run in runs:
        revision = (await etcd.put(key_of(keys, run), encode(run))).revision
    assert await index.wait_for(revision)
    assert names(index, None) == ["new", "alike", "middle", "old"]
    assert names(index, None, descending=False) == ["old", "middle", "alike", "new"]
    assert names(index, P) == ["new", "alike", "old"]
    assert names(index, OfTask("p", "d", "env.main")) == ["alike", "old"]
    assert names(index, OfProject("p", "other")) == []
    # What is listed shows all that was stored, but for what no list shows.
    (entry,) = [each for each in entries(index) if each.name == "middle"]
    shown = encode(entry.record())
    for left_out in (b"run_spec", b"input_uri", b"inputs_hash"):
        assert left_out not in shown
    assert entry.record().task == runs[2].task


def entries(index: RunIndex) -> Sequence[RunEntry]:
    return [each for portion in index.portions(None, descending=True) for each in portion]


async def test_a_status_replaces_the_one_before_and_a_deletion_removes(
    etcd: Etcd, keys: Keyspace, index: RunIndex
) -> None:
    run, other = record("a", at=1), record("b", at=1)
    await etcd.put(key_of(keys, run), encode(run))
    await etcd.put(key_of(keys, other), encode(other))
    ended = record("a", at=1, status=status(5, ended=9, attempts=2))
    revision = (await etcd.put(key_of(keys, run), encode(ended))).revision
    assert await index.wait_for(revision)
    assert names(index, P) == ["b", "a"]
    entry = index.get(key_of(keys, run))
    assert entry is not None
    assert (entry.phase, entry.attempts, entry.revision) == (5, 2, revision)
    assert entry.updated == entry.ended
    revision = (await etcd.delete(KeyRange.of_key(key_of(keys, run)))).revision
    assert await index.wait_for(revision)
    assert names(index, P) == ["b"]
    assert index.statistics() == (1, 0)


async def test_what_was_there_before_is_listed_at_the_start(etcd: Etcd, keys: Keyspace) -> None:
    for number in (2, 0, 1):
        run = record(f"r{number}", at=number)
        await etcd.put(key_of(keys, run), encode(run))
    async with open_run_index(etcd, keys) as index:
        await index.ready()
        assert names(index, P) == ["r2", "r1", "r0"]


async def test_a_list_during_a_start_waits(etcd: Etcd, keys: Keyspace) -> None:
    class Held:
        """An etcd whose lists wait for leave."""

        def __init__(self) -> None:
            self.leave = trio.Event()

        def __getattr__(self, name: str) -> object:
            return getattr(etcd, name)

        async def range(self, *args: object, **kwargs: object) -> object:
            await self.leave.wait()
            return await etcd.range(*args, **kwargs)  # type: ignore[arg-type]

    held = Held()
    async with open_run_index(held, keys) as index:  # type: ignore[arg-type]
        with pytest.raises(Unavailable, match=r"^runs: they are still being read"):
            await index.ready(0.01)
        assert not await index.wait_for(1, 0.01)
        held.leave.set()
        await index.ready()


class Counted:
    """An etcd that counts the watches that were opened, and that are open."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.opened = 0
        self.open = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._etcd, name)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[WatchStream]:
        self.opened += 1
        self.open += 1
        try:
            async with self._etcd.watch() as stream:
                yield stream
        finally:
            self.open -= 1


async def test_on_demand_runs_are_watched_while_that_is_worth_it(
    etcd: Etcd, keys: Keyspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reader opens it; without readers it is closed after as many changes as keys."""
    monkeypatch.setattr(demand, "LEAST_IDLE", 0.0)
    counted = Counted(etcd)

    async def change(count: int) -> None:
        for number in range(count):
            run = record("r1", at=1, status=status(4, attempts=number + 1))
            await etcd.put(key_of(keys, run), encode(run))

    for name in ("r1", "r2", "r3"):
        await etcd.put(key_of(keys, record(name)), encode(record(name)))
    async with open_run_index(counted, keys, on_demand=True) as index:  # type: ignore[arg-type]
        await trio.testing.wait_all_tasks_blocked()
        assert (counted.opened, index.is_loaded, index.statistics().runs) == (0, False, 0)
        await index.ready()
        assert index.statistics().runs == 3
        await eventually(lambda: counted.open == 1)
        await change(2)
        await eventually(lambda: names(index, P) == ["r1", "r3", "r2"])
        with index.watch(None) as watch:
            await change(5)
            entry = None
            while entry is None or entry.attempts < 5:
                (entry,) = await watch.receive()
        assert index.is_loaded
        await change(3)
        await eventually(lambda: not counted.open)
        assert (index.is_loaded, index.statistics().runs) == (False, 0)
        # What changed in the meantime is in the next list.
        await etcd.delete(KeyRange.of_key(key_of(keys, record("r2"))))
        await index.ready()
        assert names(index, P) == ["r1", "r3"]
        await eventually(lambda: counted.open == 1)
        assert counted.opened == 2


async def test_without_demand_runs_are_watched_from_the_start(etcd: Etcd, keys: Keyspace) -> None:
    counted = Counted(etcd)
    async with open_run_index(counted, keys) as index:  # type: ignore[arg-type]
        await eventually(lambda: index.is_loaded)


BAD = {
    "no JSON": b"\xff",
    "a later form": encode(record("bad"))
    .replace(b'"form":1,', b"")
    .replace(b"{", b'{"form":2,', 1),
    "another run's": encode(record("other")),
    "an impossible phase": encode(record("bad", status=status(2**40))),
    "no zone": encode(record("bad")).replace(b"00:00:00Z", b"00:00:00"),
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
async def test_a_record_that_cannot_be_read_is_left_out(
    etcd: Etcd, keys: Keyspace, index: RunIndex, containment: Containment, value: bytes
) -> None:
    bad, good = record("bad"), record("good")
    await etcd.put(key_of(keys, bad), encode(bad))
    with capture_logs() as logs:
        await etcd.put(key_of(keys, bad), value)
        revision = (await etcd.put(key_of(keys, good), encode(good))).revision
        assert await index.wait_for(revision)
    assert names(index, None) == ["good"]
    assert list(index.undecodable()) == [key_of(keys, bad)]
    assert containment.failures == {"stored_record": 1}
    assert containment.parked == ()
    (line,) = [each for each in logs if each["event"] == "unit_failed"]
    assert line["identity"] == key_of(keys, bad).decode()
    revision = (await etcd.put(key_of(keys, bad), encode(bad))).revision
    assert await index.wait_for(revision)
    assert index.statistics() == (2, 0)


async def test_a_watch_has_the_latest_states(etcd: Etcd, keys: Keyspace, index: RunIndex) -> None:
    await index.ready()
    with index.watch(P) as watch, index.watch(OfProject("q", "d")) as other:
        revision = 0
        for phase in (1, 4, 5):
            run = record("a", status=status(phase))
            revision = (await etcd.put(key_of(keys, run), encode(run))).revision
        gone = record("gone")
        await etcd.put(key_of(keys, gone), encode(gone))
        revision = (await etcd.delete(KeyRange.of_key(key_of(keys, gone)))).revision
        assert await index.wait_for(revision)
        assert [(each.name, each.phase) for each in await watch.receive()] == [("a", 5)]
        with trio.move_on_after(0.01) as scope:
            await other.receive()
        assert scope.cancelled_caught


async def test_an_index_goes_on_when_its_watch_fails(
    etcd: Etcd, keys: Keyspace, containment: Containment
) -> None:
    """A refused list is tried again, and meanwhile readers are told."""

    class Refusing:
        def __init__(self) -> None:
            self.refuses = True

        def __getattr__(self, name: str) -> object:
            return getattr(etcd, name)

        async def range(self, *args: object, **kwargs: object) -> object:
            if self.refuses:
                raise PermissionDenied("no")
            return await etcd.range(*args, **kwargs)  # type: ignore[arg-type]

    refusing = Refusing()
    async with open_run_index(refusing, keys, containment=containment) as index:  # type: ignore[arg-type]
        with pytest.raises(PermissionDenied, match=r"^no$"):
            await index.ready()
        refusing.refuses = False
        assert index._replica is not None
        followed = index._replica
        await eventually(lambda: followed.is_loaded)
        await index.ready()


def test_tasks_and_texts_are_kept_once() -> None:
    index = FedIndex()
    for number in range(3):
        index.put(record(f"r{number}", at=number, creator="someone", labels={"team": "ml"}))
    first, *others = entries(index)
    assert all(each.task is first.task for each in others)
    assert all(each.labels[0][0] is first.labels[0][0] for each in others)
    latest = index.latest_of(OfTask("p", "d", "env.main"))
    assert latest is not None
    assert latest.name == "r2"


def test_a_run_whose_task_changes_moves_to_its_scope() -> None:
    index = FedIndex()
    index.put(record("a", task="env.one"))
    index.put(record("a", task="env.two"))
    assert names(index, OfTask("p", "d", "env.one")) == []
    assert names(index, OfTask("p", "d", "env.two")) == ["a"]
    assert names(index, None) == ["a"]
    index.delete(record("a", task="env.two"))
    assert index._by_scope == {}
