"""``--finalizer=false``: objects that only an API server can change are never held by us."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import trio

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.codecs import CODEC_NAMES, codec_of
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import FINALIZER_PLUGIN, FINALIZER_RECORD, ActionObject, Keyspace
from etcd_actions.storage.store import Store
from tests.actions.test_orphans import hold
from tests.actions.test_orphans_by_name import change, until_left
from tests.record.test_outbox import SETTINGS, Scripted
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")
ENCRYPTED = b"k8s:enc:aescbc:v1:key1:\x8b\x01"


@asynccontextmanager
async def unheld(
    etcd: Etcd, prefix: bytes, service: Scripted | None = None, codec: str = "json"
) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(
        etcd,
        prefix=prefix,
        codec=codec,
        run_service=service,
        settings=replace(SETTINGS, finalizer=False),
    ) as client:
        if service is not None:
            await client.start_watching()
            await eventually(lambda: client.statistics().elected)
        yield client


async def stored(etcd: Etcd, key: bytes) -> ActionObject:
    kv = await Store(etcd).get(key)
    assert kv is not None
    return codec_of(kv.value).decode(kv.value)


@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
async def test_nothing_that_an_api_server_reads_gets_our_finalizer(
    etcd: Etcd, prefix: bytes, codec: str
) -> None:
    """Traces do: no API server ever reads or encrypts them."""
    keys = Keyspace(prefix)
    async with unheld(etcd, prefix, codec=codec) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.condition(CHILD, "a0"))
        trace = ActionId("p", "d", "r1", "t1")
        await client.enqueue(flyte.trace(trace, "a0"))
        for action_id in (ROOT, CHILD):
            assert (await stored(etcd, keys.task_action(action_id))).metadata.finalizers == ()
        assert (await stored(etcd, keys.trace(trace))).metadata.finalizers == (FINALIZER_RECORD,)


async def test_an_ending_is_told_and_marked_without_it(etcd: Etcd, prefix: bytes) -> None:
    service = Scripted()
    async with unheld(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
        await eventually(lambda: client.statistics().marks == {"marked": 1})
        assert (await client.get_task_action(ROOT)).is_recorded
    assert service.of("a0")[-1] is Phase.SUCCEEDED


async def test_an_abort_does_not_add_it(etcd: Etcd, prefix: bytes) -> None:
    """The executor's finalizer holds the object, and only that."""
    keys = Keyspace(prefix)
    async with unheld(etcd, prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(CHILD, "a0"))
        for action_id in (ROOT, CHILD):
            await hold(etcd, keys.task_action(action_id), FINALIZER_PLUGIN)
        await client.abort_action(ROOT, "why")
        for action_id in (ROOT, CHILD):
            action = await stored(etcd, keys.task_action(action_id))
            assert action.phase is Phase.ABORTED
            assert action.is_deleting
            assert action.metadata.finalizers == (FINALIZER_PLUGIN,)


async def test_an_abort_that_is_resumed_does_not_add_it_either(etcd: Etcd, prefix: bytes) -> None:
    keys = Keyspace(prefix)
    async with unheld(etcd, prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.abort_action(ROOT, "why")
        kv = await Store(etcd).get(keys.task_action(ROOT))
        assert kv is not None
        await change(etcd, kv.key, lambda tree: tree.pop("status"))
        await hold(etcd, kv.key, FINALIZER_PLUGIN)
        await Aborter(Store(etcd), keys, finalizer=False).resume()
        action = await stored(etcd, kv.key)
        assert action.phase is Phase.ABORTED
        assert action.metadata.finalizers == (FINALIZER_PLUGIN,)


@pytest.mark.parametrize("over", [False, True], ids=["going-on", "over"])
async def test_orphans_are_told_and_deleted_without_it(
    etcd: Etcd, prefix: bytes, over: bool
) -> None:
    service = Scripted()
    async with unheld(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(CHILD, "a0"))
        if over:
            await client.put_status(CHILD, 1, flyte.status(Phase.SUCCEEDED))
        await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))
        await until_left(etcd, prefix)
    assert service.of("c1")[-1] is (Phase.SUCCEEDED if over else Phase.ABORTED)


async def test_an_orphan_that_waits_is_not_held(etcd: Etcd, prefix: bytes) -> None:
    keys = Keyspace(prefix)
    now = datetime(2026, 11, 28, tzinfo=UTC)
    async with unheld(etcd, prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(CHILD, "a0"))
        await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
        await OrphanCollector(Store(etcd), keys, finalizer=False, clock=lambda: now).sweep()
        action = await stored(etcd, keys.task_action(CHILD))
        assert (action.phase, action.is_deleting) == (Phase.ABORTED, True)
        assert action.metadata.finalizers == ()


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(
    ("phase", "told"),
    [(Phase.RUNNING, Phase.ABORTED), (Phase.SUCCEEDED, Phase.SUCCEEDED)],
)
async def test_a_deletion_is_told_from_memory(
    etcd: Etcd, prefix: bytes, phase: Phase, told: Phase, encrypted: bool
) -> None:
    """What was read last counts, also where encryption was switched on since."""
    keys = Keyspace(prefix)
    service = Scripted()
    async with unheld(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.put_status(ROOT, 1, flyte.status(phase))
        await eventually(lambda: service.of("a0")[-1:] == [phase])
        if encrypted:
            await etcd.put(keys.task_action(ROOT), ENCRYPTED)
            await eventually(lambda: len(client.statistics().undecodable) == 1)
        await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
        with trio.fail_after(30):
            await eventually(lambda: not client.statistics().undecodable)
            await eventually(lambda: service.of("a0")[-1:] == [told])
