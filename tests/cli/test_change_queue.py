import structlog
import trio
import trio.testing

from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.formats.change_queue import ChangeQueue
from etcd_actions.etcd.api import KeyValue
from etcd_actions.watch import Change, ChangeKind


def change(revision: int, size: int = 1) -> Change:
    return Change(ChangeKind.MODIFIED, KeyValue(b"/k", b"x" * size, 1, revision, 2))


async def test_synced_keeps_its_place() -> None:
    queue = ChangeQueue()
    queue.dispatch([change(1)])
    queue.started(1)
    queue.dispatch([change(2)])
    queue.close()
    assert await queue.pop() == [change(1), SyncedRow(1), change(2)]
    assert await queue.pop() == []


async def test_take_waits(autojump_clock: trio.testing.MockClock) -> None:
    queue = ChangeQueue()
    taken: list[object] = []

    async def take() -> None:
        taken.extend(await queue.pop())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        queue.dispatch([change(1)])
    assert taken == [change(1)]


async def check_bound(queue: ChangeQueue) -> None:
    """Room is waited for, and found again by taking."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.wait_stream_capacity)
        nursery.start_soon(queue.wait_list_capacity)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        while nursery.child_tasks:
            assert await queue.pop()
            await trio.testing.wait_all_tasks_blocked()


async def test_number_of_pending_changes_is_bounded() -> None:
    queue = ChangeQueue()
    queue.dispatch([change(1)] * 20_000)
    with trio.fail_after(60):
        await queue.wait_stream_capacity()
    queue.dispatch([change(1)])
    await check_bound(queue)


async def test_bytes_of_pending_changes_are_bounded() -> None:
    queue = ChangeQueue()
    queue.dispatch([change(1, 1 << 20)] * 65)
    await check_bound(queue)


async def test_a_slow_output_is_told_now_and_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue = ChangeQueue()

    async def fill_and_empty() -> None:
        queue.dispatch([change(1)] * 20_001)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.wait_stream_capacity)
            await trio.testing.wait_all_tasks_blocked()
            while queue._pending:
                await queue.pop()

    with structlog.testing.capture_logs() as logs:
        await fill_and_empty()
        await fill_and_empty()
        assert [log["event"] for log in logs] == ["output_too_slow"]
        await trio.sleep(61)
        await fill_and_empty()
        assert len(logs) == 2
