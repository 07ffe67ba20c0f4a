"""The processor: each terminal state is reported and marked once, whatever else happens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from etcd_actions import (
    Phase,
)
from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.follow.workqueue import WorkQueueSettings
from etcd_actions.pipeline.processor import open_processor
from tests.codecs.labels import add_label
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
from tests.support.endings import marked as as_marked
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory


async def test_an_ending_is_told_and_marked_once(etcd: Etcd, prefix: bytes) -> None:
    """Subscribers see the change, then the mark; the bytes differ in the label only."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    async with open_processor(etcd, prefix=prefix, settings=ALONE) as processor:
        await processor.start_watching()
        async with processor.subscribe(ROOT) as updates:
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
    async with open_processor(etcd, prefix=prefix, settings=ALONE) as processor:
        async with processor.subscribe(ROOT) as updates:
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
    async with open_processor(etcd, prefix=prefix, settings=ALONE) as processor:
        await processor.start_watching()
        await eventually(lambda: processor.statistics().marks == {"marked": 1})
    assert (await etcd.range(KeyRange.of_key(key))).kvs[0].lease == lease.id


async def test_a_namespace_is_watched_alone(etcd: Etcd, prefix: bytes) -> None:
    """Others' objects are neither told nor marked."""
    await etcd.put(prefix + b"other/rh7k2m9p4qv3-a1", SUCCEEDED)
    await etcd.put(prefix + b"flyte/rh7k2m9p4qv3-a1", SUCCEEDED)
    async with open_processor(etcd, prefix=prefix, namespace="flyte", settings=ALONE) as processor:
        await processor.start_watching()
        await eventually(lambda: processor.statistics().marks == {"marked": 1})
    assert not (await value_of(etcd, prefix + b"other/rh7k2m9p4qv3-a1")).is_recorded


async def test_nothing_is_marked_before_it_was_accepted(etcd: Etcd, prefix: bytes) -> None:
    """A run service that refuses is asked again, for ever; then record, status, mark."""
    key = prefix + b"flyte/rh7k2m9p4qv3-a1"
    service = RecordingRunService()
    service.refusals = 5
    async with open_processor(etcd, prefix=prefix, run_service=service, settings=FAST) as processor:
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
        etcd, prefix=prefix, run_service=service, settings=ALONE
    ) as processor:
        await processor.start_watching()
        async with processor.subscribe(ROOT) as updates:
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
        etcd, prefix=prefix, run_service=service, settings=ALONE
    ) as processor:
        await processor.start_watching()
        async with processor.subscribe(ROOT) as updates:
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
        etcd, prefix=prefix, run_service=service, settings=ALONE
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
    async with open_processor(etcd, prefix=prefix, settings=ALONE) as processor:
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
    edited = add_label(json, SUCCEEDED, "team", "blue")
    service = RecordingRunService()
    service.hang = trio.Event()
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=ALONE
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
        etcd, prefix=prefix, run_service=service, settings=ALONE
    ) as processor:
        await processor.start_watching()
        await etcd.put(key, SUCCEEDED)
        await eventually(lambda: service.attempts == 1)
        await etcd.put(key, json.encode_tree(tree))
        service.hang.set()
        await eventually(lambda: processor.statistics().marks.get("marked") == 1)
        assert processor.statistics().marks == {"superseded": 1, "marked": 1}
        assert [update.attempts for update in service.statuses] == [1, 2]


async def test_values_dropped_above_the_limit_are_read_again(etcd: Etcd, prefix: bytes) -> None:
    """With no room for values at all everything is told and marked all the same."""
    settings = replace(ALONE, queue=WorkQueueSettings(soft_bytes=0, backoff=FAST.queue.backoff))
    for number in range(50):
        await etcd.put(prefix + b"flyte/rh7k2m9p4qv3-x%d" % number, SUCCEEDED)
    async with open_processor(etcd, prefix=prefix, settings=settings) as processor:
        await processor.start_watching()
        await eventually(lambda: processor.statistics().marks == {"marked": 50})
        outbox = processor.statistics().outbox
        assert outbox is not None
        assert outbox.dropped_values > 40
