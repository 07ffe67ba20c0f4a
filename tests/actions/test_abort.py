"""Aborting a subtree: a state first, safe to run again, nothing enqueued below it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
import trio

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client, open_etcd
from etcd_actions.actions.abort import Aborter
from etcd_actions.codecs import CODEC_NAMES, codec_of
from etcd_actions.errors import Aborted, InvalidArgument, NotFound, Unavailable
from etcd_actions.etcd import TransportName
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue, Put, Txn, TxnResult
from etcd_actions.model import (
    ANNOTATION_ABORT_REASON,
    ANNOTATION_ABORTED_BY,
    FINALIZER_PLUGIN,
    FINALIZER_RECORD,
    ActionUpdate,
    Keyspace,
)
from etcd_actions.storage.store import Store
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")


def named(name: str, run: str = "r1") -> ActionId:
    return ActionId("p", "d", run, name)


async def grow(client: ActionsClient, depth: int, width: int) -> list[str]:
    """A tree: the root, and below each action ``width`` others, ``depth`` levels down."""
    await client.enqueue(flyte.task(ROOT))
    names, level = ["a0"], ["a0"]
    for _ in range(depth):
        below = []
        for parent in level:
            for _ in range(width):
                name = f"n{len(names)}"
                await client.enqueue(flyte.task(named(name), parent))
                names.append(name)
                below.append(name)
        level = below
    return names


async def phases(client: ActionsClient) -> dict[str, Phase]:
    return {a.action_id.name: a.phase for a in (await client.list_run_actions(ROOT.run_id)).actions}


@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
async def test_the_whole_subtree(
    shared_etcd: EtcdServer, prefix: bytes, transport: TransportName, codec: str
) -> None:
    """At any depth, with reason and actor; nothing else, and nothing of ``r1-x``."""
    async with (
        open_etcd(shared_etcd.endpoint, transport=transport) as etcd,
        open_actions_client(etcd, prefix=prefix, codec=codec) as client,
    ):
        names = await grow(client, 4, 2)
        other = ActionId("p", "d", "r1-a0", "a0")
        await client.enqueue(flyte.task(other))
        result = await client.abort_action(named("n1"), "too slow", "alice")
        assert (result.ended, result.recorded) == (None, False)
        now = await phases(client)
        aborted = {name for name, phase in now.items() if phase is Phase.ABORTED}
        assert set(result.aborted) == aborted
        assert len(aborted) == (len(names) - 1) // 2
        assert {"a0", "n2"}.isdisjoint(aborted)
        assert (await client.get_task_action(other)).phase is Phase.UNSPECIFIED
        for name in aborted:
            action = await client.get_task_action(named(name))
            annotations = action.metadata.annotations
            assert annotations[ANNOTATION_ABORT_REASON] == "too slow"
            assert annotations[ANNOTATION_ABORTED_BY] == "alice"
            assert not action.is_deleting
            kv = await Store(etcd).get(action.key)
            assert kv is not None
            assert codec_of(kv.value).name == codec


async def test_what_is_over_keeps_its_own_ending(etcd: Etcd, prefix: bytes) -> None:
    """Below it what goes on is ended even so."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        await grow(client, 2, 1)
        await client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
        await client.put_status(named("n1"), 1, flyte.status(Phase.FAILED))
        result = await client.abort_action(ROOT)
        assert (result.aborted, result.ended) == (("n2",), Phase.SUCCEEDED)
        assert await phases(client) == {
            "a0": Phase.SUCCEEDED,
            "n1": Phase.FAILED,
            "n2": Phase.ABORTED,
        }


async def test_what_is_recorded_is_left_alone(etcd: Etcd, prefix: bytes) -> None:
    """It is a no-op that says so: no marker is left, nothing below is touched."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        await grow(client, 1, 1)
        async with client.subscribe(ROOT) as updates:
            await client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
            async for update in updates:
                if update.recorded:
                    break
        result = await client.abort_action(ROOT)
        assert result == ((), Phase.SUCCEEDED, True)
        assert await Store(etcd).get(Keyspace(prefix).abort(ROOT)) is None
        assert (await phases(client))["n1"] is Phase.UNSPECIFIED


async def test_a_missing_action(etcd: Etcd, prefix: bytes) -> None:
    """NotFound, and also where the name is another project's."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        with pytest.raises(NotFound, match="no action a0 of run p/d/r1"):
            await client.abort_action(ROOT)
        await client.enqueue(flyte.task(ActionId("q", "d", "r1", "a0")))
        with pytest.raises(NotFound, match="q/d/r1"):
            await client.abort_action(ROOT)
        with pytest.raises(InvalidArgument) as raised:
            await client.abort_action(ROOT, "x" * 32_769)
        assert raised.value.field == "reason"


class Crash(Unavailable):
    """Stands for the end of the process."""


class CrashingStore(Store):
    """Fails at its n-th transaction: before it is sent, or after it was applied."""

    def __init__(self, etcd: Etcd, crash_at: int, *, applied: bool) -> None:
        super().__init__(etcd)
        self._left = crash_at
        self._applied = applied

    async def txn(self, txn: Txn) -> TxnResult:
        self._left -= 1
        if self._left == 0 and not self._applied:
            raise Crash("before")
        result = await super().txn(txn)
        if self._left == 0:
            raise Crash("after")
        return result


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_step(etcd: Etcd, prefix: bytes, applied: bool) -> None:
    """Run again it finishes, with the first one's reason, and never says NotFound."""
    keys = Keyspace(prefix)
    for crash_at in range(1, 12):
        async with open_actions_client(etcd, prefix=prefix) as client:
            run = f"r{crash_at}"
            root = named("a0", run)
            await client.enqueue(flyte.task(root))
            for name, parent in (("c1", "a0"), ("c2", "a0"), ("g1", "c1"), ("g2", "c1")):
                await client.enqueue(flyte.task(named(name, run), parent))
            crashing = Aborter(CrashingStore(etcd, crash_at, applied=applied), keys)
            crashed = False
            try:
                await crashing.abort_action(root, "first", "alice")
            except Crash:
                crashed = True
            if crash_at == 1:
                assert crashed
            marked = await Store(etcd).get(keys.abort(root)) is not None
            if marked:
                with pytest.raises(Aborted, match="is aborted"):
                    await client.enqueue(flyte.task(named("late", run), "g1"))
                await client.abort_action(root, "second", "bob")
            else:
                await client.abort_action(root, "first", "alice")
            actions = (await client.list_run_actions(root.run_id)).actions
            assert [each.phase for each in actions] == [Phase.ABORTED] * 5
            reasons = {each.metadata.annotations[ANNOTATION_ABORT_REASON] for each in actions}
            assert reasons == {"first"}
            # One write each: created, aborted.
            kvs, _ = await Store(etcd).read(KeyRange.of_prefix(keys.run_prefixes(run)[0]))
            assert {kv.version for kv in kvs} == {2}


async def test_what_was_cut_off_is_found_and_finished(etcd: Etcd, prefix: bytes) -> None:
    """Also when the object is gone meanwhile; then the marker goes, too."""
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as client:
        await grow(client, 2, 2)
        with pytest.raises(Crash):
            await Aborter(CrashingStore(etcd, 2, applied=True), keys).abort_action(ROOT, "why")
        await Aborter(Store(etcd), keys).resume()
        assert set((await phases(client)).values()) == {Phase.ABORTED}
        assert await Store(etcd).get(keys.abort(ROOT)) is not None
        await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
        assert (await client.abort_action(ROOT)).aborted == ()
        assert await Store(etcd).get(keys.abort(ROOT)) is None
        with pytest.raises(NotFound):
            await client.abort_action(ROOT)


class ResumedStore(Store):
    """After its first transaction the leader finishes all aborts, before anything else is done."""

    def __init__(self, etcd: Etcd, leader: Aborter, touched: bytes) -> None:
        super().__init__(etcd)
        self._leader: Aborter | None = leader
        self._touched = touched

    async def txn(self, txn: Txn) -> TxnResult:
        result = await super().txn(txn)
        leader, self._leader = self._leader, None
        if leader is not None:
            await leader.resume()
            kv = await self.get(self._touched)
            assert kv is not None
            await super().txn(Txn([], [Put(kv.key, kv.value)]))
        return result


async def test_actions_that_the_leader_ended_at_the_same_time_count(
    etcd: Etcd, prefix: bytes
) -> None:
    """Not those that an earlier abort ended, though their mark is newer than this abort."""
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as client:
        await grow(client, 2, 1)
        await client.enqueue(flyte.task(named("early"), "a0"))
        earlier = Aborter(Store(etcd), keys, clock=lambda: datetime(2020, 1, 1, tzinfo=UTC))
        await earlier.abort_action(named("early"))
        leader, touched = Aborter(Store(etcd), keys), keys.task_action(named("early"))
        result = await Aborter(ResumedStore(etcd, leader, touched), keys).abort_action(ROOT)
        assert sorted(result.aborted) == ["a0", "n1", "n2"]


async def test_nothing_gets_in_below_while_it_is_aborted(etcd: Etcd, prefix: bytes) -> None:
    """Enqueued before, it is aborted; later it is refused. Whoever is first wins."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        names = await grow(client, 2, 2)
        refused: list[str] = []

        async def enqueue(number: int) -> None:
            try:
                await client.enqueue(flyte.task(named(f"x{number}"), names[number % len(names)]))
            except Aborted:
                refused.append(f"x{number}")

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(enqueue, number)
                if number == 30:
                    nursery.start_soon(client.abort_action, ROOT)
        now = await phases(client)
        assert set(now.values()) == {Phase.ABORTED}
        assert len(now) + len(refused) == len(names) + 60


class Listing(Store):
    """Counts its lists, and has something else done behind the first."""

    def __init__(self, etcd: Etcd, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__(etcd)
        self.lists = 0
        self._meanwhile = meanwhile

    async def read(self, keys: KeyRange, *, revision: int = 0) -> tuple[list[KeyValue], int]:
        """See the base."""
        found = await super().read(keys, revision=revision)
        self.lists += 1
        if self.lists == 1:
            await self._meanwhile()
        return found


async def test_one_list_is_enough(etcd: Etcd, prefix: bytes) -> None:
    """Also where what was listed has changed since: it is ended as it is now."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        names = await grow(client, 2, 3)

        async def go_on() -> None:
            await client.put_status(named("n1"), 1, flyte.status(Phase.RUNNING))
            await client.put_status(named("n2"), 1, flyte.status(Phase.FAILED))

        store = Listing(etcd, go_on)
        result = await Aborter(store, Keyspace(prefix)).abort_action(ROOT)
        assert set(result.aborted) == {*names} - {"n2"}
        assert store.lists == 1
        now = await phases(client)
        assert now.pop("n2") is Phase.FAILED
        assert set(now.values()) == {Phase.ABORTED}


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "in-the-place-of-another"])
async def test_what_is_made_past_the_markers_is_found_by_another_list(
    etcd: Etcd, prefix: bytes, replaces: bool
) -> None:
    """By another writer, behind the list."""
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as client:
        names = await grow(client, 1, 3)
        kv = await Store(etcd).get(keys.task_action(named("n1")))
        assert kv is not None
        name, value = "n1", kv.value
        if not replaces:
            name, value = "new", value.replace(b"r1-n1", b"r1-new").replace(b'"n1"', b'"new"')

        async def make() -> None:
            key = keys.task_action(named(name))
            await etcd.delete(KeyRange.of_key(key))
            await etcd.put(key, value)

        store = Listing(etcd, make)
        result = await Aborter(store, keys).abort_action(ROOT)
        assert set(result.aborted) == {*names, name}
        assert store.lists == 2
        assert set((await phases(client)).values()) == {Phase.ABORTED}


@pytest.mark.slow
async def test_a_thousand_are_aborted_while_others_are_enqueued(etcd: Etcd, prefix: bytes) -> None:
    """Each end is told once to subscribers, is the abort's own, and nothing is left behind."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        await client.enqueue(flyte.task(ROOT))
        refused: set[str] = set()
        enough = trio.Event()
        ended: dict[str, list[Phase]] = {}

        async def enqueue(number: int) -> None:
            name = f"x{number}"
            try:
                await client.enqueue(flyte.task(named(name), "a0"))
            except Aborted:
                refused.add(name)
            if number == 1000:
                enough.set()

        async def enqueue_all() -> None:
            async with trio.open_nursery() as nursery:
                for number in range(1200):
                    nursery.start_soon(enqueue, number)
                    if number % 50 == 0:
                        await trio.lowlevel.checkpoint()

        async with client.subscribe(ROOT, snapshot=True) as updates:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(enqueue_all)
                await enough.wait()
                result = await client.abort_action(ROOT, "why", "alice")
            now = await phases(client)
            assert set(now.values()) == {Phase.ABORTED}
            assert set(result.aborted) == set(now)
            assert len(now) + len(refused) == 1201
            with trio.fail_after(60):
                while len(ended) < len(now):
                    update = await updates.receive()
                    if isinstance(update, ActionUpdate) and update.phase.is_terminal:
                        ended.setdefault(update.action_id.name, []).append(update.phase)
            assert {phase for each in ended.values() for phase in each} == {Phase.ABORTED}
        actions = (await client.list_run_actions(ROOT.run_id)).actions
        assert {each.metadata.annotations[ANNOTATION_ABORT_REASON] for each in actions} == {"why"}


async def test_two_at_once(etcd: Etcd, prefix: bytes) -> None:
    """Each action is ended once, with one reason."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        names = await grow(client, 2, 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.abort_action, ROOT, "one")
            nursery.start_soon(client.abort_action, ROOT, "two")
        actions = (await client.list_run_actions(ROOT.run_id)).actions
        assert len(actions) == len(names)
        assert len({each.metadata.annotations[ANNOTATION_ABORT_REASON] for each in actions}) == 1


async def test_somebody_else_holds_the_object(etcd: Etcd, prefix: bytes) -> None:
    """The executor is asked to act as an API server asks: by ``deletionTimestamp``."""
    keys = Keyspace(prefix)
    now = datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        kv = await Store(etcd).get(keys.task_action(ROOT))
        assert kv is not None
        codec = codec_of(kv.value)
        tree = codec.decode_tree(kv.value)
        tree["metadata"]["finalizers"].append(FINALIZER_PLUGIN)
        await etcd.put(kv.key, codec.encode_tree(tree))
        await Aborter(Store(etcd), keys, clock=lambda: now).abort_action(ROOT)
        action = await client.get_task_action(ROOT)
        assert action.metadata.deletion_timestamp == "2026-11-24T01:02:03Z"
        assert action.metadata.deletion_grace_period_seconds == 0
        assert action.metadata.generation == 2
        assert set(action.metadata.finalizers) == {FINALIZER_RECORD, FINALIZER_PLUGIN}


async def test_made_again_it_is_another_one(etcd: Etcd, prefix: bytes) -> None:
    """An abort of an earlier incarnation does not count for it."""
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.abort_action(ROOT, "first")
        await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
        await client.enqueue(flyte.task(ROOT))
        await Aborter(Store(etcd), keys).resume()
        assert (await phases(client))["a0"] is Phase.UNSPECIFIED
        assert (await client.abort_action(ROOT, "second")).aborted == ("a0",)
        action = await client.get_task_action(ROOT)
        assert action.metadata.annotations[ANNOTATION_ABORT_REASON] == "second"
