import structlog
import trio
import trio.testing

from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.formats.feed import Feed
from etcd_actions.etcd.api import KeyValue
from etcd_actions.watch import Change, ChangeKind


def change(revision: int, size: int = 1) -> Change:
    return Change(ChangeKind.MODIFIED, KeyValue(b"/k", b"x" * size, 1, revision, 2))


async def test_synced_keeps_its_place() -> None:
    feed = Feed()
    feed.dispatch([change(1)])
    feed.started(1)
    feed.dispatch([change(2)])
    feed.close()
    assert await feed.take() == [change(1), SyncedRow(1), change(2)]
    assert await feed.take() == []


async def test_take_waits(autojump_clock: trio.testing.MockClock) -> None:
    feed = Feed()
    taken: list[object] = []

    async def take() -> None:
        taken.extend(await feed.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        feed.dispatch([change(1)])
    assert taken == [change(1)]


async def check_bound(feed: Feed) -> None:
    """Room is waited for, and found again by taking."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.wait_stream_room)
        nursery.start_soon(feed.wait_list_room)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        while nursery.child_tasks:
            assert await feed.take()
            await trio.testing.wait_all_tasks_blocked()


async def test_number_of_pending_changes_is_bounded() -> None:
    feed = Feed()
    feed.dispatch([change(1)] * 20_000)
    with trio.fail_after(60):
        await feed.wait_stream_room()
    feed.dispatch([change(1)])
    await check_bound(feed)


async def test_bytes_of_pending_changes_are_bounded() -> None:
    feed = Feed()
    feed.dispatch([change(1, 1 << 20)] * 65)
    await check_bound(feed)


async def test_a_slow_output_is_told_now_and_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    feed = Feed()

    async def fill_and_empty() -> None:
        feed.dispatch([change(1)] * 20_001)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.wait_stream_room)
            await trio.testing.wait_all_tasks_blocked()
            while feed._pending:
                await feed.take()

    with structlog.testing.capture_logs() as logs:
        await fill_and_empty()
        await fill_and_empty()
        assert [log["event"] for log in logs] == ["output_too_slow"]
        await trio.sleep(61)
        await fill_and_empty()
        assert len(logs) == 2
