"""The processor over starts and stops: drained, started again, and what happened meanwhile."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from etcd_actions import (
    ActionUpdate,
    Phase,
    Subscription,
    open_etcd,
)
from etcd_actions.errors import InvalidRequest, PermissionDenied
from etcd_actions.etcd.api import Etcd, KeyRange, RangeResult
from etcd_actions.follow import Handler
from etcd_actions.pipeline.processor import Processor, open_processor
from etcd_actions.testing import MemoryStore
from etcd_actions.watch import Change
from tests.pipeline.processing import (
    ALONE,
    FAST,
    ROOT,
    RUNNING,
    SUCCEEDED,
    RecordingRunService,
    captured,
    value_of,
)
from tests.support.etcd_server import EtcdServer, free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory


async def test_starting_twice_is_harmless(etcd: Etcd, prefix: bytes) -> None:
    """Side by side, too: one watch, one mark."""
    async with open_processor(etcd, prefix=prefix, settings=ALONE) as processor:
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
    async with open_processor(etcd, prefix=prefix, settings=ALONE) as processor:
        await processor.stop_watching()
        await processor.start_watching()
        await etcd.put(gone, captured("rh7k2m9p4qv3-a2", Phase.RUNNING))
        await eventually(lambda: processor.statistics().handlers.handled == 1)  # type: ignore[union-attr]
        await processor.stop_watching()
        assert not processor.statistics().watching
        await etcd.put(kept, SUCCEEDED)
        await etcd.delete(KeyRange.of_key(gone))
        async with processor.subscribe(ROOT) as updates:
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
        etcd, prefix=prefix, run_service=service, settings=ALONE
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
        settings=ALONE,
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
        open_processor(etcd, settings=ALONE) as processor,
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
                open_processor(etcd, prefix=prefix, settings=ALONE) as processor,
            ):
                await processor.start_watching()
                await etcd.put(prefix + b"flyte/rh7k2m9p4qv3-a1", SUCCEEDED)
                scope.cancel()
                await trio.lowlevel.checkpoint()
    await eventually(lambda: threading.active_count() <= before + 1)


async def test_statistics_before_the_first_start(etcd: Etcd) -> None:
    """Nothing to tell is no error."""
    async with open_processor(etcd, settings=ALONE) as processor:
        statistics = processor.statistics()
        assert isinstance(processor, Processor)
        assert (statistics.watching, statistics.reflector, statistics.marks) == (False, None, {})


async def test_a_deletion_that_was_not_accepted_is_told_after_a_restart(
    etcd: Etcd, prefix: bytes
) -> None:
    """It is in no list any more: what is remembered of the key is kept until then."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    service = RecordingRunService()
    async with open_processor(etcd, prefix=prefix, run_service=service, settings=FAST) as processor:
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
    settings = replace(FAST, elect=elect)
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
    settings = replace(FAST, elect=False)
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
    async with open_processor(etcd, prefix=prefix, settings=FAST) as processor:
        await processor.start_watching()
        async with processor.subscribe(ROOT) as updates:
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
    async with open_processor(etcd, prefix=prefix, run_service=service, settings=FAST) as processor:
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
        etcd, prefix=prefix, run_service=service, settings=ALONE
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
            async with open_processor(etcd, settings=ALONE) as processor:
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
            async with open_processor(etcd, prefix=prefix, settings=ALONE) as processor:
                await processor.start_watching()
                nursery.start_soon(read, processor.subscribe(ROOT))
                await trio.testing.wait_all_tasks_blocked(0.01)
                raise LookupError("scripted")
        with trio.fail_after(60):
            await ended.wait()
