"""What our own run service keeps, told in whatever order, on a real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import trio

from etcd_actions import ActionId, ActionsClient, Phase, StoredAction, open_actions_client
from etcd_actions.actions.status import ActionStatus
from etcd_actions.errors import NoSpace, RunServiceRejected, RunServiceUnavailable
from etcd_actions.etcd.api import Etcd, Put, Txn, TxnResult
from etcd_actions.model import ActionUpdate, ErrorState, Keyspace, build_action_update
from etcd_actions.run_service.fan_out import BothRunServices
from etcd_actions.runs.own_run_service import OwnRunService, open_own_run_service
from etcd_actions.runs.run_record import (
    ActionHistory,
    RunRecord,
    decode_history,
    decode_record,
    encode,
)
from etcd_actions.storage.store import Store
from tests.record.test_outbox import Scripted
from tests.support import flyte
from tests.support.scene import PROCESSOR
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")
ERROR = ErrorState(code="Boom", kind="USER", message="it broke")


@pytest.fixture
def keys(prefix: bytes) -> Keyspace:
    return Keyspace(prefix)


@pytest.fixture
def store(etcd: Etcd) -> Store:
    return Store(etcd)


@pytest.fixture
async def writer(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    """Writes objects, and watches nothing."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


async def record_of(store: Store, keys: Keyspace) -> RunRecord:
    kv = await store.get(keys.run_record(ROOT))
    assert kv is not None
    return decode_record(kv.value)


async def history_in(store: Store, keys: Keyspace, action_id: ActionId) -> ActionHistory | None:
    kv = await store.get(keys.history(action_id))
    return None if kv is None else decode_history(kv.value)


def update_of(action: StoredAction, **changes: Any) -> ActionUpdate:
    update = build_action_update(
        action,
        key=action.key,
        revision=action.revision,
        create_revision=action.create_revision,
        deleted=changes.pop("deleted", False),
    )
    return msgspec.structs.replace(update, **changes)


async def put(
    client: ActionsClient,
    phase: Phase,
    attempt: int = 1,
    *,
    action_id: ActionId = ROOT,
    error: ErrorState | None = None,
    before: ErrorState | None = None,
) -> StoredAction:
    return await client.put_status(
        action_id, attempt, ActionStatus(phase), error=error, error_before=before
    )


async def tell(own: OwnRunService, action: StoredAction) -> None:
    await own.record_action(update_of(action), action)
    await own.update_action_state(update_of(action), action)


@pytest.mark.network
async def test_a_run_without_a_record_gets_one_and_its_states(
    writer: ActionsClient, store: Store, keys: Keyspace
) -> None:
    own = OwnRunService(store, keys)
    await writer.enqueue(flyte.task(ROOT))
    queued = await put(writer, Phase.QUEUED)
    await tell(own, queued)
    record = await record_of(store, keys)
    assert (record.project, record.domain, record.name) == ("p", "d", "r1")
    assert (record.task.name, record.short_name, record.input_uri) == ("f", "f", "s3://in/a0")
    assert record.status is not None
    assert (record.status.phase, record.status.started) == (Phase.QUEUED, None)
    running = await put(writer, Phase.RUNNING)
    failed = await put(writer, Phase.FAILED, error=ERROR)
    for action in (running, failed):
        await tell(own, action)
    status = (await record_of(store, keys)).status
    assert status is not None
    assert (status.phase, status.revision) == (Phase.FAILED, failed.revision)
    assert status.started is not None
    assert status.ended is not None
    assert status.failure is not None
    assert status.failure.message == "it broke"
    history = await history_in(store, keys, ROOT)
    assert history is not None
    (attempt,) = history.attempts
    assert [each.phase for each in attempt.transitions] == [
        Phase.QUEUED,
        Phase.RUNNING,
        Phase.FAILED,
    ]
    assert attempt.failure == status.failure
    assert attempt.has_log


async def test_a_record_that_was_made_with_its_run_keeps_what_it_says(
    etcd: Etcd, writer: ActionsClient, store: Store, keys: Keyspace
) -> None:
    own = OwnRunService(store, keys)
    await writer.enqueue(flyte.task(ROOT))
    action = await put(writer, Phase.QUEUED)
    created = action.metadata.created_at
    assert created is not None
    made = RunRecord(project="p", domain="d", name="r1", run_spec=b"spec", created=created)
    await etcd.txn(Txn([], [Put(keys.run_record(ROOT), encode(made))]))
    await tell(own, action)
    record = await record_of(store, keys)
    assert record.status is not None
    assert msgspec.structs.replace(record, status=None) == made


async def test_no_order_of_calls_brings_an_older_state_back(
    writer: ActionsClient, store: Store, keys: Keyspace
) -> None:
    """Repeated, late, and from a service that has seen nothing of the others' calls."""
    await writer.enqueue(flyte.task(ROOT))
    states = [
        await put(writer, Phase.QUEUED),
        await put(writer, Phase.RUNNING),
        await put(writer, Phase.QUEUED, 2, before=ERROR),
        await put(writer, Phase.SUCCEEDED, 2),
    ]
    leader, old = OwnRunService(store, keys), OwnRunService(store, keys)
    await tell(old, states[0])
    await tell(leader, states[3])
    record, history = await record_of(store, keys), await history_in(store, keys, ROOT)
    for late in (0, 1, 2, 3, 0):
        await tell(old, states[late])
        await tell(leader, states[late])
        assert await record_of(store, keys) == record
        assert await history_in(store, keys, ROOT) == history
    assert record.status is not None
    assert record.status.phase == Phase.SUCCEEDED
    assert history is not None
    assert [each.failure and each.failure.code for each in history.attempts] == ["Boom", None]


async def test_a_run_that_is_made_again_starts_anew(
    etcd: Etcd, writer: ActionsClient, store: Store, keys: Keyspace
) -> None:
    own = OwnRunService(store, keys)
    await writer.enqueue(flyte.task(ROOT))
    before = await put(writer, Phase.FAILED, error=ERROR)
    await tell(own, before)
    seen = await store.get(keys.task_action(ROOT))
    assert seen is not None
    await store.compare_and_delete(seen)
    await writer.enqueue(flyte.task(ROOT, name="g"))
    after = await put(writer, Phase.RUNNING)
    await tell(own, after)
    record = await record_of(store, keys)
    assert record.task.name == "g"
    assert record.status is not None
    assert (record.status.failure, record.status.ended) == (None, None)
    # The deletion of the one before comes late, from a leader of old.
    gone = update_of(before, deleted=True, revision=after.revision + 1)
    await own.update_action_state(gone, None)
    await tell(OwnRunService(store, keys), before)
    assert await record_of(store, keys) == record
    await tell(own, await put(writer, Phase.SUCCEEDED))
    history = await history_in(store, keys, ROOT)
    assert history is not None
    assert history.create_revision == after.create_revision
    assert [each.failure for each in history.attempts] == [None]


async def test_a_deletion_ends_what_went_on(
    writer: ActionsClient, store: Store, keys: Keyspace
) -> None:
    own = OwnRunService(store, keys)
    await writer.enqueue(flyte.task(ROOT))
    action = await put(writer, Phase.RUNNING)
    await tell(own, action)
    gone = update_of(action, deleted=True, revision=action.revision + 1)
    await own.update_action_status(gone)
    await own.update_action_status(gone)
    status = (await record_of(store, keys)).status
    assert status is not None
    assert status.ended is not None
    assert status.phase == Phase.ABORTED
    history = await history_in(store, keys, ROOT)
    assert history is not None
    assert [each.phase for each in history.attempts] == [Phase.ABORTED]


async def test_only_what_its_object_will_not_say_is_written(
    writer: ActionsClient, store: Store, keys: Keyspace
) -> None:
    """A child costs one write, at its end, and one for each attempt after the first."""
    own = OwnRunService(store, keys)
    await writer.enqueue(flyte.task(ROOT))
    await writer.enqueue(flyte.task(CHILD, "a0"))
    for phase in (Phase.QUEUED, Phase.RUNNING):
        await tell(own, await put(writer, phase, action_id=CHILD))
    assert await store.get(keys.history(CHILD)) is None
    await tell(own, await put(writer, Phase.QUEUED, 2, action_id=CHILD, before=ERROR))
    written = await store.get(keys.history(CHILD))
    assert written is not None
    await tell(own, await put(writer, Phase.RUNNING, 2, action_id=CHILD))
    assert await store.get(keys.history(CHILD)) == written
    await tell(own, await put(writer, Phase.SUCCEEDED, 2, action_id=CHILD))
    last = await store.get(keys.history(CHILD))
    assert last is not None
    assert last.version == 2
    assert await store.get(keys.run_record(ROOT)) is None


async def test_what_another_store_had_written_is_replaced(
    etcd: Etcd, writer: ActionsClient, store: Store, keys: Keyspace
) -> None:
    """Copied from there it is about revisions that this store has not come to."""
    own = OwnRunService(store, keys)
    await writer.enqueue(flyte.task(ROOT))
    action = await put(writer, Phase.FAILED, error=ERROR)
    await tell(own, action)
    copied = await record_of(store, keys)
    assert copied.status is not None
    status = msgspec.structs.replace(
        copied.status, create_revision=10**12, revision=10**12 + 1, phase=Phase.RUNNING.value
    )
    value = encode(msgspec.structs.replace(copied, status=status))
    await etcd.txn(Txn([], [Put(keys.run_record(ROOT), value)]))
    await tell(OwnRunService(store, keys), action)
    assert (await record_of(store, keys)).status == copied.status


@pytest.mark.parametrize("value", [b"", b"{", b'{"form":1}', b"\xff" * 10, b"[" * 100_000])
async def test_garbage_is_replaced(
    etcd: Etcd, writer: ActionsClient, store: Store, keys: Keyspace, value: bytes
) -> None:
    await writer.enqueue(flyte.task(ROOT))
    action = await put(writer, Phase.SUCCEEDED)
    puts = [Put(keys.run_record(ROOT), value), Put(keys.history(ROOT), value)]
    await etcd.txn(Txn([], puts))
    await tell(OwnRunService(store, keys), action)
    status = (await record_of(store, keys)).status
    assert status is not None
    assert status.phase == Phase.SUCCEEDED
    assert await history_in(store, keys, ROOT) is not None


async def test_what_a_later_version_wrote_is_left_alone(
    etcd: Etcd, writer: ActionsClient, store: Store, keys: Keyspace
) -> None:
    await writer.enqueue(flyte.task(ROOT))
    action = await put(writer, Phase.SUCCEEDED)
    later = b'{"form":2,"project":"p","domain":"d","name":"r1","created":"2026-01-01T00:00:00Z"}'
    await etcd.txn(Txn([], [Put(keys.run_record(ROOT), later)]))
    with pytest.raises(RunServiceRejected, match="newest version"):
        await OwnRunService(store, keys).update_action_state(update_of(action), action)
    kv = await store.get(keys.run_record(ROOT))
    assert kv is not None
    assert kv.value == later


async def test_while_etcd_does_not_write_it_is_unavailable(
    etcd: Etcd, writer: ActionsClient, keys: Keyspace
) -> None:
    async def full(_: Txn) -> TxnResult:
        raise NoSpace("no space")

    await writer.enqueue(flyte.task(ROOT))
    action = await put(writer, Phase.SUCCEEDED)
    own = OwnRunService(Store(etcd, full), keys)
    with pytest.raises(RunServiceUnavailable, match="no space"):
        await own.update_action_state(update_of(action), action)


async def test_a_call_that_is_cancelled_may_be_made_again(
    writer: ActionsClient, etcd: Etcd, store: Store, keys: Keyspace
) -> None:
    sent = trio.Event()

    async def slow(txn: Txn) -> TxnResult:
        result = await etcd.txn(txn)
        sent.set()
        await trio.sleep_forever()
        return result

    await writer.enqueue(flyte.task(ROOT))
    action = await put(writer, Phase.SUCCEEDED)
    own = OwnRunService(Store(etcd, slow), keys)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own.update_action_state, update_of(action), action)
        await sent.wait()
        nursery.cancel_scope.cancel()
    first = await store.get(keys.run_record(ROOT))
    await tell(OwnRunService(store, keys), action)
    assert await store.get(keys.run_record(ROOT)) == first


async def test_texts_are_bounded(writer: ActionsClient, store: Store, keys: Keyspace) -> None:
    long = ErrorState(code="C" * 5000, kind="USER", message="ä" * 30_000 + "end")
    await writer.enqueue(flyte.task(ROOT))
    await put(writer, Phase.QUEUED)
    for attempt in range(2, 60):
        await put(writer, Phase.QUEUED, attempt, before=long)
    action = await put(writer, Phase.FAILED, 59, error=long)
    await tell(OwnRunService(store, keys), action)
    assert len(action.metadata.annotations["etcd-actions.io/attempts"]) < 17 * 1024
    status = (await record_of(store, keys)).status
    assert status is not None
    assert status.failure is not None
    assert len(status.failure.message) == 4096
    assert status.failure.message.endswith("end")
    history = await history_in(store, keys, ROOT)
    assert history is not None
    assert [each.number for each in history.attempts] == list(range(1, 60))


async def test_a_rejection_by_one_does_not_withhold_the_other(
    writer: ActionsClient, store: Store, keys: Keyspace
) -> None:
    await writer.enqueue(flyte.task(ROOT))
    action = await put(writer, Phase.SUCCEEDED)
    external = Scripted()
    both = BothRunServices(OwnRunService(store, keys), external)
    rejected = RunServiceRejected("never", code=3)
    external.failures["record", "a0"] = [rejected]
    with pytest.raises(RunServiceRejected, match="never"):
        await both.record_action(update_of(action), action)
    await both.update_action_state(update_of(action), action)
    assert (await record_of(store, keys)).status is not None
    assert external.of("a0") == [Phase.SUCCEEDED]

    class Rejects(OwnRunService):
        async def update_action_state(self, update: ActionUpdate, action: object) -> None:
            raise RunServiceRejected("own", code=3)

    both = BothRunServices(Rejects(store, keys), external)
    external.failures["status", "a0"] = [RunServiceUnavailable("later")]
    with pytest.raises(RunServiceUnavailable, match="later"):
        await both.update_action_state(update_of(action), action)
    with pytest.raises(RunServiceRejected, match="own"):
        await both.update_action_state(update_of(action), action)
    assert external.of("a0") == [Phase.SUCCEEDED, Phase.SUCCEEDED]


async def test_a_leader_keeps_what_its_watch_shows(
    etcd: Etcd, prefix: bytes, store: Store, keys: Keyspace
) -> None:
    """From the write to the mark, with an election: nothing is held, nothing is told late."""
    settings = replace(PROCESSOR, elect=True)
    async with (
        open_own_run_service(etcd, keys) as own,
        open_actions_client(etcd, prefix=prefix, run_service=own, settings=settings) as client,
    ):
        await client.start_watching()
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(CHILD, "a0"))
        await put(client, Phase.RUNNING)
        await put(client, Phase.QUEUED, 2, action_id=CHILD, before=ERROR)
        await put(client, Phase.SUCCEEDED, 2, action_id=CHILD)
        await put(client, Phase.SUCCEEDED)
        await eventually(lambda: client.statistics().marks.get("marked", 0) == 2)
    status = (await record_of(store, keys)).status
    assert status is not None
    assert status.phase == Phase.SUCCEEDED
    history = await history_in(store, keys, CHILD)
    assert history is not None
    assert (history.run, history.name) == ("r1", "c1")
    assert [each.failure and each.failure.message for each in history.attempts] == [
        "it broke",
        None,
    ]
