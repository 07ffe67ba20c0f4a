"""What a deleted action leaves behind: ended, recorded, then deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client, open_etcd
from etcd_actions.actions.orphans import REASON, OrphanCollector
from etcd_actions.codecs import CODEC_NAMES, codec_of
from etcd_actions.etcd import TransportName
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue
from etcd_actions.model import FINALIZER_PLUGIN, Keyspace
from etcd_actions.storage.store import Store
from tests.record.test_outbox import SETTINGS, Scripted, watching
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday
from tests.support.recording import until_stored
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")


def named(name: str) -> ActionId:
    return ActionId("p", "d", "r1", name)


async def grow(client: ActionsClient) -> None:
    """A root with two children, a grandchild and a trace."""
    await client.enqueue(flyte.task(ROOT))
    for name, parent in (("c1", "a0"), ("c2", "a0"), ("g1", "c1")):
        await client.enqueue(flyte.task(named(name), parent))
    await client.enqueue(flyte.trace(named("t1"), "c1"))


async def delete(etcd: Etcd, prefix: bytes, action_id: ActionId = ROOT) -> None:
    await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(action_id)))


def leaves(*names: str) -> Callable[[dict[bytes, KeyValue]], bool]:
    """Whether these objects are left, and no others."""
    wanted = {f"r1-{name}".encode() for name in names}
    return lambda stored: {key.rpartition(b"/")[2] for key in stored} == wanted


async def until_left(etcd: Etcd, prefix: bytes, *names: str) -> None:
    keys = Keyspace(prefix)
    with trio.fail_after(60):
        await until_stored(etcd, KeyRange.of_prefix(keys.prefix), leaves(*names))
        await until_stored(etcd, KeyRange.of_prefix(keys.traces), leaves())


@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
async def test_the_subtree_follows(
    shared_etcd: EtcdServer, prefix: bytes, transport: TransportName, codec: str
) -> None:
    """Each level is told as ABORTED, with the reason, before it is deleted; traces go with it."""
    service = Scripted()
    async with (
        open_etcd(shared_etcd.endpoint, transport=transport) as etcd,
        open_actions_client(
            etcd, prefix=prefix, codec=codec, run_service=service, settings=SETTINGS
        ) as client,
    ):
        await client.start_watching()
        await grow(client)
        await delete(etcd, prefix)
        await until_left(etcd, prefix)
        for name in ("a0", "c1", "c2", "g1"):
            # Once; a parent was told as RUNNING before.
            assert service.of(name)[-1] is Phase.ABORTED
            assert service.of(name).count(Phase.ABORTED) == 1
        reasons = {each.action_id.name: each.abort_reason for each in service.updates}
        assert {reasons[name] for name in ("c1", "c2", "g1")} == {REASON}


async def test_what_is_over_is_recorded_first(etcd: Etcd, prefix: bytes) -> None:
    """And keeps its own ending."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(named("c1"), "a0"))
        await client.put_status(named("c1"), 1, flyte.status(Phase.SUCCEEDED))
        await delete(etcd, prefix)
        await until_left(etcd, prefix)
    assert service.of("c1")[-1] is Phase.SUCCEEDED


@pytest.mark.slow
async def test_a_parent_that_expires(etcd: Etcd, prefix: bytes) -> None:
    """With the time that recorded actions are kept its traces and children are over, too."""
    settings = replace(SETTINGS, retain_terminal=1.0)
    service = Scripted()
    with capture_logs() as logs:
        async with open_actions_client(
            etcd, prefix=prefix, run_service=service, settings=settings
        ) as client:
            await client.start_watching()
            await client.enqueue(flyte.task(ROOT))
            await client.enqueue(flyte.task(named("c1"), "a0"))
            await client.enqueue(flyte.trace(named("t1"), "a0"))
            await client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
            await until_left(etcd, prefix)
    assert service.of("a0")[-1] is Phase.SUCCEEDED
    assert service.of("c1")[-1] is Phase.ABORTED
    (line,) = [each for each in logs if each["event"] == "orphan_aborted"]
    assert (line["key"], line["parent"]) == tuple(
        Keyspace(prefix).task_action(each).decode() for each in (named("c1"), ROOT)
    )


async def test_orphaned_while_nobody_watched(etcd: Etcd, prefix: bytes) -> None:
    """Whoever is elected next looks everything through."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        await grow(client)
    await delete(etcd, prefix, named("c1"))
    async with watching(etcd, prefix, Scripted()):
        await until_stored(etcd, KeyRange.of_prefix(prefix), leaves("a0", "c2"))


async def test_another_incarnation_is_no_parent(etcd: Etcd, prefix: bytes) -> None:
    """The children of the old one go, those of the new one stay."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(named("old"), "a0"))
        await delete(etcd, prefix)
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(named("new"), "a0"))
    async with watching(etcd, prefix, Scripted()):
        await until_stored(etcd, KeyRange.of_prefix(prefix), leaves("a0", "new"))


async def test_somebody_else_holds_an_orphan(etcd: Etcd, prefix: bytes) -> None:
    """It is ended and its deletion asked for; it goes when the other one lets go."""
    keys = Keyspace(prefix)
    async with watching(etcd, prefix, Scripted()) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(named("c1"), "a0"))
        await hold(etcd, keys.task_action(named("c1")), FINALIZER_PLUGIN)
        await delete(etcd, prefix)

        def is_recorded(stored: dict[bytes, KeyValue]) -> bool:
            (kv,) = stored.values()
            action = codec_of(kv.value).decode(kv.value)
            return action.is_recorded and action.is_deleting

        child = KeyRange.of_key(keys.task_action(named("c1")))
        with trio.fail_after(60):
            stored = await until_stored(etcd, child, is_recorded)
        (kv,) = stored.values()
        action = codec_of(kv.value).decode(kv.value)
        assert action.phase is Phase.ABORTED
        assert action.metadata.finalizers == (FINALIZER_PLUGIN,)


async def hold(etcd: Etcd, key: bytes, finalizer: str) -> None:
    kv = await Store(etcd).get(key)
    assert kv is not None
    codec = codec_of(kv.value)
    tree = codec.decode_tree(kv.value)
    tree["metadata"].setdefault("finalizers", []).append(finalizer)
    await etcd.put(key, codec.encode_tree(tree))


async def test_a_parent_that_cannot_be_read_is_there(etcd: Etcd, prefix: bytes) -> None:
    """Bad data hurts only itself."""
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as client:
        await grow(client)
        await etcd.put(keys.task_action(ROOT), b"no object")
        before = (await etcd.range(KeyRange.of_prefix(prefix))).kvs
        await OrphanCollector(Store(etcd), keys).sweep()
        assert (await etcd.range(KeyRange.of_prefix(prefix))).kvs == before


async def test_switched_off_nothing_is_collected(etcd: Etcd, prefix: bytes) -> None:
    """Where Kubernetes has a collector of its own."""
    service = Scripted()
    async with open_actions_client(
        etcd,
        prefix=prefix,
        run_service=service,
        settings=replace(SETTINGS, collect_orphans=False),
    ) as client:
        await client.start_watching()
        await grow(client)
        await delete(etcd, prefix)
        await eventually(lambda: service.of("a0")[-1:] == [Phase.ABORTED])
        assert (await client.get_task_action(named("c1"))).phase is Phase.UNSPECIFIED


async def test_two_collectors_at_once(etcd: Etcd, prefix: bytes) -> None:
    """Each step is a compare-and-swap: an orphan is ended once."""
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as client:
        await grow(client)
        await delete(etcd, prefix)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(OrphanCollector(Store(etcd), keys).sweep)
        listing = await client.list_run_actions(ROOT.run_id)
        ended = {each.action_id.name: each for each in listing.actions}
        assert ended["c1"].phase is ended["c2"].phase is Phase.ABORTED
        kvs = (await etcd.range(KeyRange.of_prefix(prefix))).kvs
        assert {kv.version for kv in kvs} <= {1, 2}


async def test_a_deletion_by_an_api_server(etcd: Etcd, prefix: bytes) -> None:
    """With only our finalizer left nobody else ends the action: told, marked, deleted."""
    keys = Keyspace(prefix)
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.put_status(ROOT, 1, flyte.status(Phase.RUNNING))
        kv = await Store(etcd).get(keys.task_action(ROOT))
        assert kv is not None
        codec = codec_of(kv.value)
        tree = codec.decode_tree(kv.value)
        tree["metadata"] |= {
            "deletionTimestamp": "2026-11-24T00:00:00Z",
            "deletionGracePeriodSeconds": 0,
            "generation": 2,
        }
        await etcd.put(kv.key, codec.encode_tree(tree))
        await until_left(etcd, prefix)
    assert service.of("a0")[-1] is Phase.ABORTED
