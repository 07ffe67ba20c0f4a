"""Boundaries: what they contain, what passes, what is told of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from tests.support.everyday import first_everyday

UNEXPECTED = first_everyday(
    [
        pytest.param(RuntimeError("unexpected"), id="RuntimeError"),
        pytest.param(RecursionError("too deep"), id="RecursionError"),
        pytest.param(MemoryError(), id="MemoryError"),
        pytest.param(SystemExit(3), id="SystemExit"),
        pytest.param(
            BaseExceptionGroup("several", [RuntimeError("a"), SystemExit(1), MemoryError()]),
            id="BaseExceptionGroup",
        ),
    ]
)


@pytest.mark.parametrize("error", UNEXPECTED)
async def test_whatever_is_raised_ends_its_unit_alone(error: BaseException) -> None:
    containment = Containment()
    with capture_logs() as logs, containment.unit("connection", "1.2.3.4:5") as unit:
        raise error
    assert unit.error is error
    assert containment.failures == {"connection": 1}
    assert containment.parked == ()
    assert [(line["unit"], line["identity"]) for line in logs] == [("connection", "1.2.3.4:5")]


async def test_a_cancellation_passes() -> None:
    containment = Containment()
    with trio.CancelScope() as scope:
        scope.cancel("the test wants it")
        with containment.unit("request", "r"):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert containment.failures == {}


async def test_of_a_group_only_the_cancellation_passes() -> None:
    containment = Containment()

    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("while it is cancelled")

    with trio.CancelScope() as scope, containment.unit("request", "r") as unit:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)
            nursery.start_soon(trio.sleep_forever)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel("the test wants it")
    assert scope.cancelled_caught
    assert unit.failed
    assert containment.failures == {"request": 1}


async def test_keyboard_interrupt_is_the_operators() -> None:
    containment = Containment()
    with pytest.raises(KeyboardInterrupt), containment.unit("action", "a"):
        raise KeyboardInterrupt
    assert containment.failures == {}


async def test_a_parked_unit_is_listed_until_it_heals(autojump_clock: MockClock) -> None:
    containment = Containment()
    for _ in range(2):
        with containment.unit("action", "ns/a", parks=True):
            raise RuntimeError("no")
        await trio.sleep(5)
    (parked,) = containment.parked
    assert (parked.kind, parked.identity, parked.failures) == ("action", "ns/a", 2)
    assert parked.error == "RuntimeError: no"
    assert trio.current_time() - parked.since == 10
    with containment.unit("action", "ns/a", parks=True):
        pass
    assert containment.parked == ()
    assert containment.failures == {"action": 2}


async def test_a_flood_is_logged_once_and_counted_whole(autojump_clock: MockClock) -> None:
    containment = Containment()
    with capture_logs() as logs:
        for number in range(1000):
            with containment.unit("connection", str(number)):
                raise RuntimeError("again")
        with containment.unit("request", "another kind"):
            raise RuntimeError("has lines of its own")
        assert len(logs) == 21
        await trio.sleep(60)
        with containment.unit("connection", "later"):
            raise RuntimeError("again")
    assert logs[-1]["left_out"] == 980
    assert containment.failures == {"connection": 1001, "request": 1}


async def test_what_is_to_run_for_ever_is_run_again(autojump_clock: MockClock) -> None:
    containment = Containment()
    runs: list[Callable[[], Awaitable[None]]] = []

    async def run() -> None:
        runs.append(run)
        if len(runs) < 4:
            raise RuntimeError("it fails three times")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(containment.keep, "task", "the lease", run)
        await trio.sleep(30)
        assert len(runs) == 4
        (parked,) = containment.parked
        assert (parked.kind, parked.identity, parked.failures) == ("task", "the lease", 3)
        await trio.sleep(60)
        assert containment.parked == ()
        nursery.cancel_scope.cancel("seen enough")
    assert containment.failures == {"task": 3}


async def test_what_returns_is_not_run_again(autojump_clock: MockClock) -> None:
    containment = Containment()
    runs = []

    async def run() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise RuntimeError("once")

    await containment.keep("task", "t", run, backoff=Backoff(1, 1))
    assert len(runs) == 2
    assert containment.parked == ()
