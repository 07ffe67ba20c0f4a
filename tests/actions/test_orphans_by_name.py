"""Orphans that have no owner reference, as `kubectl delete --cascade=orphan` leaves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog.testing
import trio

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.actions.orphans import REASON, OrphanCollector
from etcd_actions.codecs import CODEC_NAMES, codec_of
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue, Txn, TxnResult
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store
from tests.data.captured import PUTS
from tests.record.test_outbox import SETTINGS, Scripted, watching
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.recording import until_stored
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")


def named(name: str) -> ActionId:
    return ActionId("p", "d", "r1", name)


def leaves(*names: str) -> Callable[[dict[bytes, KeyValue]], bool]:
    """Whether these objects are left, and no others."""
    wanted = {f"r1-{name}".encode() for name in names}
    return lambda stored: {key.rpartition(b"/")[2] for key in stored} == wanted


async def until_left(etcd: Etcd, prefix: bytes, *names: str) -> None:
    with trio.fail_after(60):
        await until_stored(etcd, KeyRange.of_prefix(prefix), leaves(*names))


async def change(etcd: Etcd, key: bytes, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an object as somebody else would."""
    kv = await Store(etcd).get(key)
    assert kv is not None
    codec = codec_of(kv.value)
    tree = codec.decode_tree(kv.value)
    change(tree)
    await etcd.put(key, codec.encode_tree(tree))


def without_owner(tree: dict[str, Any]) -> None:
    """What Kubernetes' garbage collector does to the children before their parent goes."""
    del tree["metadata"]["ownerReferences"]


def with_empty_uid(tree: dict[str, Any]) -> None:
    for owner in tree["metadata"]["ownerReferences"]:
        owner["uid"] = ""


async def delete_with_orphans(
    etcd: Etcd,
    prefix: bytes,
    *children: str,
    disown: Callable[[dict[str, Any]], None] = without_owner,
) -> None:
    keys = Keyspace(prefix)
    for name in children:
        await change(etcd, keys.task_action(named(name)), disown)
    await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))


async def grow(client: ActionsClient) -> None:
    """A root with two children, and a grandchild."""
    await client.enqueue(flyte.task(ROOT))
    for name, parent in (("c1", "a0"), ("c2", "a0"), ("g1", "c1")):
        await client.enqueue(flyte.task(named(name), parent))


@pytest.mark.parametrize("collect_orphans", [True, False], ids=["alone", "beside-kubernetes"])
@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
async def test_children_orphaned_by_cascade_orphan_are_ended(
    etcd: Etcd, prefix: bytes, codec: str, collect_orphans: bool
) -> None:
    """No garbage collector ever does it, so it is done where Kubernetes has one, too."""
    service = Scripted()
    settings = replace(SETTINGS, collect_orphans=collect_orphans)
    with structlog.testing.capture_logs() as logs:
        async with open_actions_client(
            etcd, prefix=prefix, codec=codec, run_service=service, settings=settings
        ) as client:
            await client.start_watching()
            await grow(client)
            await delete_with_orphans(etcd, prefix, "c1", "c2")
            # What has an owner reference is Kubernetes' where it collects.
            await until_left(etcd, prefix, *([] if collect_orphans else ["g1"]))
    told = {each.action_id.name: each for each in service.updates}
    for name in ("c1", "c2"):
        assert service.of(name).count(Phase.ABORTED) == 1
        assert told[name].abort_reason == REASON
    (first, *_) = [each for each in logs if each["event"] == "orphans_ended"]
    assert (first["ended"], first["without_owner_reference"]) == (2, 2)
    assert first["first"].endswith("flyte/r1-c1")


@pytest.mark.parametrize("collect_orphans", [True, False], ids=["alone", "beside-kubernetes"])
@pytest.mark.parametrize("disown", [without_owner, with_empty_uid])
async def test_children_orphaned_while_nobody_watched_are_ended_by_the_next_leader(
    etcd: Etcd, prefix: bytes, disown: Callable[[dict[str, Any]], None], collect_orphans: bool
) -> None:
    service = Scripted()
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(named("c1"), "a0"))
        await delete_with_orphans(etcd, prefix, "c1", disown=disown)
    settings = replace(SETTINGS, collect_orphans=collect_orphans)
    async with open_actions_client(
        etcd, prefix=prefix, run_service=service, settings=settings
    ) as client:
        await client.start_watching()
        await until_left(etcd, prefix)
    assert service.of("c1")[-1] is Phase.ABORTED


async def test_an_ending_of_an_orphan_without_owner_is_kept(etcd: Etcd, prefix: bytes) -> None:
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(named("c1"), "a0"))
        await client.put_status(named("c1"), 1, flyte.status(Phase.SUCCEEDED))
        await delete_with_orphans(etcd, prefix, "c1")
        await until_left(etcd, prefix)
    assert service.of("c1")[-1] is Phase.SUCCEEDED
    assert Phase.ABORTED not in service.of("c1")


async def test_an_orphan_that_is_over_stays_where_kubernetes_collects(
    etcd: Etcd, prefix: bytes
) -> None:
    """It waits for nobody, and who asked for --cascade=orphan wanted it to stay."""
    service = Scripted()
    settings = replace(SETTINGS, collect_orphans=False)
    async with open_actions_client(
        etcd, prefix=prefix, run_service=service, settings=settings
    ) as client:
        await client.start_watching()
        await grow(client)
        await client.put_status(named("c1"), 1, flyte.status(Phase.SUCCEEDED))
        await eventually(lambda: client.statistics().marks == {"marked": 1})
        await delete_with_orphans(etcd, prefix, "c1", "c2")
        await until_left(etcd, prefix, "c1", "g1")
    assert service.of("c1")[-1] is Phase.SUCCEEDED
    assert service.of("c2")[-1] is Phase.ABORTED


@pytest.mark.parametrize("unowned_only", [True, False])
async def test_what_has_its_parent_or_needs_none_is_no_orphan(
    etcd: Etcd, prefix: bytes, unowned_only: bool
) -> None:
    """By either name of the root, an unreadable one, made again; and roots that name themselves."""
    keys = Keyspace(prefix)

    def named_after_its_run(tree: dict[str, Any]) -> None:
        without_owner(tree)
        tree["spec"]["parentActionName"] = tree["spec"]["runName"]

    async with open_actions_client(etcd, prefix=prefix) as client:
        await grow(client)
        for run, parent in (("self", "a0"), ("name", "name")):
            root = ActionId("p", "d", run, "a0")
            await client.enqueue(flyte.task(root))
            await change(
                etcd,
                keys.task_action(root),
                lambda tree, parent=parent: tree["spec"].update(parentActionName=parent),  # type: ignore[misc]
            )
        broken = ActionId("p", "d", "broken", "a0")
        below = ActionId("p", "d", "broken", "c")
        await client.enqueue(flyte.task(broken))
        await client.enqueue(flyte.task(below, "a0"))
        await change(etcd, keys.task_action(below), without_owner)
        await etcd.put(keys.task_action(broken), b"no object")
        await change(etcd, keys.task_action(named("c1")), without_owner)
        await change(etcd, keys.task_action(named("c2")), named_after_its_run)
        # Made again under its name, it is the parent: nothing tells that it is not.
        stored = await Store(etcd).get(keys.task_action(ROOT))
        assert stored is not None
        await etcd.delete(KeyRange.of_key(stored.key))
        await etcd.put(stored.key, stored.value)
        before = (await etcd.range(KeyRange.of_prefix(prefix))).kvs
        await OrphanCollector(Store(etcd), keys, unowned_only=unowned_only).sweep()
        assert (await etcd.range(KeyRange.of_prefix(prefix))).kvs == before


async def test_a_namesake_of_another_project_is_no_parent(etcd: Etcd, prefix: bytes) -> None:
    """Two projects' runs of one name share keys: whose is there shows in its value."""
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(named("c1"), "a0"))
        await delete_with_orphans(etcd, prefix, "c1")
        await client.enqueue(flyte.task(ActionId("other", "d", "r1", "a0")))
        await OrphanCollector(Store(etcd), keys).sweep()
        child = await client.get_task_action(named("c1"))
        assert child.phase is Phase.ABORTED


async def test_a_parent_that_appears_at_that_moment_keeps_its_child(
    etcd: Etcd, prefix: bytes
) -> None:
    """Each write compares that the parent is absent."""
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(named("c1"), "a0"))
        root = await Store(etcd).get(keys.task_action(ROOT))
        assert root is not None
        await delete_with_orphans(etcd, prefix, "c1")
        writes = 0

        async def late(txn: Txn) -> TxnResult:
            nonlocal writes
            writes += 1
            await etcd.put(root.key, root.value)
            return await etcd.txn(txn)

        await OrphanCollector(Store(etcd, late), keys).sweep()
        assert writes == 1
        assert (await client.get_task_action(named("c1"))).phase is Phase.UNSPECIFIED


async def test_owner_references_that_go_while_orphans_are_collected(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes takes them away one by one: what was listed before is collected all the same."""
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(named("c1"), "a0"))
        await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
        collect = OrphanCollector._collect

        async def disowned(self: OrphanCollector, *args: Any) -> Any:
            await change(etcd, keys.task_action(named("c1")), without_owner)
            return await collect(self, *args)

        monkeypatch.setattr(OrphanCollector, "_collect", disowned)
        await OrphanCollector(Store(etcd), keys).sweep()
        assert (await client.get_task_action(named("c1"))).phase is Phase.ABORTED


async def test_captured_children_whose_parent_was_orphaned_away(etcd: Etcd, prefix: bytes) -> None:
    """What a real API server wrote, but for the references that its collector takes away."""
    state = {put.key: put.value for put in PUTS if b"/rh7k2m9p4qv3-" in put.key}
    going_on = 0
    for key, value in state.items():
        namespace, _, name = key.removeprefix(b"/registry/flyte.org/taskactions/").partition(b"/")
        codec = codec_of(value)
        tree = codec.decode_tree(value)
        tree["metadata"].pop("ownerReferences", None)
        tree["status"] = {}
        tree["metadata"]["labels"].pop("flyte.org/terminal-status-recorded", None)
        if name.endswith(b"-a0"):
            continue
        if tree["spec"]["parentActionName"] in ("a0", "rh7k2m9p4qv3"):
            going_on += 1
        await etcd.put(prefix + namespace + b"/" + name, codec.encode_tree(tree))
    assert going_on
    await OrphanCollector(Store(etcd), Keyspace(prefix)).sweep()
    phases = {}
    for kv in (await etcd.range(KeyRange.of_prefix(prefix))).kvs:
        action = codec_of(kv.value).decode(kv.value)
        phases[action.action_id.name] = (action.parent in ("a0", "rh7k2m9p4qv3"), action.phase)
    assert len(phases) == len(state) - 1
    for orphaned, phase in phases.values():
        assert phase is (Phase.ABORTED if orphaned else Phase.UNSPECIFIED)
