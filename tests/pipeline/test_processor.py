"""The processor on a real etcd: start, stop, tell, mark."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from etcd_actions import (
    ActionId,
    ActionObject,
    ActionUpdate,
    Phase,
    Subscription,
    WatchingSettings,
    open_etcd,
)
from etcd_actions._internal.backoff import Backoff
from etcd_actions.codecs import json
from etcd_actions.errors import InvalidRequest, PermissionDenied
from etcd_actions.etcd.api import Etcd, KeyRange, RangeResult
from etcd_actions.follow import Handler
from etcd_actions.follow.workqueue import WorkQueueSettings
from etcd_actions.pipeline.processor import Processor, open_processor
from etcd_actions.run_service import RunService
from etcd_actions.testing import MemoryStore
from etcd_actions.watch import Change
from tests.data.captured import PUTS
from tests.support.endings import marked as as_marked
from tests.support.etcd_server import EtcdServer, free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

# The captured actions are stored one by one, without their parents.
_ALONE = WatchingSettings(elect=False, collect_orphans=False)
_FAST = replace(_ALONE, queue=WorkQueueSettings(backoff=Backoff(initial=0.01, cap=0.05)))
_ROOT = ActionId("flytesnacks", "development", "rh7k2m9p4qv3", "a0")


def captured(name: str, phase: Phase, *, recorded: bool = False) -> bytes:
    """The captured value of an action in a phase, as the API server wrote it."""
    for put in PUTS:
        action = json.decode(put.value)
        if (action.metadata.name, action.phase, action.is_recorded) == (name, phase, recorded):
            return put.value
    raise LookupError(name)


RUNNING = captured("rh7k2m9p4qv3-a1", Phase.RUNNING)
SUCCEEDED = captured("rh7k2m9p4qv3-a1", Phase.SUCCEEDED)


async def value_of(etcd: Etcd, key: bytes) -> ActionObject:
    return json.decode((await etcd.range(KeyRange.of_key(key))).kvs[0].value)


class RecordingRunService(RunService):
    """Accepts, refuses or hangs as told; keeps what it accepted."""

    def __init__(self) -> None:
        self.refusals = 0
        self.hang: trio.Event | None = None
        self.records: list[ActionUpdate] = []
        self.statuses: list[ActionUpdate] = []
        self.attempts = 0

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        return True

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        await self._answer()
        self.records.append(update)

    async def update_action_status(self, update: ActionUpdate) -> None:
        await self._answer()
        self.statuses.append(update)

    async def _answer(self) -> None:
        self.attempts += 1
        if self.hang is not None:
            await self.hang.wait()
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("refused")


async def test_an_ending_is_told_and_marked_once(etcd: Etcd, prefix: bytes) -> None:
    """Subscribers see the change, then the mark; the bytes differ in the label only."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    async with open_processor(etcd, prefix=prefix, settings=_ALONE) as processor:
        await processor.start_watching()
        async with processor.subscribe(_ROOT) as updates:
            with trio.fail_after(60):
                for value, phase in ((RUNNING, Phase.RUNNING), (SUCCEEDED, Phase.SUCCEEDED)):
                    await etcd.put(key, value)
                    update = await updates.receive()
                    assert (update.phase, update.recorded) == (phase, False)
                marked = await updates.receive()
            assert (marked.phase, marked.recorded) == (Phase.SUCCEEDED, True)
        await eventually(lambda: processor.statistics().marks == {"marked": 1})
    (kv,) = (await etcd.range(KeyRange.of_key(key))).kvs
    assert kv.version == 3
    assert kv.value == as_marked(SUCCEEDED, kv.create_revision)


async def test_what_was_there_before_the_start_is_handled_too(etcd: Etcd, prefix: bytes) -> None:
    """Unmarked endings in etcd are the queue that survives a crash; marked ones are left alone."""
    left, done = prefix + b"flyte/rh7k2m9p4qv3-a1", prefix + b"flyte/rh7k2m9p4qv3-a2"
    await etcd.put(left, SUCCEEDED)
    await etcd.put(done, captured("rh7k2m9p4qv3-a2", Phase.SUCCEEDED, recorded=True))
    async with open_processor(etcd, prefix=prefix, settings=_ALONE) as processor:
        async with processor.subscribe(_ROOT) as updates:
            await processor.start_watching()
            with trio.fail_after(60):
                told = {(await updates.receive()).name for _ in range(2)}
        assert told == {"rh7k2m9p4qv3-a1", "rh7k2m9p4qv3-a2"}
        await eventually(lambda: processor.statistics().marks == {"marked": 1})
    assert (await value_of(etcd, left)).is_recorded
    assert (await etcd.range(KeyRange.of_key(done))).kvs[0].version == 1


async def test_the_lease_of_a_marked_key_stays(etcd: Etcd, prefix: bytes) -> None:
    """The mark is a read-modify-write: nothing else changes."""
    lease = await etcd.lease_grant(60)
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    await etcd.put(key, SUCCEEDED, lease=lease.id)
    async with open_processor(etcd, prefix=prefix, settings=_ALONE) as processor:
        await processor.start_watching()
        await eventually(lambda: processor.statistics().marks == {"marked": 1})
    assert (await etcd.range(KeyRange.of_key(key))).kvs[0].lease == lease.id


async def test_a_namespace_is_watched_alone(etcd: Etcd, prefix: bytes) -> None:
    """Others' objects are neither told nor marked."""
    await etcd.put(prefix + b"other/rh7k2m9p4qv3-a1", SUCCEEDED)
    await etcd.put(prefix + b"flyte/rh7k2m9p4qv3-a1", SUCCEEDED)
    async with open_processor(etcd, prefix=prefix, namespace="flyte", settings=_ALONE) as processor:
        await processor.start_watching()
        await eventually(lambda: processor.statistics().marks == {"marked": 1})
    assert not (await value_of(etcd, prefix + b"other/rh7k2m9p4qv3-a1")).is_recorded


async def test_nothing_is_marked_before_it_was_accepted(etcd: Etcd, prefix: bytes) -> None:
    """A run service that refuses is asked again, for ever; then record, status, mark."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    service = RecordingRunService()
    service.refusals = 5
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=_FAST
    ) as processor:
        await processor.start_watching()
        await etcd.put(key, SUCCEEDED)
        await eventually(lambda: service.attempts >= 3)
        outbox = processor.statistics().outbox
        assert outbox is not None
        assert [failing.key for failing in outbox.failing] == [key]
        await eventually(lambda: processor.statistics().marks == {"marked": 1})
        assert [update.phase for update in service.statuses] == [Phase.SUCCEEDED]
        assert len(service.records) == 1
        assert service.refusals == 0


async def test_a_hung_run_service_slows_no_subscriber(etcd: Etcd, prefix: bytes) -> None:
    """States go on to subscribers; the run service gets the last one when it answers again."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    service = RecordingRunService()
    service.hang = trio.Event()
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=_ALONE
    ) as processor:
        await processor.start_watching()
        async with processor.subscribe(_ROOT) as updates:
            await etcd.put(key, RUNNING)
            with trio.fail_after(60):
                assert (await updates.receive()).phase is Phase.RUNNING
            await eventually(lambda: service.attempts == 1)
            await etcd.put(key, SUCCEEDED)
            with trio.fail_after(60):
                assert (await updates.receive()).phase is Phase.SUCCEEDED
            assert service.statuses == []
            service.hang.set()
            await eventually(lambda: processor.statistics().marks == {"marked": 1})
        assert [update.phase for update in service.statuses] == [Phase.RUNNING, Phase.SUCCEEDED]
        assert len(service.records) == 1


async def test_a_deletion_before_the_end_aborts(etcd: Etcd, prefix: bytes) -> None:
    """From what was remembered: etcd sends no value with a delete."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    service = RecordingRunService()
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=_ALONE
    ) as processor:
        await processor.start_watching()
        async with processor.subscribe(_ROOT) as updates:
            await etcd.put(key, RUNNING)
            with trio.fail_after(60):
                running = await updates.receive()
            await etcd.delete(KeyRange.of_key(key))
            with trio.fail_after(60):
                gone = await updates.receive()
        assert (gone.phase, gone.is_deleted, gone.partial) == (Phase.ABORTED, True, True)
        assert (gone.uid, gone.output_uri) == (running.uid, running.output_uri)
        await eventually(lambda: len(service.statuses) == 2)
        assert service.statuses[-1].phase is Phase.ABORTED
        assert processor.statistics().marks == {}


async def test_a_recreated_action_is_recorded_again(etcd: Etcd, prefix: bytes) -> None:
    """Another incarnation under the same name is another action to the run service."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    service = RecordingRunService()
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=_ALONE
    ) as processor:
        await processor.start_watching()
        for count in (1, 2):
            await etcd.put(key, RUNNING)
            await eventually(lambda count=count: len(service.records) == count)  # type: ignore[misc]
            await etcd.delete(KeyRange.of_key(key))
        await eventually(lambda: len(service.statuses) == 4)


@pytest.mark.parametrize("value", [b"", b"garbage", b'{"kind":"Pod"}', SUCCEEDED[:-100]])
async def test_bad_data_hurts_only_itself(etcd: Etcd, prefix: bytes, value: bytes) -> None:
    """It is counted and set aside; other keys flow; the next good write heals it."""
    bad, good = prefix + b"flyte/rh7k2m9p4qv3-a1", prefix + b"flyte/rh7k2m9p4qv3-a2"
    async with open_processor(etcd, prefix=prefix, settings=_ALONE) as processor:
        await processor.start_watching()
        await etcd.put(bad, value)
        await etcd.put(good, SUCCEEDED)
        await eventually(lambda: processor.statistics().marks == {"marked": 1})
        assert list(processor.statistics().undecodable) == [bad]
        await etcd.put(bad, SUCCEEDED)
        await eventually(lambda: processor.statistics().marks == {"marked": 2})
        assert processor.statistics().undecodable == {}
        assert processor.statistics().decode_errors == 1


async def test_a_change_by_another_writer_is_never_overwritten(etcd: Etcd, prefix: bytes) -> None:
    """The object changes between acceptance and mark: the mark goes onto the new bytes."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    edited = json.add_label(SUCCEEDED, "team", "blue")
    service = RecordingRunService()
    service.hang = trio.Event()
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=_ALONE
    ) as processor:
        await processor.start_watching()
        await etcd.put(key, SUCCEEDED)
        await eventually(lambda: service.attempts == 1)
        await etcd.put(key, edited)
        service.hang.set()
        await eventually(lambda: processor.statistics().marks.get("marked") == 1)
    (kv,) = (await etcd.range(KeyRange.of_key(key))).kvs
    assert kv.value == as_marked(edited, kv.create_revision)


async def test_another_ending_is_told_before_it_is_marked(etcd: Etcd, prefix: bytes) -> None:
    """What was accepted no longer holds: no mark for it, the new state is handled."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    tree = json.decode_tree(SUCCEEDED)
    tree["status"]["attempts"] = 2
    service = RecordingRunService()
    service.hang = trio.Event()
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=_ALONE
    ) as processor:
        await processor.start_watching()
        await etcd.put(key, SUCCEEDED)
        await eventually(lambda: service.attempts == 1)
        await etcd.put(key, json.encode_tree(tree))
        service.hang.set()
        await eventually(lambda: processor.statistics().marks.get("marked") == 1)
        assert processor.statistics().marks == {"superseded": 1, "marked": 1}
        assert [update.attempts for update in service.statuses] == [1, 2]


async def test_starting_twice_is_harmless(etcd: Etcd, prefix: bytes) -> None:
    """Side by side, too: one watch, one mark."""
    async with open_processor(etcd, prefix=prefix, settings=_ALONE) as processor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(processor.start_watching)
            nursery.start_soon(processor.start_watching)
        await processor.start_watching()
        await etcd.put(prefix + b"flyte/rh7k2m9p4qv3-a1", SUCCEEDED)
        await eventually(lambda: processor.statistics().marks == {"marked": 1})
        reflector = processor.statistics().reflector
        assert reflector is not None
        await eventually(lambda: processor.statistics().handlers.handled == 2)  # type: ignore[union-attr]


async def test_stopping_drains_and_starting_again_goes_on(etcd: Etcd, prefix: bytes) -> None:
    """Work at hand is finished; what happened meanwhile, a deletion too, is told at the start."""
    kept, gone = prefix + b"flyte/rh7k2m9p4qv3-a1", prefix + b"flyte/rh7k2m9p4qv3-a2"
    async with open_processor(etcd, prefix=prefix, settings=_ALONE) as processor:
        await processor.stop_watching()
        await processor.start_watching()
        await etcd.put(gone, captured("rh7k2m9p4qv3-a2", Phase.RUNNING))
        await eventually(lambda: processor.statistics().handlers.handled == 1)  # type: ignore[union-attr]
        await processor.stop_watching()
        assert not processor.statistics().watching
        await etcd.put(kept, SUCCEEDED)
        await etcd.delete(KeyRange.of_key(gone))
        async with processor.subscribe(_ROOT) as updates:
            await processor.start_watching()
            with trio.fail_after(60):
                told: dict[str, tuple[Phase, bool]] = {}
                # The list is made where the watch ended: what was deleted since is in it.
                while len(told) < 2 or not told["rh7k2m9p4qv3-a2"][1]:
                    update = await updates.receive()
                    told[update.name] = (update.phase, update.is_deleted)
        assert told["rh7k2m9p4qv3-a2"] == (Phase.ABORTED, True)
        assert told["rh7k2m9p4qv3-a1"] == (Phase.SUCCEEDED, False)


async def test_a_grace_period_bounds_the_drain(etcd: Etcd, prefix: bytes) -> None:
    """A run service that hangs cannot hold the process."""
    service = RecordingRunService()
    service.hang = trio.Event()
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=_ALONE
    ) as processor:
        await processor.start_watching()
        await etcd.put(prefix + b"flyte/rh7k2m9p4qv3-a1", SUCCEEDED)
        await eventually(lambda: service.attempts == 1)
        with trio.fail_after(60):
            await processor.stop_watching(grace=0.05)
    assert not (await value_of(etcd, prefix + b"flyte/rh7k2m9p4qv3-a1")).is_recorded


class _Refusing:
    """An etcd that refuses to be listed, once."""

    def __init__(self, etcd: Etcd, error: Exception) -> None:
        self._etcd = etcd
        self._error: Exception | None = error

    def __getattr__(self, name: str) -> object:
        if name == "range" and self._error is not None:
            return self._fail
        return getattr(self._etcd, name)

    async def _fail(self, keys: KeyRange, **options: Any) -> RangeResult:
        await trio.lowlevel.checkpoint()
        # What is looked at besides is not refused.
        if self._error is None or not keys.start.endswith(b"/taskactions/"):
            return await self._etcd.range(keys, **options)
        raised, self._error = self._error, None
        raise raised


@pytest.mark.parametrize("error", [PermissionDenied("no"), InvalidRequest("what")])
async def test_a_failed_start_leaves_nothing_behind(
    etcd: Etcd, prefix: bytes, error: Exception
) -> None:
    """The bare error is raised, no task stays, and the next start works."""
    refusing = _Refusing(etcd, error)
    async with open_processor(
        refusing,  # type: ignore[arg-type]
        prefix=prefix,
        settings=_ALONE,
    ) as processor:
        tasks = len(trio.lowlevel.current_task().parent_nursery.child_tasks)  # type: ignore[union-attr]
        with pytest.raises(type(error)):
            await processor.start_watching()
        assert not processor.statistics().watching
        assert len(processor._nursery.child_tasks) == 0
        assert tasks == len(trio.lowlevel.current_task().parent_nursery.child_tasks)  # type: ignore[union-attr]
        await processor.start_watching()
        await etcd.put(prefix + b"flyte/rh7k2m9p4qv3-a1", SUCCEEDED)
        await eventually(lambda: processor.statistics().marks == {"marked": 1})


@pytest.mark.network
async def test_a_start_waits_for_etcd(tmp_path_factory: pytest.TempPathFactory) -> None:
    """etcd comes later than we do: no error, and all works once it is there."""
    server = EtcdServer(tmp_path_factory.mktemp("late"))
    async with (
        open_etcd(server.endpoint) as etcd,
        open_processor(etcd, settings=_ALONE) as processor,
        trio.open_nursery() as nursery,
    ):
        with trio.move_on_after(0.2) as scope:
            await processor.start_watching()
        assert scope.cancelled_caught
        assert len(processor._nursery.child_tasks) == 0
        nursery.start_soon(processor.start_watching)
        try:
            await trio.to_thread.run_sync(server.start)
            await eventually(lambda: processor.statistics().watching)
            await etcd.put(b"/registry/flyte.org/taskactions/flyte/rh7k2m9p4qv3-a1", SUCCEEDED)
            await eventually(lambda: processor.statistics().marks == {"marked": 1})
        finally:
            server.stop()


async def test_cancelling_everything_leaves_no_thread(
    shared_etcd: EtcdServer, prefix: bytes
) -> None:
    """A processor that is cancelled in full flight is gone."""
    before = threading.active_count()
    for _ in range(5):
        with trio.CancelScope() as scope:
            async with (
                open_etcd(shared_etcd.endpoint) as etcd,
                open_processor(etcd, prefix=prefix, settings=_ALONE) as processor,
            ):
                await processor.start_watching()
                await etcd.put(prefix + b"flyte/rh7k2m9p4qv3-a1", SUCCEEDED)
                scope.cancel()
                await trio.lowlevel.checkpoint()
    await eventually(lambda: threading.active_count() <= before + 1)


async def test_values_dropped_above_the_limit_are_read_again(etcd: Etcd, prefix: bytes) -> None:
    """With no room for values at all everything is told and marked all the same."""
    settings = replace(_ALONE, queue=WorkQueueSettings(soft_bytes=0, backoff=_FAST.queue.backoff))
    for number in range(50):
        await etcd.put(prefix + b"flyte/rh7k2m9p4qv3-x%d" % number, SUCCEEDED)
    async with open_processor(etcd, prefix=prefix, settings=settings) as processor:
        await processor.start_watching()
        await eventually(lambda: processor.statistics().marks == {"marked": 50})
        outbox = processor.statistics().outbox
        assert outbox is not None
        assert outbox.dropped_values > 40


async def test_statistics_before_the_first_start(etcd: Etcd) -> None:
    """Nothing to tell is no error."""
    async with open_processor(etcd, settings=_ALONE) as processor:
        statistics = processor.statistics()
        assert isinstance(processor, Processor)
        assert (statistics.watching, statistics.reflector, statistics.marks) == (False, None, {})


async def test_a_deletion_that_was_not_accepted_is_told_after_a_restart(
    etcd: Etcd, prefix: bytes
) -> None:
    """It is in no list any more: what is remembered of the key is kept until then."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    service = RecordingRunService()
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=_FAST
    ) as processor:
        await processor.start_watching()
        await etcd.put(key, RUNNING)
        await eventually(lambda: len(service.statuses) == 1)
        service.refusals = 10**9
        await etcd.delete(KeyRange.of_key(key))
        await eventually(lambda: bool(processor.statistics().outbox.failing))  # type: ignore[union-attr]
        await processor.stop_watching(grace=0.05)
        service.refusals = 0
        await processor.start_watching()
        await eventually(lambda: len(service.statuses) == 2)
    assert (service.statuses[1].phase, service.statuses[1].is_deleted) == (Phase.ABORTED, True)


@pytest.mark.parametrize("elect", [True, False])
async def test_an_end_that_came_while_nothing_was_watched_is_reported_after_a_restart(
    etcd: Etcd, prefix: bytes, elect: bool
) -> None:
    """The object was deleted since: history still has its end, the newest list has not."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    service = RecordingRunService()
    settings = replace(_FAST, elect=elect)
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=settings
    ) as processor:
        await processor.start_watching()
        await etcd.put(key, RUNNING)
        await eventually(lambda: len(service.statuses) == 1)
        await processor.stop_watching()
        await etcd.put(key, SUCCEEDED)
        await etcd.delete(KeyRange.of_key(key))
        await processor.start_watching()
        await eventually(lambda: service.statuses[-1].is_deleted)
    assert Phase.ABORTED not in {each.phase for each in service.statuses}
    assert service.statuses[-1].phase is Phase.SUCCEEDED


async def test_a_start_that_was_given_up_forgets_nothing(
    prefix: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """The next one lists where the last watch ended, not where the one without a list did."""
    key, store, service = prefix + b"flyte/rh7k2m9p4qv3-a1", MemoryStore(), RecordingRunService()
    etcd, other = store.client(), store.client()
    settings = replace(_FAST, elect=False)
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=settings
    ) as processor:
        await processor.start_watching()
        await other.put(key, RUNNING)
        await eventually(lambda: len(service.statuses) == 1)
        await processor.stop_watching()
        await other.put(key, SUCCEEDED)
        await other.delete(KeyRange.of_key(key))
        etcd.faults.cut()
        with trio.move_on_after(1):
            await processor.start_watching()
        assert not processor.watching
        etcd.faults.heal()
        await processor.start_watching()
        await eventually(lambda: service.statuses[-1].is_deleted)
    assert service.statuses[-1].phase is Phase.SUCCEEDED


async def test_an_end_that_was_put_off_is_reported_after_a_restart(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is deleted, and another key's change is newer, so no list shows that end."""
    key, other = prefix + b"flyte/rh7k2m9p4qv3-a1", prefix + b"flyte/rh7k2m9p4qv3-a2"
    failing = False
    handle = Handler.handle_watch_event

    def fails(self: Handler, change: Change) -> None:
        if failing and change.key == key:
            raise RuntimeError("a defect")
        handle(self, change)

    monkeypatch.setattr(Handler, "handle_watch_event", fails)
    async with open_processor(etcd, prefix=prefix, settings=_FAST) as processor:
        await processor.start_watching()
        async with processor.subscribe(_ROOT) as updates:
            await etcd.put(key, RUNNING)
            with trio.fail_after(60):
                await updates.receive()
            failing = True
            await etcd.put(key, SUCCEEDED)
            await etcd.delete(KeyRange.of_key(key))
            await etcd.put(other, captured("rh7k2m9p4qv3-a2", Phase.RUNNING))
            with trio.fail_after(60):
                assert (await updates.receive()).key == other
            await processor.stop_watching(grace=0)
            failing = False
            await processor.start_watching()
            with trio.fail_after(60):
                update = await updates.receive()
                while not update.is_deleted:
                    update = await updates.receive()
    assert (update.key, update.phase) == (key, Phase.SUCCEEDED)


async def test_what_was_put_off_and_created_again_is_not_reported_as_deleted(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list after the restart concludes no deletion of what waits to be handled."""
    key, other = prefix + b"flyte/rh7k2m9p4qv3-a1", prefix + b"flyte/rh7k2m9p4qv3-a2"
    service = RecordingRunService()
    failing = False
    handle = Handler.handle_watch_event

    def fails(self: Handler, change: Change) -> None:
        if failing and change.key == key:
            raise RuntimeError("a defect")
        handle(self, change)

    monkeypatch.setattr(Handler, "handle_watch_event", fails)
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=_FAST
    ) as processor:
        await processor.start_watching()
        await etcd.put(key, RUNNING)
        await eventually(lambda: len(service.statuses) == 1)
        failing = True
        await etcd.delete(KeyRange.of_key(key))
        await etcd.put(key, RUNNING)
        await etcd.put(other, captured("rh7k2m9p4qv3-a2", Phase.RUNNING))
        await eventually(lambda: service.statuses[-1].key == other)
        await processor.stop_watching(grace=0)
        failing = False
        await processor.start_watching()
        await eventually(lambda: service.statuses[-1].key == key)
        await processor.stop_watching()
    reported = [each.is_deleted for each in service.statuses if each.key == key]
    assert reported == [False, True, False]


async def test_a_start_during_a_stop_waits_and_watches(etcd: Etcd, prefix: bytes) -> None:
    """It must not take the watch that is about to end for its own."""
    service = RecordingRunService()
    service.hang = trio.Event()
    await etcd.put(prefix + b"flyte/rh7k2m9p4qv3-a1", SUCCEEDED)
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=_ALONE
    ) as processor:
        await processor.start_watching()
        await eventually(lambda: service.attempts == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(processor.stop_watching, 0.3)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await processor.start_watching()
        assert processor.statistics().watching
        service.hang.set()


async def test_a_start_that_waits_for_etcd_can_be_stopped() -> None:
    """And does not keep the processor's context from being left."""
    with trio.fail_after(60):
        async with (
            open_etcd(f"127.0.0.1:{free_port()}", request_timeout=0.2) as etcd,
            trio.open_nursery() as nursery,
        ):
            async with open_processor(etcd, settings=_ALONE) as processor:
                nursery.start_soon(processor.start_watching)
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert not processor.statistics().watching


async def test_subscribers_hear_of_a_processor_that_ends_by_an_exception(
    etcd: Etcd, prefix: bytes
) -> None:
    """A reader in another nursery gets the end, not silence for ever."""
    ended = trio.Event()

    async def read(subscription: Subscription[ActionUpdate]) -> None:
        async for _ in subscription:
            raise AssertionError("nothing happened")
        ended.set()

    async with trio.open_nursery() as nursery:
        with pytest.raises(LookupError, match="scripted"):  # noqa: PT012 - the context is what must raise
            async with open_processor(etcd, prefix=prefix, settings=_ALONE) as processor:
                await processor.start_watching()
                nursery.start_soon(read, processor.subscribe(_ROOT))
                await trio.testing.wait_all_tasks_blocked(0.01)
                raise LookupError("scripted")
        with trio.fail_after(60):
            await ended.wait()
