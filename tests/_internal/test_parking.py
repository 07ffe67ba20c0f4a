"""One task waits, and is woken once."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from etcd_actions._internal.parking import Parking


async def test_it_waits_until_it_is_woken() -> None:
    parking, steps = Parking(), []

    async def wait() -> None:
        for step in range(2):
            await parking.park()
            steps.append(step)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        for woken in range(2):
            await trio.testing.wait_all_tasks_blocked()
            assert steps == list(range(woken))
            parking.wake()
            # The second finds nobody: a task is woken once.
            parking.wake()
    assert steps == [0, 1]


async def test_a_wake_is_not_kept() -> None:
    parking = Parking()
    parking.wake()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parking.park)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        parking.wake()


async def test_there_is_room_for_one() -> None:
    parking = Parking()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parking.park)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await parking.park()
        # The first one waits on, and is woken.
        parking.wake()


async def test_who_is_cancelled_leaves_the_place_free() -> None:
    parking = Parking()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parking.park)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    parking.wake()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parking.park)
        await trio.testing.wait_all_tasks_blocked()
        parking.wake()


async def test_a_wake_that_comes_first_is_not_undone_by_a_cancellation() -> None:
    parking, went_on = Parking(), []

    async def wait() -> None:
        await parking.park()
        went_on.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        parking.wake()
        nursery.cancel_scope.cancel()
    assert went_on == [True]
