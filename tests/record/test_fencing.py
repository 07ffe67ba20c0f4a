"""Each write of a leader is made only while its key exists, as it was created."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import pytest
import trio

from etcd_actions import ActionsClient, Phase, open_actions_client
from etcd_actions._internal.containment import Containment
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.condition_timeouts import ConditionTimeouts
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.codecs import json
from etcd_actions.dead_letters import DeadLetterStore
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import (
    Compare,
    Delete,
    Etcd,
    Get,
    KeyRange,
    KeyValue,
    Put,
    Txn,
    TxnResult,
)
from etcd_actions.etcd.group_commit import open_group_commit
from etcd_actions.model import ActionId, Keyspace, build_action_update
from etcd_actions.record.recorder import Recorder, TerminalState
from etcd_actions.storage.store import Fence, FencedStore, KeyChange, Store
from etcd_actions.watch import ReflectorSettings
from tests.executor.fakes import SetClock
from tests.support import flyte
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.memory

ROOT, CHILD = ActionId("p", "d", "r1", "a0"), ActionId("p", "d", "r1", "c1")


@dataclass
class Leading:
    """A leader's store, and the means to depose it and to elect it again."""

    etcd: Etcd
    keys: Keyspace
    client: ActionsClient
    fence: Fence
    store: FencedStore

    async def depose(self) -> int:
        """Another process becomes the leader; returns the store's revision then."""
        key = self.keys.election(None)
        await self.etcd.delete(KeyRange.of_key(key))
        return (await self.etcd.put(key, b"another")).revision

    async def elect(self) -> None:
        key = self.keys.election(None)
        await self.etcd.delete(KeyRange.of_key(key))
        created = (await self.etcd.put(key, b"mine")).revision
        self.fence.compare = Compare.incarnation(key, created)

    async def revision(self) -> int:
        return (await self.etcd.range(KeyRange.of_key(b"/"), limit=1)).revision

    async def get(self, action_id: ActionId) -> KeyValue:
        kv = await self.store.get(self.keys.task_action(action_id))
        assert kv is not None
        return kv


@pytest.fixture
async def leading(etcd: Etcd, prefix: bytes) -> AsyncIterator[Leading]:
    fence = Fence()
    async with (
        open_actions_client(etcd, prefix=prefix) as client,
        open_group_commit(etcd) as commit,
    ):
        store = FencedStore(Store(etcd, commit.txn, commit.get), fence)
        one = Leading(etcd, Keyspace(prefix), client, fence, store)
        await one.elect()
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(CHILD, "a0"))
        yield one


async def refused(leading: Leading, write: Callable[[], Awaitable[object]]) -> None:
    """A deposed leader writes nothing; the same call later, as the leader, writes."""
    before = await leading.depose()
    with pytest.raises(Unavailable, match="not the leader any more"):
        await write()
    assert await leading.revision() == before
    await leading.elect()
    before = await leading.revision()
    await write()
    assert await leading.revision() > before


async def test_orphans(leading: Leading) -> None:
    await leading.etcd.delete(KeyRange.of_key(leading.keys.task_action(ROOT)))
    await refused(leading, OrphanCollector(leading.store, leading.keys).sweep)
    assert (await leading.client.get_task_action(CHILD)).phase is Phase.ABORTED


async def test_the_children_of_a_deleted_action(leading: Leading) -> None:
    action = await leading.client.get_task_action(ROOT)
    deleted = build_action_update(action, key=action.key, revision=action.revision, deleted=True)
    await leading.etcd.delete(KeyRange.of_key(action.key))
    collector = OrphanCollector(leading.store, leading.keys)
    await refused(leading, partial(collector.on_owner_deleted, deleted))
    assert (await leading.client.get_task_action(CHILD)).phase is Phase.ABORTED


async def interrupted_abort(leading: Leading) -> None:
    """The root is aborted, and its child still runs."""
    seen = await leading.get(CHILD)
    await leading.client.abort_action(ROOT, "why")
    await leading.etcd.put(seen.key, seen.value)


async def test_an_abort_that_is_resumed(leading: Leading) -> None:
    await interrupted_abort(leading)
    await refused(leading, Aborter(leading.store, leading.keys).resume)
    assert (await leading.client.get_task_action(CHILD)).phase is Phase.ABORTED


async def test_an_abort_whose_action_was_deleted(leading: Leading) -> None:
    await interrupted_abort(leading)
    await leading.etcd.delete(KeyRange.of_key(leading.keys.task_action(ROOT)))
    aborter = Aborter(leading.store, leading.keys)
    await refused(leading, partial(aborter.on_action_deleted, ROOT, "flyte"))
    assert (await leading.client.get_task_action(CHILD)).phase is Phase.ABORTED
    assert await leading.store.get(leading.keys.abort(ROOT)) is None


async def test_the_marker_of_a_deleted_action(leading: Leading) -> None:
    await leading.client.abort_action(ROOT)
    for action_id in (ROOT, CHILD):
        await leading.etcd.delete(KeyRange.of_key(leading.keys.task_action(action_id)))
    await refused(leading, Aborter(leading.store, leading.keys).resume)
    assert await leading.store.get(leading.keys.abort(ROOT)) is None


async def test_a_requested_deletion(leading: Leading) -> None:
    seen = await leading.get(ROOT)
    aborter = Aborter(leading.store, leading.keys)
    await refused(leading, partial(aborter.on_deletion_requested, seen))
    assert (await leading.client.get_task_action(ROOT)).phase is Phase.ABORTED


async def test_a_mark_and_the_release(leading: Leading) -> None:
    await leading.client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
    seen = await leading.get(ROOT)
    update = build_action_update(json.decode(seen.value), key=seen.key, revision=seen.mod_revision)
    recorder = Recorder(leading.store)
    await refused(leading, partial(recorder.mark, seen, TerminalState.of(update)))
    assert (await leading.client.get_task_action(ROOT)).is_recorded


async def test_a_condition_is_ended_when_its_process_leads_again(leading: Leading) -> None:
    """A refused write is retried after a delay, which a new term does not wait for."""
    clock = SetClock()
    condition = flyte.condition(ActionId("p", "d", "r1", "w1"), "a0")
    condition.condition.timeout.seconds = 900
    await leading.client.enqueue(condition)
    waiting = ActionId("p", "d", "r1", "w1")
    kv = await leading.get(waiting)
    timeouts = ConditionTimeouts(leading.store, clock=clock)
    timeouts.note(kv.key, json.summarize(kv.value, revision=1, create_revision=kv.create_revision))
    clock.passed += 901
    before = await leading.depose()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timeouts.end_in_time)
        await eventually(lambda: bool(timeouts._failures))
        assert await leading.revision() == before
        nursery.cancel_scope.cancel("the term has ended")
    await leading.elect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timeouts.end_in_time)

        async def ended() -> bool:
            return (await leading.client.get_task_action(waiting)).phase is Phase.TIMED_OUT

        await eventually_holds(ended)
        nursery.cancel_scope.cancel("it has ended")


async def test_a_dead_letter(leading: Leading) -> None:
    book = DeadLetterStore(
        leading.etcd,
        leading.store,
        leading.keys,
        owns=lambda _key: True,
        settings=ReflectorSettings(),
        containment=Containment(),
    )
    seen = await leading.get(ROOT)
    update = build_action_update(json.decode(seen.value), key=seen.key, revision=seen.mod_revision)
    async with book.at_work(lambda _key: None):
        await refused(leading, partial(book.reject, "record", update, None, code=3, error="no"))
        await refused(leading, partial(book.accept, "record", update))


# --- the store itself -----------------------------------------------------------------------------


async def write(store: Store, txn: Txn) -> TxnResult:
    return await store.txn(txn)


@pytest.mark.parametrize(
    "txn",
    [
        lambda key: Txn([], [Put(key, b"1")]),
        lambda key: Txn([Compare.incarnation(key + b"x", 0)], [Put(key, b"1")]),
        lambda key: Txn([Compare.incarnation(key, 7)], [], [Put(key, b"1")]),
        lambda key: Txn([], [Txn([], [Delete(KeyRange.of_prefix(key)), Put(b"/y" + key, b"")])]),
        lambda key: Txn([Compare.incarnation(key, 7)], [], [Txn([], [Put(key, b"1")])]),
    ],
    ids=["put", "compared", "in the other branch", "nested", "nested in the other branch"],
)
async def test_each_branch_of_a_transaction_is_fenced(
    leading: Leading, prefix: bytes, txn: Callable[[bytes], Txn]
) -> None:
    await refused(leading, partial(write, leading.store, txn(prefix + b"z")))


async def test_a_failed_compare_is_no_loss_of_the_leadership(
    leading: Leading, prefix: bytes
) -> None:
    """The answer is the one without a fence, in both branches; reads need no fence."""
    key = prefix + b"z"
    await leading.etcd.put(key, b"there")
    absent = Compare.incarnation(key, 0)
    plain = Txn([absent], [Put(key, b"mine")], [Get(KeyRange.of_key(key))])
    for store in (leading.store, Store(leading.etcd)):
        result = await store.txn(plain)
        assert (result.succeeded, len(result.responses)) == (False, 1)
        present = Compare.incarnation(key, 7)
        result = await store.txn(
            Txn([present], [], [Put(key, b"there"), Get(KeyRange.of_key(key))])
        )
        assert (result.succeeded, len(result.responses)) == (False, 2)
    await leading.depose()
    assert len(await leading.store.get_all(key, key + b"x")) == 2
    assert not (await leading.store.txn(Txn([absent], [], [Get(KeyRange.of_key(key))]))).succeeded


async def test_the_other_writes_of_a_store(leading: Leading, prefix: bytes) -> None:
    store, key = leading.store, prefix + b"z"
    numbers = iter(range(1000))
    await refused(leading, lambda: store.change([KeyChange(key, lambda _: b"%d" % next(numbers))]))
    kv = await store.get(key)
    await refused(leading, partial(store.replace, key, b"other", kv))
    await refused(leading, partial(store.get_or_create, key + b"new", lambda: b"v"))
    kv = await store.get(key)
    assert kv is not None
    await refused(leading, partial(store.compare_and_put, kv, b"last"))
    kv = await store.get(key)
    assert kv is not None
    await refused(leading, partial(store.compare_and_delete, kv))


async def test_members_of_a_group_are_fenced_one_by_one(leading: Leading, prefix: bytes) -> None:
    """Writes of a deposed leader fail beside others of its process in the same group."""
    await leading.depose()
    results: list[str] = []

    async def put(store: Store, number: int) -> None:
        try:
            await store.replace(prefix + b"g%d" % number, b"v", None)
        except Unavailable:
            results.append("refused")
        else:
            results.append("written")

    plain = Store(leading.etcd, leading.store._unfenced)
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(put, leading.store if number % 2 else plain, number)
    assert sorted(results) == ["refused"] * 20 + ["written"] * 20
    found = await leading.etcd.range(KeyRange.of_prefix(prefix + b"g"))
    assert len(found.kvs) == 20
