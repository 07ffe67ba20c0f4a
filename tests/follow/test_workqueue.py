"""The queue of work: order, conflation, patience and limits."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from etcd_actions._internal.backoff import Backoff
from etcd_actions.errors import NoSpace, OutcomeUnknown, RunServiceUnavailable, Unavailable
from etcd_actions.etcd.api import KeyValue
from etcd_actions.follow.key_channel import Counts, KeyChannel
from etcd_actions.follow.workqueue import WorkQueue, WorkQueueSettings
from etcd_actions.watch import Change, ChangeKind


def put(key: bytes, revision: int, *, created: int = 0, value: bytes | None = b"v") -> Change:
    created = created or revision
    kind = ChangeKind.ADDED if created == revision else ChangeKind.MODIFIED
    kv = KeyValue(key, value or b"", created, revision, revision - created + 1)
    return Change(kind, kv, value_dropped=value is None)


def delete(key: bytes, revision: int) -> Change:
    return Change.deletion(key, revision)


async def keep(change: Change) -> Change | None:
    return change.with_value(msgspec.structs.replace(change.kv, value=b"read again"))


@asynccontextmanager
async def running(
    handler: Callable[[Change], Awaitable[None]],
    *,
    workers: int = 4,
    reread: Callable[[Change], Awaitable[Change | None]] = keep,
    **settings: float | Backoff,
) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(handler, reread, WorkQueueSettings(**settings))  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        queue.start_workers(workers, lambda: nursery.start_soon(queue.worker))
        nursery.start_soon(queue.retry_failed)
        await trio.testing.wait_all_tasks_blocked()
        yield queue
        nursery.cancel_scope.cancel()


class Gate:
    """A handler that records, and waits until it is let through."""

    def __init__(self) -> None:
        self.begun: list[Change] = []
        self.done: list[Change] = []
        self._open = trio.Event()

    def open(self) -> None:
        self._open.set()

    async def __call__(self, change: Change) -> None:
        self.begun.append(change)
        await self._open.wait()
        self.done.append(change)


async def test_changes_of_a_key_are_never_handled_side_by_side() -> None:
    """One key: in order, one at a time. Other keys go on meanwhile."""
    gate = Gate()
    async with running(gate) as queue:
        queue.dispatch([put(b"a", 1), delete(b"a", 2), put(b"a", 3), put(b"b", 4)])
        await trio.testing.wait_all_tasks_blocked()
        assert [(c.key, c.mod_revision) for c in gate.begun] == [(b"a", 1), (b"b", 4)]
        gate.open()
        await queue.wait_idle()
        assert [c.mod_revision for c in gate.done if c.key == b"a"] == [1, 2, 3]


async def test_parallel_work_is_bounded_by_the_workers() -> None:
    """Ten keys and three workers: three handlers run, then the others."""
    gate = Gate()
    async with running(gate, workers=3) as queue:
        queue.dispatch(put(b"%d" % number, number + 1) for number in range(10))
        await trio.testing.wait_all_tasks_blocked()
        assert len(gate.begun) == 3
        gate.open()
        await queue.wait_idle()
        assert len(gate.done) == 10


async def test_workers_are_started_when_there_is_work_for_them() -> None:
    """One that is free is taken first, and no more are started than may be."""
    gate = Gate()
    gate.open()
    started = 0
    queue = WorkQueue(gate, keep)
    async with trio.open_nursery() as nursery:

        def start() -> None:
            nonlocal started
            started += 1
            nursery.start_soon(queue.worker)

        queue.start_workers(3, start)
        await trio.testing.wait_all_tasks_blocked()
        assert started == 0
        for number in range(5):
            queue.dispatch([put(b"a", number + 1)])
            await queue.wait_idle()
            await trio.testing.wait_all_tasks_blocked()
        assert started == 1
        gate._open = trio.Event()
        for number in range(8):
            queue.dispatch([put(b"b%d" % number, number + 9)])
            await trio.testing.wait_all_tasks_blocked()
        assert started == 3
        nursery.cancel_scope.cancel()


async def test_work_that_came_before_the_workers_is_done() -> None:
    gate = Gate()
    gate.open()
    queue = WorkQueue(gate, keep)
    queue.dispatch([put(b"a", 1), put(b"b", 2)])
    async with trio.open_nursery() as nursery:
        queue.start_workers(1, lambda: nursery.start_soon(queue.worker))
        await queue.wait_idle()
        nursery.cancel_scope.cancel()
    assert len(gate.done) == 2


async def test_a_lagging_key_gets_the_latest_state_only() -> None:
    """Puts of one incarnation conflate, and the count says so; what was ADDED stays ADDED."""
    gate = Gate()
    async with running(gate) as queue:
        queue.dispatch([put(b"a", 1)])
        await trio.testing.wait_all_tasks_blocked()
        queue.dispatch(put(b"a", revision, created=1) for revision in (2, 3, 4))
        queue.dispatch([delete(b"a", 5), put(b"a", 6), put(b"a", 7, created=6)])
        assert queue.statistics().conflated == 3
        gate.open()
        await queue.wait_idle()
    assert [(c.kind.value, c.mod_revision) for c in gate.done] == [
        ("ADDED", 1),
        ("MODIFIED", 4),
        ("DELETED", 5),
        ("ADDED", 7),
    ]


async def test_a_key_made_and_deleted_for_ever_stays_bounded() -> None:
    """Past the limit what is kept begins with the key's last delete."""
    gate = Gate()
    async with running(gate) as queue:
        queue.dispatch([put(b"a", 1)])
        await trio.testing.wait_all_tasks_blocked()
        for revision in range(2, 2000, 2):
            queue.dispatch([delete(b"a", revision), put(b"a", revision + 1)])
        assert queue.statistics().pending_changes <= 17
        gate.open()
        await queue.wait_idle()
    assert [c.mod_revision for c in gate.done[-2:]] == [1998, 1999]
    assert queue.statistics().pending_bytes == 0


@st.composite
def schedules(draw: st.DrawFn) -> list[Change]:
    """Histories of a few keys, mixed."""
    changes: list[Change] = []
    created: dict[bytes, int] = {}
    for revision in range(1, draw(st.integers(1, 60))):
        key = draw(st.sampled_from([b"a", b"b", b"c"]))
        if key in created and draw(st.booleans()):
            changes.append(delete(key, revision))
            del created[key]
        else:
            created.setdefault(key, revision)
            changes.append(put(key, revision, created=created[key]))
    return changes


@pytest.mark.slow
@given(schedules(), st.data())
def test_order_ends_and_conflation_over_any_schedule(
    changes: list[Change], data: st.DataObject
) -> None:
    """Per key a subsequence in order that ends in the last state, and no delete is left out."""
    handled: dict[bytes, list[Change]] = defaultdict(list)
    slow = data.draw(st.lists(st.integers(0, 3), min_size=len(changes), max_size=len(changes)))
    failing = data.draw(st.lists(st.booleans(), min_size=len(changes), max_size=len(changes)))
    steps = iter(zip(slow, failing, strict=True))

    async def handler(change: Change) -> None:
        pause, fail = next(steps, (0, False))
        await trio.sleep(pause)
        if fail:
            raise ValueError("scripted")
        handled[change.key].append(change)

    async def main() -> None:
        async with running(handler, workers=2) as queue:
            for change in changes:
                queue.dispatch([change])
                await trio.sleep(data.draw(st.integers(0, 1)))
            await queue.wait_idle()
            statistics = queue.statistics()
            assert statistics.dispatched == len(changes)
            assert statistics.handled + statistics.conflated == len(changes)
            assert (statistics.keys, statistics.pending_changes, statistics.failing) == (0, 0, ())
            assert statistics.pending_bytes == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    for key in {change.key for change in changes}:
        whole = [change.mod_revision for change in changes if change.key == key]
        seen = [change.mod_revision for change in handled[key]]
        assert seen == sorted(set(seen))
        assert set(seen) <= set(whole)
        assert seen[-1] == whole[-1]
        lost = [
            c for c in changes if c.key == key and c.is_delete and c.mod_revision not in set(seen)
        ]
        assert not lost or len(whole) > 16


async def test_a_failing_key_is_tried_again_and_holds_no_worker(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One worker, one key that fails three times: the other key is handled at once."""
    times: list[float] = []
    handled: list[bytes] = []

    async def handler(change: Change) -> None:
        if change.key == b"bad":
            times.append(trio.current_time())
            if len(times) <= 3:
                raise ValueError("not yet")
        handled.append(change.key)

    backoff = Backoff(initial=1.0, cap=1.5)
    async with running(handler, workers=1, backoff=backoff) as queue:
        queue.dispatch([put(b"bad", 1), put(b"good", 2)])
        await trio.testing.wait_all_tasks_blocked()
        assert handled == [b"good"]
        (failing,) = queue.statistics().failing
        assert (failing.key, failing.failures, failing.error) == (b"bad", 1, "ValueError: not yet")
        await queue.wait_idle()
        assert handled == [b"good", b"bad"]
        assert queue.statistics().failing == ()
        assert queue.statistics().failures == 3
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 0.5 <= gaps[0] <= 1.0
    assert all(0.75 <= gap <= 1.5 for gap in gaps[1:])


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [
        (Unavailable("nobody there"), False),
        (OutcomeUnknown("cut off"), False),
        (RunServiceUnavailable("nobody there"), False),
        (NoSpace("full"), True),
        (ValueError("not expected"), True),
    ],
)
async def test_an_absent_peer_is_logged_without_tracebacks(
    autojump_clock: trio.testing.MockClock, error: Exception, has_traceback: bool
) -> None:
    """In an outage each key fails for the same reason; of other failures the place is logged."""
    failing = [error]

    async def handler(_change: Change) -> None:
        if failing:
            raise failing.pop()

    with capture_logs() as logs:
        async with running(handler) as queue:
            queue.dispatch([put(b"k", 1)])
            await queue.wait_idle()
    [line] = [line for line in logs if line["event"] == "handler_failed"]
    assert bool(line["exc_info"]) is has_traceback


async def test_a_failed_state_is_replaced_by_a_newer_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The newer state of the incarnation is tried, the failed one is not."""
    tried: list[int] = []

    async def handler(change: Change) -> None:
        tried.append(change.mod_revision)
        if change.mod_revision == 1:
            raise ValueError("no")

    async with running(handler) as queue:
        queue.dispatch([put(b"a", 1)])
        await trio.testing.wait_all_tasks_blocked()
        queue.dispatch([put(b"a", 2, created=1)])
        await queue.wait_idle()
    assert tried == [1, 2]


async def test_above_the_soft_limit_values_are_dropped_and_read_again() -> None:
    """What is handled has its value, read at the change's own revision."""
    gate = Gate()
    asked: list[int] = []

    async def reread(change: Change) -> Change | None:
        asked.append(change.mod_revision)
        return change.with_value(
            msgspec.structs.replace(change.kv, value=b"at %d" % change.mod_revision)
        )

    async with running(gate, workers=1, reread=reread, soft_bytes=10) as queue:
        queue.dispatch(put(b"%d" % number, number, value=b"12345678") for number in range(1, 6))
        assert queue.statistics().dropped_values == 3
        gate.open()
        await queue.wait_idle()
    assert [c.value for c in gate.done] == [b"12345678"] * 2 + [b"at 3", b"at 4", b"at 5"]
    assert asked == [3, 4, 5]


async def test_a_value_that_nobody_needs_any_more_is_skipped() -> None:
    """Its revision is compacted and the key has moved on."""
    handled: list[Change] = []

    async def handler(change: Change) -> None:
        handled.append(change)

    async def reread(change: Change) -> Change | None:
        return None

    async with running(handler, reread=reread, soft_bytes=0) as queue:
        queue.dispatch([put(b"a", 1), put(b"b", 2)])
        await queue.wait_idle()
    assert [c.key for c in handled] == [b"a"]


async def test_a_failed_reread_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    """An outage in the middle of a re-read kills no worker and loses nothing."""
    outcomes = iter([Unavailable("away"), Unavailable("away"), None])
    handled: list[Change] = []

    async def handler(change: Change) -> None:
        handled.append(change)

    async def reread(change: Change) -> Change | None:
        if (error := next(outcomes)) is not None:
            raise error
        return change.with_value(msgspec.structs.replace(change.kv, value=b"back"))

    async with running(handler, reread=reread, soft_bytes=0) as queue:
        queue.dispatch([put(b"a", 1), put(b"b", 2)])
        await queue.wait_idle()
    assert [(c.key, c.value) for c in handled] == [(b"a", b"v"), (b"b", b"back")]


async def test_a_newer_state_that_comes_during_a_reread_is_not_lost() -> None:
    """It takes the place of the state that is being read."""
    reading, go_on = trio.Event(), trio.Event()
    handled: list[Change] = []

    async def handler(change: Change) -> None:
        handled.append(change)

    async def reread(change: Change) -> Change | None:
        reading.set()
        await go_on.wait()
        return change.with_value(msgspec.structs.replace(change.kv, value=b"old"))

    async with running(handler, reread=reread, soft_bytes=0) as queue:
        queue.dispatch([put(b"x", 1), put(b"a", 2)])
        await reading.wait()
        queue.dispatch([put(b"a", 3, created=2)])
        go_on.set()
        await queue.wait_idle()
    assert [(c.key, c.mod_revision, c.value) for c in handled] == [(b"x", 1, b"v"), (b"a", 3, b"v")]


async def test_a_key_channel_reads_as_a_trio_channel() -> None:
    """Iteration gives what is pending, conflated, and ends when the key has no more work."""
    ended: list[bytes] = []
    channel = KeyChannel(b"k", Counts(), keep, ended.append)
    channel.put(put(b"k", 1))
    channel.put(put(b"k", 2, created=1))
    channel.put(delete(b"k", 3))
    channel.put(put(b"k", 4, value=None))
    with trio.testing.assert_checkpoints():
        assert (await channel.receive()).mod_revision == 2
    async with channel:
        rest = [change async for change in channel]
    assert [(c.mod_revision, c.value) for c in rest] == [(3, b""), (4, b"read again")]
    assert ended[0] == b"k"
    with pytest.raises(trio.EndOfChannel):
        channel.receive_nowait()


async def test_cancelled_workers_leave_nothing_parked() -> None:
    """Workers that are cancelled while they wait are gone for good."""
    handled: list[Change] = []

    async def handler(change: Change) -> None:
        handled.append(change)

    queue = WorkQueue(handler, keep)
    for _ in range(3):
        with trio.move_on_after(math.inf) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(queue.worker)
                nursery.start_soon(queue.worker)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.worker)
        queue.dispatch([put(b"a", 1)])
        await queue.wait_idle()
        nursery.cancel_scope.cancel()
    assert len(handled) == 1


async def test_what_a_cancelled_worker_had_is_handled_by_the_next_one() -> None:
    """Also where it was cancelled while it read a dropped value."""
    gate, reading = Gate(), trio.Event()

    async def read(change: Change) -> Change:
        if not reading.is_set():
            reading.set()
            await trio.sleep_forever()
        return change.with_value(msgspec.structs.replace(change.kv, value=b"read again"))

    queue = WorkQueue(gate, read)
    queue.dispatch([put(b"a", 1), put(b"b", 2, value=None)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.worker)
        nursery.start_soon(queue.worker)
        await trio.testing.wait_all_tasks_blocked()
        assert reading.is_set()
        nursery.cancel_scope.cancel()
    assert [change.key for change in gate.begun] == [b"a"]
    gate.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.worker)
        with trio.fail_after(10):
            await queue.wait_idle()
        nursery.cancel_scope.cancel()
    assert sorted(change.key for change in gate.done) == [b"a", b"b"]


async def test_a_pause_waits_for_what_is_being_handled_and_begins_no_more() -> None:
    """Also what comes later, and what was to be retried."""
    handled: list[bytes] = []
    proceed = trio.Event()

    async def handler(change: Change) -> None:
        await proceed.wait()
        handled.append(change.key)

    async with running(handler, workers=1) as queue:
        queue.dispatch([put(b"a", 1), put(b"b", 2)])
        await trio.testing.wait_all_tasks_blocked()
        paused = trio.Event()

        async def pause() -> None:
            await queue.pause()
            paused.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pause)
            await trio.testing.wait_all_tasks_blocked()
            assert queue.is_handling
            assert not paused.is_set()
            proceed.set()
        queue.dispatch([put(b"a", 3), put(b"c", 4)])
        await trio.testing.wait_all_tasks_blocked()
        assert handled == [b"a"]
        assert (queue.has_work, queue.is_handling) == (True, False)


async def test_a_key_whose_failed_change_is_skipped_is_failing_no_more() -> None:
    """Else it would degrade readiness for ever."""
    outcomes = iter([Unavailable("away"), None])

    async def handler(change: Change) -> None:
        raise AssertionError("nothing is left to handle")

    async def reread(change: Change) -> Change | None:
        if (error := next(outcomes)) is not None:
            raise error
        return None

    backoff = Backoff(initial=0.01, cap=0.01)
    async with running(handler, reread=reread, backoff=backoff) as queue:
        queue.dispatch([put(b"a", 1, value=None)])
        with trio.fail_after(60):
            await queue.wait_idle()
        assert queue.statistics().failures == 1
        assert queue.statistics().failing == ()


async def test_what_failed_elsewhere_is_handled_after_a_delay_before_what_is_newer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    handled: list[int] = []

    async def handler(change: Change) -> None:
        handled.append(change.mod_revision)

    async with running(handler, backoff=Backoff(initial=1.0, cap=1.0)) as queue:
        queue.put_off(delete(b"a", 3), ValueError("not yet"))
        assert [failing.error for failing in queue.statistics().failing] == ["ValueError: not yet"]
        assert queue.has_work_for(b"a")
        assert queue.oldest_delete() == 3
        queue.dispatch([put(b"a", 4)])
        assert queue.newest_of(b"a") == put(b"a", 4)
        await trio.testing.wait_all_tasks_blocked()
        assert handled == []
        await queue.wait_idle()
        assert handled == [3, 4]
        assert queue.newest_of(b"a") is None
        assert queue.statistics().failing == ()
