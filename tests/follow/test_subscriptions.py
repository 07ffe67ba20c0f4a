"""Subscriptions: who gets what, and that no last state is lost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.errors import InvalidArgument
from etcd_actions.follow.subscriptions import (
    AnySubscription,
    SnapshotEnd,
    Subscription,
    Subscriptions,
)
from etcd_actions.model import ActionId, ActionUpdate, ErrorState, Phase, RunId, Summary


def action(name: str, *, run: str = "r1", project: str = "p", org: str = "") -> ActionId:
    return ActionId(project, "d", run, name, org)


def update(
    action_id: ActionId, parent: str = "a0", revision: int = 1, phase: Phase = Phase.RUNNING
) -> ActionUpdate:
    return ActionUpdate(
        key=f"/{action_id.project}/{action_id.run}-{action_id.name}".encode(),
        namespace="flyte",
        name=f"{action_id.run}-{action_id.name}",
        action_id=action_id,
        parent=parent,
        phase=phase,
        attempts=1,
        cache_status=0,
        output_uri="",
        uid="u",
        create_revision=1,
        revision=revision,
        recorded=False,
    )


async def test_the_parent_and_its_children_are_told() -> None:
    """Not grandchildren, not other runs' actions of the same name, not other projects'."""
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0")) as subscription:
        for each in (
            update(action("a0"), parent=""),
            update(action("c1")),
            update(action("g1"), parent="c1"),
            update(action("c1", run="r2")),
            update(action("c1", project="q")),
        ):
            subscriptions.notify(each)
        got = [subscription.receive_nowait() for _ in range(2)]
        assert [each.action_id.name for each in got] == ["a0", "c1"]
        with pytest.raises(trio.WouldBlock):
            subscription.receive_nowait()


@pytest.mark.parametrize(
    ("wanted", "actual", "told"),
    [("", "o", True), ("o", "", True), ("o", "o", True), ("o", "other", False)],
)
async def test_the_organisation_counts_where_both_know_it(
    wanted: str, actual: str, told: bool
) -> None:
    """It is no part of the stored form, so its absence excludes nobody."""
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0", org=wanted)) as subscription:
        subscriptions.notify(update(action("c1", org=actual)))
        assert subscription.statistics().pending == int(told)


async def test_a_lagging_subscriber_gets_the_last_states() -> None:
    """Memory is bounded by the number of actions, and what was left out is counted."""
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0")) as subscription:
        for revision in range(1, 1001):
            subscriptions.notify(update(action(f"c{revision % 3}"), revision=revision))
        assert subscription.statistics() == (3, 997)
        got = [(await subscription.receive()).revision for _ in range(3)]
        assert sorted(got) == [998, 999, 1000]


class Walked(OrderedDict[bytes, object]):
    """Counts how often it is walked over."""

    walks = 0

    def __iter__(self) -> Iterator[bytes]:
        self.walks += 1
        return super().__iter__()


async def test_taking_what_waits_walks_over_nothing() -> None:
    """The first key of a plain dict is behind the places of all that were taken before."""
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0")) as subscription:
        for number in range(100):
            subscriptions.notify(update(action(f"c{number}"), revision=number + 1))
        assert type(subscription._pending) is OrderedDict
        pending = subscription._pending = Walked(subscription._pending)
        before = pending.walks
        # A newer state has the place of the one that it replaces.
        subscriptions.notify(update(action("c0"), revision=1000))
        got = [subscription.receive_nowait().revision for _ in range(100)]
        assert got == [1000, *range(2, 101)]
        assert pending.walks == before


async def test_a_deletion_told_from_memory_keeps_the_details_of_the_ending() -> None:
    """A subscriber that lags learns of the error, and that the object is gone."""
    subscriptions = Subscriptions()
    failed = msgspec.structs.replace(
        update(action("c1"), phase=Phase.FAILED), error=ErrorState("Oops", "USER", "why")
    )
    gone = msgspec.structs.replace(failed, error=None, is_deleted=True, partial=True, revision=2)
    async with subscriptions.subscribe(action("a0")) as subscription:
        subscriptions.notify(failed)
        subscriptions.notify(gone)
        got = subscription.receive_nowait()
        assert (got.error, got.is_deleted, got.revision) == (failed.error, True, 2)
        subscriptions.notify(failed)
        subscriptions.notify(msgspec.structs.replace(gone, uid="another"))
        assert subscription.receive_nowait().error is None


async def test_a_waiting_reader_is_woken() -> None:
    """And one that never reads keeps nobody from anything."""
    subscriptions = Subscriptions()
    received: list[int] = []
    async with (
        subscriptions.subscribe(action("a0")) as reader,
        subscriptions.subscribe(action("a0")),
        trio.open_nursery() as nursery,
    ):

        async def read() -> None:
            async for each in reader:
                received.append(each.revision)

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        for revision in (1, 2):
            subscriptions.notify(update(action("c1"), revision=revision))
            await trio.testing.wait_all_tasks_blocked()
        assert received == [1, 2]
        nursery.cancel_scope.cancel()


async def test_cancelling_a_receive_loses_nothing() -> None:
    """An update that comes later is there for the next receive."""
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0")) as subscription:
        with trio.move_on_after(0):
            await subscription.receive()
        subscriptions.notify(update(action("c1")))
        with trio.move_on_after(0) as scope:
            await subscription.receive()
        assert scope.cancelled_caught
        with trio.testing.assert_checkpoints():
            assert (await subscription.receive()).revision == 1


async def test_closing_ends_the_reader_and_twice_is_harmless() -> None:
    """Nothing is kept for a closed subscription."""
    subscriptions = Subscriptions()
    subscription = subscriptions.subscribe(action("a0"))
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await subscription.receive()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await subscription.aclose()
    await subscription.aclose()
    assert len(subscriptions) == 0
    subscriptions.notify(update(action("c1")))
    assert subscription.statistics().pending == 0


async def test_the_end_comes_behind_what_is_pending() -> None:
    """Closing the processor loses no last state."""
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0")) as subscription:
        subscriptions.notify(update(action("c1")))
        subscriptions.end()
        assert [each.revision async for each in subscription] == [1]


async def test_two_readers_are_an_error() -> None:
    """A second one would steal wake-ups."""
    subscriptions = Subscriptions()
    async with (
        subscriptions.subscribe(action("a0")) as subscription,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(subscription.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await subscription.receive()
        nursery.cancel_scope.cancel()


def test_wants_looks_at_the_action_and_its_parent() -> None:
    """Nobody's states need not be decoded any further."""
    subscriptions = Subscriptions()
    summary = Summary("p", "d", "r1", "c1", "", "a0", "u", Phase.RUNNING, 1, 0, False, "", 1, 1)
    assert not subscriptions.has_reader_of(summary)
    subscriptions.subscribe(action("other"))
    assert not subscriptions.has_reader_of(summary)
    subscriptions.subscribe(action("a0"))
    assert subscriptions.has_reader_of(summary)


def names(subscription: Subscription[ActionUpdate]) -> list[str]:
    got = []
    while subscription.statistics().pending:
        got.append(subscription.receive_nowait().action_id.name)
    return got


def test_the_root_may_be_called_like_its_run() -> None:
    """By the subscriber, in the object and as the parent of others."""
    subscriptions = Subscriptions()
    for name in ("a0", "r1"):
        subscription = subscriptions.subscribe(action(name))
        for each in (update(action("a0"), parent=""), update(action("r1"), parent="")):
            subscriptions.notify(each)
        subscriptions.notify(update(action("c1"), parent="a0"))
        subscriptions.notify(update(action("c2"), parent="r1"))
        assert names(subscription) == ["a0", "r1", "c1", "c2"]


def test_what_is_above_the_root() -> None:
    """Flyte's own interface subscribes to the root of a run by an empty parent."""
    subscriptions = Subscriptions()
    subscription = subscriptions.subscribe(RunId("p", "d", "r1"))
    subscriptions.notify(update(action("a0"), parent=""))
    subscriptions.notify(update(action("c1")))
    assert names(subscription) == ["a0"]


async def test_a_snapshot_then_what_is_newer() -> None:
    """Nothing older than the snapshot comes behind it, nothing newer is missing."""
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0"), snapshot=True) as subscription:
        for name, revision in (("c1", 5), ("c2", 12), ("c3", 9)):
            subscriptions.notify(update(action(name), revision=revision))
        with pytest.raises(trio.WouldBlock):
            subscription.receive_nowait()
        subscription.begin_with([update(action("c1"), revision=7)], 10)
        subscriptions.notify(update(action("c1"), revision=8))
        subscriptions.notify(update(action("c4"), revision=11))
        got = [subscription.receive_nowait() for _ in range(4)]
        assert got[1] == SnapshotEnd(10)
        told = [(e.action_id.name, e.revision) for e in got if isinstance(e, ActionUpdate)]
        assert told == [("c1", 7), ("c2", 12), ("c4", 11)]
        with pytest.raises(trio.WouldBlock):
            subscription.receive_nowait()


def test_another_store_has_other_revisions() -> None:
    """What it says is told, though a snapshot of the old one was newer by its number."""
    subscriptions = Subscriptions()
    subscription = subscriptions.subscribe(action("a0"), snapshot=True)
    subscription.begin_with([], 100)
    subscriptions.forget_revisions()
    subscriptions.notify(update(action("c1"), revision=3))
    assert subscription.receive_nowait() == SnapshotEnd(100)
    assert subscription.statistics().pending == 1


async def test_unsubscribing_ends_the_reader_cleanly() -> None:
    """Behind what is pending; twice is harmless, somebody else's is an error."""
    subscriptions = Subscriptions()
    subscription = subscriptions.subscribe(action("a0"))
    received = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            async for each in subscription:
                received.append(each.revision)

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        subscriptions.notify(update(action("c1"), revision=1))
        subscriptions.unsubscribe(subscription)
        subscriptions.notify(update(action("c1"), revision=2))
    assert received == [1]
    subscriptions.unsubscribe(subscription)
    await subscription.aclose()
    subscriptions.unsubscribe(subscription)
    with pytest.raises(InvalidArgument, match="another client"):
        Subscriptions().unsubscribe(subscription)


async def test_a_reader_learns_where_another_store_begins() -> None:
    """Its revisions begin anew there, and what was told of the store before comes before."""
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0")) as subscription:
        subscriptions.notify(update(action("a0"), parent="", revision=9))
        subscriptions.notify(update(action("c1"), revision=10))
        subscriptions.forget_revisions()
        subscriptions.notify(update(action("a0"), parent="", revision=2))
        got = []
        for _ in range(3):
            got.append((subscription.receive_nowait().revision, subscription.replaced))
        assert got == [(9, 0), (10, 0), (2, 1)]
        with pytest.raises(trio.WouldBlock):
            subscription.receive_nowait()


async def test_a_store_that_is_replaced_before_the_snapshot_is_nothing_new() -> None:
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0"), snapshot=True) as subscription:
        subscriptions.forget_revisions()
        subscription.begin_with([update(action("a0"), parent="", revision=3)], 4)
        assert isinstance(subscription.receive_nowait(), ActionUpdate)
        assert subscription.receive_nowait() == SnapshotEnd(4)
        assert subscription.replaced == 0


async def test_a_snapshot_of_a_store_that_is_replaced_hides_nothing_of_the_next() -> None:
    """It was read before the replacement, and its revision is higher than any of the new store."""
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0"), snapshot=True) as subscription:
        subscriptions.forget_revisions()
        subscriptions.notify(update(action("c1"), revision=3))
        subscription.begin_with([update(action("a0"), parent="", revision=90)], 100)
        subscriptions.notify(update(action("c2"), revision=5))
        got = []
        for _ in range(4):
            item = subscription.receive_nowait()
            got.append((item.revision, subscription.replaced))
        assert got == [(90, 0), (100, 0), (3, 1), (5, 1)]


async def test_a_revision_of_a_store_that_was_replaced_hides_nothing_of_the_next() -> None:
    subscriptions = Subscriptions()
    async with subscriptions.subscribe(action("a0")) as subscription:
        subscriptions.forget_revisions()
        subscription.skip_to(100)
        subscriptions.notify(update(action("c1"), revision=3))
        assert subscription.receive_nowait().revision == 3


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.integers(0, 3)), max_size=60))
def test_the_count_of_undelivered_updates_is_exact(steps: list[tuple[int, int, int]]) -> None:
    """It is the sum over the open subscriptions, without a walk over them."""

    async def main() -> None:
        subscriptions = Subscriptions()
        opened: list[AnySubscription] = []
        for revision, (what, which, child) in enumerate(steps, 1):
            each = opened[which % len(opened)] if opened else None
            if what == 0 or each is None:
                opened.append(subscriptions.subscribe(action("a0"), snapshot=bool(child % 2)))
            elif what <= 2:
                subscriptions.notify(update(action(f"c{child}"), revision=revision))
            elif what <= 4:
                with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                    each.receive_nowait()
            elif what == 5:
                each.begin_with([update(action(f"c{child}"), revision=revision)], revision)
            elif what == 6:
                subscriptions.forget_revisions()
            elif what == 7:
                subscriptions.unsubscribe(each)
            else:
                await each.aclose()
                opened.remove(each)
            still = [one for same in subscriptions._by_topic.values() for one in same]
            assert subscriptions.pending() == sum(one.statistics().pending for one in still)

    trio.run(main)
