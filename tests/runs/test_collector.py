"""Which records of runs are deleted where others see to their objects, on a real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.actions.status import ActionStatus
from etcd_actions.etcd.api import Etcd, KeyRange, Put, Txn
from etcd_actions.model import Keyspace
from etcd_actions.runs.own_run_service import OwnRunService
from etcd_actions.runs.removal import Removed
from etcd_actions.runs.run_collector import RunCollector
from etcd_actions.storage.store import Store
from tests.runs.test_own_run_service import tell
from tests.support import flyte

pytestmark = pytest.mark.memory

KEEP = timedelta(days=30)


@pytest.fixture
def keys(prefix: bytes) -> Keyspace:
    return Keyspace(prefix)


@pytest.fixture
def store(etcd: Etcd) -> Store:
    return Store(etcd)


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


@pytest.fixture
def collector(store: Store, keys: Keyspace) -> RunCollector:
    later = datetime.now(UTC) + timedelta(days=31)
    return RunCollector(store, keys, KEEP, objects=False, clock=lambda: later)


async def run_of(
    client: ActionsClient, store: Store, keys: Keyspace, run: str, phase: Phase
) -> None:
    """A run with a child, as far as it is in a phase."""
    own = OwnRunService(store, keys)
    root, child = ActionId("p", "d", run, "a0"), ActionId("p", "d", run, "c1")
    await client.enqueue(flyte.task(root))
    await client.enqueue(flyte.task(child, "a0"))
    for each in (child, root):
        status = ActionStatus(Phase.SUCCEEDED if each is child else phase)
        await tell(own, await client.put_status(each, 1, status))


async def left(store: Store, prefix: bytes) -> list[str]:
    kvs, _ = await store.read(KeyRange.of_prefix(prefix))
    return [kv.key[len(prefix) :].decode() for kv in kvs]


async def delete(store: Store, key: bytes) -> None:
    seen = await store.get(key)
    assert seen is not None
    assert (await store.compare_and_delete(seen)).applied


async def test_what_ended_long_ago_goes_with_its_histories_alone(
    etcd: Etcd, client: ActionsClient, store: Store, keys: Keyspace, collector: RunCollector
) -> None:
    for run, phase in (("r", Phase.FAILED), ("r-x", Phase.RUNNING), ("q", Phase.RUNNING)):
        await run_of(client, store, keys, run, phase)
    letter = keys.dead_letters + b"flyte/r-a0/x"
    for run in ("r", "q"):
        await etcd.put(keys.run_task(ActionId("p", "d", run, "a0")), b"its task")
    await etcd.txn(Txn([], [Put(letter, b"{}"), Put(keys.runs + b"flyte/zzz", b"garbage")]))
    now = RunCollector(store, keys, KEEP, objects=False)
    assert await now.sweep() == Removed()
    collected = await collector.sweep()
    assert (collected.records, collected.histories, collected.objects) == (1, 2, 0)
    assert len(await left(store, keys.prefix)) == 6
    assert await left(store, keys.runs) == ["flyte/q", "flyte/r-x", "flyte/zzz"]
    assert await left(store, keys.run_tasks) == ["flyte/q"]
    # ``r-x-c1`` begins like the histories of ``r`` do.
    assert await left(store, keys.histories) == ["flyte/q-c1", "flyte/r-x-c1"]
    assert await store.get(letter) is not None


async def test_one_whose_root_is_gone_without_an_end_goes_too(
    client: ActionsClient, store: Store, keys: Keyspace, collector: RunCollector
) -> None:
    await run_of(client, store, keys, "r", Phase.RUNNING)
    assert await collector.sweep() == Removed()
    await delete(store, keys.task_action(ActionId("p", "d", "r", "a0")))
    assert (await collector.sweep()).records == 1


async def test_a_run_that_is_made_again_meanwhile_stays(
    client: ActionsClient, store: Store, keys: Keyspace, collector: RunCollector
) -> None:
    """Between the look at its root and the deletion."""
    await run_of(client, store, keys, "r", Phase.FAILED)
    root = ActionId("p", "d", "r", "a0")
    for each in (root, ActionId("p", "d", "r", "c1")):
        await delete(store, keys.task_action(each))
    commit = store._commit

    async def late(txn: Txn) -> object:
        store._commit = commit
        await run_of(client, store, keys, "r", Phase.RUNNING)
        return await commit(txn)

    store._commit = late  # type: ignore[assignment]
    assert (await collector.sweep()).records == 0
    assert await left(store, keys.runs) == ["flyte/r"]
    assert "flyte/r-c1" in await left(store, keys.histories)
