"""Runs that an operator deletes: with a leader and without one, interrupted, and not yet ended."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from etcd_actions import ActionId, Phase, open_actions_client
from etcd_actions.actions.status import ActionStatus
from etcd_actions.blobs import BlobError
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import Delete, Etcd, KeyRange, Txn, TxnResult
from etcd_actions.runs.deletion import Deletion, Result, RunDeleter
from etcd_actions.runs.removal import Removed
from etcd_actions.storage.store import Store
from tests.runs.test_removal import Scene, _parts, scene
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually_holds

pytestmark = pytest.mark.memory(jumps=False)

__all__ = ["scene"]


def root(name: str) -> ActionId:
    return ActionId("p", "d", name, "a0")


def later() -> datetime:
    return datetime.now(UTC) + timedelta(minutes=1)


def deleter(scene: Scene, **settings: float) -> RunDeleter:
    return RunDeleter(scene.client, scene.blobs, clock=later, **settings)


async def delete(
    deleter: RunDeleter, *names: str, dry_run: bool = False, force: bool = False
) -> list[Deletion]:
    runs = [root(name) for name in names]
    return [each async for each in deleter.delete(runs, dry_run=dry_run, force=force)]


async def everything(scene: Scene) -> list[str]:
    return [*await scene.there(scene.keys.prefix), *await scene.there(scene.keys.own)]


async def test_all_of_a_run_goes_and_another_one_stays(scene: Scene) -> None:
    for name in ("r", "r-x"):
        await scene.run(name)
    before, data = await everything(scene), await scene.data()
    (planned,) = await delete(deleter(scene), "r", dry_run=True)
    assert (await everything(scene), await scene.data()) == (before, data)
    done, missing = await delete(deleter(scene), "r", "nowhere")
    assert done == planned
    assert done.result is Result.DELETED
    counted = done.removed
    assert (counted.records, counted.objects, counted.histories, counted.blobs) == (1, 2, 2, 2)
    assert done.blob_bytes == 8
    assert missing.result is Result.MISSING
    await eventually_holds(partial(scene.is_gone, "r"))
    assert await scene.is_whole("r-x")


async def test_a_run_that_has_not_ended_is_aborted_first_on_request(scene: Scene) -> None:
    await scene.run("r", children=2, open_child=True)
    (kept,) = await delete(deleter(scene), "r")
    assert (kept.result, kept.removed) == (Result.KEPT, Removed())
    assert kept.kept.startswith("c0 is UNSPECIFIED: abort it")
    (planned,) = await delete(deleter(scene), "r", dry_run=True, force=True)
    assert (planned.result, planned.aborted) == (Result.DELETED, 1)
    assert len(await scene.there(scene.keys.prefix)) == 3
    (done,) = await delete(deleter(scene), "r", force=True)
    assert (done.result, done.aborted, done.kept) == (Result.DELETED, 1, "")
    await eventually_holds(partial(scene.is_gone, "r"))


async def test_an_end_that_is_not_reported_keeps_its_run(etcd: Etcd, prefix: bytes) -> None:
    """Without a leader there is no report: nothing is deleted, whatever is requested."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(root("r")))
        await client.put_status(root("r"), 1, ActionStatus(Phase.SUCCEEDED))
        quick = RunDeleter(client, None, wait=0.2)
        for force in (False, True):
            (kept,) = await delete(quick, "r", force=force)
            assert (kept.result, kept.removed) == (Result.KEPT, Removed())
            assert "the end of a0 is not recorded yet" in kept.kept
            assert kept.kept.endswith("there is no leader now") == force
        assert len((await client.list_run_actions(root("r").run_id)).actions) == 1


async def test_a_foreign_finalizer_keeps_its_run(scene: Scene) -> None:
    await scene.run("r")
    key = scene.keys.task_action(ActionId("p", "d", "r", "c0"))
    kv = await scene.store.get(key)
    assert kv is not None
    value = kv.value.replace(b'"metadata":{', b'"metadata":{"finalizers":["other.io/f"],', 1)
    assert value != kv.value
    await scene.etcd.put(key, value)
    (kept,) = await delete(deleter(scene), "r", force=False)
    assert (kept.result, kept.removed) == (Result.KEPT, Removed())
    assert kept.kept == "c0 has the finalizer other.io/f, whose owner removes it"


async def test_a_run_without_a_record(scene: Scene) -> None:
    """As of a leader that serves no records."""
    await scene.run("r", children=3)
    await scene.etcd.txn(Txn([], [_delete(scene.keys.run_record(root("r")))]))
    (done,) = await delete(deleter(scene), "r")
    assert (done.result, done.removed.objects, done.removed.histories) == (Result.DELETED, 4, 4)
    assert await scene.left("r") == []


async def test_files_outside_the_store_are_named(scene: Scene) -> None:
    await scene.run("r")
    await scene.change_record("r", output_base="s3://elsewhere/r", input_uri="")
    (done,) = await delete(deleter(scene), "r")
    assert (done.result, done.files_elsewhere) == (Result.DELETED, "s3://elsewhere/r")


@pytest.mark.parametrize("record", first_everyday([True, False]), ids=["record", "no-record"])
async def test_an_interrupted_deletion_is_finished(
    scene: Scene, etcd: Etcd, prefix: bytes, record: bool
) -> None:
    """After each of its transactions in turn: it may be killed at any of them."""
    for writes in range(1, 4):
        name = f"r{writes}"
        await scene.run(name, children=120 if writes == 1 else 1)
        if not record:
            await scene.etcd.txn(Txn([], [_delete(scene.keys.run_record(root(name)))]))
        left = writes

        async def commit(txn: Txn) -> TxnResult:
            nonlocal left
            left -= any(isinstance(each, Delete) for each in txn.success)
            if left < 0:
                raise Unavailable("killed")
            return await etcd.txn(txn)

        async with open_actions_client(etcd, prefix=prefix) as client:
            interrupted = RunDeleter(client, scene.blobs, clock=later)
            interrupted._remover._store = Store(etcd, commit)
            try:
                await delete(interrupted, name)
            except Unavailable:
                assert await scene.left(name) != []
        (again,) = await delete(deleter(scene), name)
        assert again.result in (Result.DELETED, Result.MISSING)
        await eventually_holds(partial(scene.is_gone, name))


def _delete(key: bytes) -> Delete:
    return Delete(KeyRange.of_key(key))


async def test_inputs_that_a_run_without_a_record_uses_stay(scene: Scene) -> None:
    """Such as one whose record the leader has yet to write."""
    for name in ("r", "s"):
        await scene.run(name)
    inputs = "inputs/p/d/shared/inputs.pb"
    uri = scene.blobs.native_url(inputs)
    await scene.blobs.put(inputs, _parts(), most=10)
    live = flyte.task(root("live"))
    live.input_uri = uri
    await scene.client.enqueue(live)
    await scene.change_record("r", input_uri=uri)
    key = scene.keys.run_record(root("live"))
    await eventually_holds(partial(_exists, scene, key))
    await scene.etcd.delete(KeyRange.of_key(key))
    (done,) = await delete(deleter(scene), "r")
    assert done.result is Result.DELETED
    assert inputs in await scene.data()


async def test_inputs_that_were_uploaded_just_now_stay(scene: Scene) -> None:
    """A run with the same contents may be about to be created, and uploads them before."""
    inputs = "inputs/p/d/r/x/inputs.pb"
    await scene.run("r")
    await scene.blobs.put(inputs, _parts(), most=10)
    (done,) = await delete(deleter(scene), "r")
    assert (done.result, done.removed.blobs) == (Result.DELETED, 1)
    assert await scene.data() == [inputs]


async def test_a_run_whose_files_cannot_be_deleted_has_failed(scene: Scene) -> None:
    await scene.run("r")

    async def fails(key: str, *, unless_after: float | None = None) -> bool:
        raise BlobError("the disk is away")

    scene.blobs.delete = fails  # type: ignore[method-assign]
    (failed,) = await delete(deleter(scene), "r")
    assert failed.result is Result.FAILED
    assert failed.kept == "its files cannot be deleted: the disk is away"


async def test_inputs_that_a_run_uses_since_the_deletion_began_stay(scene: Scene) -> None:
    for name in ("one", "two"):
        await scene.run(name)
    inputs = "inputs/p/d/two/x/inputs.pb"
    runs = [root(name) for name in ("one", "two")]
    async with aclosing(deleter(scene, fresh=0).delete(runs)) as deletions:
        assert (await anext(deletions)).result is Result.DELETED
        live = flyte.task(root("live"))
        live.input_uri = scene.blobs.native_url(inputs)
        await scene.client.enqueue(live)
        assert (await anext(deletions)).result is Result.DELETED
    assert inputs in await scene.data()


async def _exists(scene: Scene, key: bytes) -> bool:
    return await scene.store.get(key) is not None
