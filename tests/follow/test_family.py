"""An action with its children, read by what the watch knows: exactly what a list would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from etcd_actions import ActionId, ActionsClient, Phase, WatchingSettings, open_actions_client
from etcd_actions.actions.listing import Lister, Listing, below, readable
from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd, KeyRange, Txn, TxnResult
from etcd_actions.follow import FamilyReader, Index
from etcd_actions.follow.subscriptions import SnapshotEnd
from etcd_actions.model import ActionUpdate, Keyspace, summarize
from etcd_actions.storage.store import Store
from etcd_actions.watch import Reflector
from tests.support import flyte

pytestmark = pytest.mark.memory

SERVES = WatchingSettings(record=False)


def named(name: str, run: str = "r1") -> ActionId:
    return ActionId("p", "d", run, name)


ROOT, LEAF = named("a0"), named("c3")


class Watched:
    """An etcd that notes lists of more than one key, and holds the watch back."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.lists: list[KeyRange] = []
        self.gate = trio.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def range(self, keys: KeyRange, **options: Any) -> Any:
        if keys.end != keys.start + b"\0":
            self.lists.append(keys)
        return await self._etcd.range(keys, **options)

    @asynccontextmanager
    async def watch(self) -> Any:
        async with self._etcd.watch() as stream:
            yield Gated(stream, self)


class Gated:
    """A stream that gives nothing while the gate is shut."""

    def __init__(self, stream: Any, watched: Watched) -> None:
        self._stream = stream
        self._watched = watched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def receive(self) -> Any:
        responses = await self._stream.receive()
        await self._watched.gate.wait()
        return responses


async def grow(client: ActionsClient) -> None:
    """A root with children, of which one has a child and a trace; and the like of another run."""
    await client.enqueue(flyte.task(ROOT))
    for number in range(8):
        await client.enqueue(flyte.task(named(f"c{number}"), "a0"))
    await client.enqueue(flyte.task(named("g1"), "c3"))
    await client.enqueue(flyte.trace(named("t1"), "c3"))
    await client.enqueue(flyte.task(named("a0", "r1-c3")))
    await client.enqueue(flyte.task(named("x", "r1-c3"), "a0"))


async def snapshot(client: ActionsClient, parent: ActionId) -> tuple[set[tuple[str, int]], int]:
    """Names and revisions of what a stream begins with, and its revision."""
    states: set[tuple[str, int]] = set()
    async with client.subscribe(parent, snapshot=True) as updates:
        async for update in updates:
            if isinstance(update, SnapshotEnd):
                return states, update.revision
            states.add((update.action_id.name, update.revision))
    raise AssertionError("the snapshot has no end")


def told(listing: Listing) -> set[tuple[str, int]]:
    return {(each.action_id.name, each.revision) for each in listing.actions}


async def listed(etcd: Etcd, prefix: bytes, parent: ActionId, revision: int) -> Listing:
    """What a list at a revision gives."""
    kvs = []
    for each in Keyspace(prefix).run_prefixes(parent.run)[:2]:
        kvs += (await Store(etcd).read(KeyRange.of_prefix(each), revision=revision))[0]
    return Listing(below(await readable(kvs), parent), revision)


@pytest.mark.network
async def test_a_stream_reads_no_list_of_the_run(etcd: Etcd, prefix: bytes) -> None:
    """Neither for a leaf nor for a root of few children, nor do lists of children."""
    watched = Watched(etcd)
    async with open_actions_client(watched, prefix=prefix, settings=SERVES) as client:
        await client.start_watching()
        await grow(client)
        for parent in (LEAF, ROOT, named("g1"), named("nobody")):
            watched.lists.clear()
            states, revision = await snapshot(client, parent)
            assert states == told(await listed(etcd, prefix, parent, revision))
            assert told(await client.list_child_actions(parent, traces=True)) == states
            without = await Lister(Store(etcd), Keyspace(prefix)).list_child_actions(parent)
            assert told(await client.list_child_actions(parent)) == told(without)
            assert watched.lists == []
        states, _ = await snapshot(client, LEAF)
        assert {name for name, _ in states} == {"c3", "g1", "t1"}


async def test_a_large_family_is_listed(etcd: Etcd, prefix: bytes) -> None:
    """In one transaction there is room for a hundred."""
    async with open_actions_client(etcd, prefix=prefix, settings=SERVES) as client:
        await client.start_watching()
        await client.enqueue(flyte.task(ROOT))
        async with trio.open_nursery() as nursery:
            for number in range(130):
                nursery.start_soon(client.enqueue, flyte.task(named(f"c{number}"), "a0"))
        states, revision = await snapshot(client, ROOT)
        assert len(states) == 131
        assert states == told(await listed(etcd, prefix, ROOT, revision))


async def test_a_watch_that_lags_hides_no_child(etcd: Etcd, prefix: bytes) -> None:
    """What others made a moment ago is in the snapshot, and what comes later follows it."""
    watched = Watched(etcd)
    async with (
        open_actions_client(watched, prefix=prefix, settings=SERVES) as client,
        open_actions_client(etcd, prefix=prefix, settings=SERVES) as other,
    ):
        await client.start_watching()
        await grow(other)
        watched.gate = trio.Event()
        await other.enqueue(flyte.task(named("late"), "c3"))
        watched.lists.clear()
        async with client.subscribe(LEAF, snapshot=True) as updates:
            names = set()
            async for update in updates:
                if isinstance(update, SnapshotEnd):
                    break
                names.add(update.action_id.name)
            assert names == {"c3", "g1", "t1", "late"}
            assert watched.lists
            written = await other.put_status(named("late"), 1, flyte.status(Phase.RUNNING))
            watched.gate.set()
            with trio.fail_after(20):
                following = await updates.receive()
            assert isinstance(following, ActionUpdate)
            assert (following.action_id.name, following.revision) == ("late", written.revision)


@pytest.mark.parametrize("asks", [True, False], ids=["as-etcd-can", "never-asked"])
async def test_under_load_each_snapshot_is_what_a_list_gives(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    """At its very revision, whatever is made, changed and deleted meanwhile; then all follows."""
    if not asks:
        monkeypatch.setattr(Reflector, "can_request_progress", False)
    keys = Keyspace(prefix)
    async with (
        open_actions_client(etcd, prefix=prefix, settings=SERVES) as client,
        open_actions_client(etcd, prefix=prefix, settings=SERVES) as other,
    ):
        await client.start_watching()
        await grow(other)

        async def write(which: int) -> None:
            for number in range(40):
                child = named(f"w{which}-{number}")
                await other.enqueue(flyte.task(child, ("c3", "c4", "a0")[number % 3]))
                await other.put_status(child, 1, flyte.status(Phase.RUNNING))
                if number % 4 == which:
                    await etcd.delete(KeyRange.of_key(keys.task_action(child)))

        seen = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, 0)
            nursery.start_soon(write, 1)
            for _ in range(15):
                states, revision = await snapshot(client, LEAF)
                assert states == told(await listed(etcd, prefix, LEAF, revision))
                seen = max(seen, len(states))
        assert seen > 3


class Scripted:
    """A watch that gets further when it is waited for."""

    can_request_progress = True

    def __init__(self, catch_up: Callable[[], None]) -> None:
        self._catch_up = catch_up
        self.asked = 0

    def progress(self, keys: KeyRange, /) -> list[tuple[KeyRange, int]]:
        """All is watched, from long ago."""
        return [(keys, 1)]

    async def reach(self, keys: Sequence[KeyRange], revision: int, /) -> None:
        """Deliver what there is."""
        self.asked += 1
        self._catch_up()
        await trio.lowlevel.checkpoint()


class CountingStore(Store):
    """Notes how many keys were read at once."""

    def __init__(self, etcd: Etcd) -> None:
        super().__init__(etcd)
        self.read_at_once: list[int] = []

    async def read_txn(self, txn: Txn) -> TxnResult:
        """See the base."""
        self.read_at_once.append(len(txn.success))
        return await super().read_txn(txn)


async def test_what_the_watch_brings_behind_the_read_is_read_too(etcd: Etcd, prefix: bytes) -> None:
    """Where it was there at the revision of the read; and what was made since follows."""
    keys, index = Keyspace(prefix), Index()
    async with open_actions_client(etcd, prefix=prefix, settings=SERVES) as client:
        await grow(client)
    store = CountingStore(etcd)

    def catch_up() -> None:
        for kv in present:
            action = json.decode(kv.value)
            index.put(kv.key, summarize(action, kv.mod_revision, kv.create_revision))

    present, _ = await store.read(KeyRange.of_prefix(keys.prefix))
    progress = Scripted(catch_up)
    reader = FamilyReader(store, index, lambda: progress)
    listing = await reader.read(LEAF, Keyspace(prefix))
    assert listing is not None
    assert {each.action_id.name for each in listing.actions} == {"c3", "g1"}
    assert store.read_at_once == [1, 2]
    assert progress.asked == 2


async def test_a_watch_that_never_answers_is_not_waited_for(
    etcd: Etcd, prefix: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """The family is listed then, and for a while etcd is not asked again."""

    waited: list[float] = []

    class Silent(Scripted):
        async def reach(self, keys: Sequence[KeyRange], revision: int, /) -> None:
            began = trio.current_time()
            try:
                await trio.sleep_forever()
            finally:
                waited.append(round(trio.current_time() - began, 2))

    class Changing(Store):
        async def read_txn(self, txn: Txn) -> TxnResult:
            return TxnResult(not txn.compare, [], 7)

    progress = Silent(lambda: None)
    reader = FamilyReader(Changing(etcd), Index(), lambda: progress)
    for _ in range(3):
        assert await reader.read(LEAF, Keyspace(prefix)) is None
    assert waited.count(0.5) == 1
    await trio.sleep(61)
    assert await reader.read(LEAF, Keyspace(prefix)) is None
    assert waited.count(0.5) == 2


async def test_a_run_that_is_not_watched_is_listed(etcd: Etcd, prefix: bytes) -> None:
    """The index knows nothing of it, and the watch has nothing to reach."""

    class Elsewhere(Scripted):
        def progress(self, keys: KeyRange, /) -> list[tuple[KeyRange, int]]:
            return []

    progress = Elsewhere(lambda: None)
    reader = FamilyReader(Store(etcd), Index(), lambda: progress)
    assert await reader.read(LEAF, Keyspace(prefix)) is None
