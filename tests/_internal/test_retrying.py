"""Again after a growing delay, until it is done; what is not expected passes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.logger import get_logger
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.errors import EtcdError, RequestTooLarge, Unavailable

BACKOFF = Backoff(initial=1.0, cap=8.0)


async def fail(failures: Failures, error: Exception, *, until: float = math.inf) -> None:
    """Raise an error at each attempt."""
    async for attempt in retrying(
        BACKOFF, on=EtcdError, unless=RequestTooLarge, report=failures, until=until
    ):
        with attempt:
            raise error


class Failures:
    """What was reported, and when on trio's clock."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.delays: list[float] = []

    def __call__(self, error: Exception, failures: int, delay: float, /) -> None:
        self.seen.append((str(error), failures))
        self.delays.append(delay)


async def test_it_goes_on_until_it_is_done(autojump_clock: trio.testing.MockClock) -> None:
    failures, tries = Failures(), []
    async for attempt in retrying(BACKOFF, on=EtcdError, report=failures):
        with attempt:
            tries.append(trio.current_time())
            if len(tries) < 6:
                raise Unavailable(f"try {len(tries)}")
    assert failures.seen == [(f"try {n}", n) for n in range(1, 6)]
    waits = [after - before for before, after in pairwise(tries)]
    assert waits == pytest.approx(failures.delays)
    for wait, most in zip(waits, (1, 2, 4, 8, 8), strict=True):
        assert most / 2 <= wait <= most


async def test_what_is_returned_comes_out(autojump_clock: trio.testing.MockClock) -> None:
    async def find() -> str:
        tries = 0
        async for attempt in retrying(BACKOFF, on=EtcdError, report=Failures()):
            with attempt:
                tries += 1
                if tries == 1:
                    raise Unavailable("not yet")
                return "found"
        raise AssertionError("the loop ended by itself")

    assert await find() == "found"


@pytest.mark.parametrize(
    "error", [ValueError("ours"), RequestTooLarge("too large"), ExceptionGroup("", [ValueError()])]
)
async def test_another_error_passes(
    autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    failures = Failures()
    with pytest.raises(type(error)) as raised:
        await fail(failures, error)
    assert raised.value is error
    assert failures.seen == []


async def test_a_group_counts_as_what_it_holds(autojump_clock: trio.testing.MockClock) -> None:
    """As a nursery raises it."""
    failures, tries = Failures(), 0
    async for attempt in retrying(BACKOFF, on=EtcdError, report=failures):
        with attempt:
            tries += 1
            if tries == 1:
                nested = ExceptionGroup("", [Unavailable("inner"), Unavailable("other")])
                raise ExceptionGroup("", [nested])
    assert failures.seen == [("inner", 1)]


async def test_of_a_mixed_group_the_rest_passes(autojump_clock: trio.testing.MockClock) -> None:
    failures = Failures()
    with pytest.raises(ExceptionGroup) as raised:
        await fail(failures, ExceptionGroup("", [Unavailable("away"), ValueError("ours")]))
    assert [type(error) for error in raised.value.exceptions] == [ValueError]
    assert failures.seen == [("away", 1)]


async def test_a_cancellation_passes_in_the_body_and_in_the_delay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures = Failures()
    with trio.move_on_after(1) as scope:
        async for attempt in retrying(BACKOFF, on=Exception, report=failures):
            with attempt:
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert failures.seen == []
    with trio.move_on_after(0.25) as scope:
        async for attempt in retrying(BACKOFF, on=Exception, report=failures):
            with attempt:
                raise Unavailable("away")
    assert scope.cancelled_caught
    assert failures.seen == [("away", 1)]


async def test_a_cancellation_beside_an_error_passes_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A task that fails while its nursery is cancelled must not undo the cancellation."""
    failures = Failures()

    async def fail_when_cut_off() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Unavailable("cut off")

    with trio.move_on_after(1) as scope:
        async for attempt in retrying(BACKOFF, on=EtcdError, report=failures):
            with attempt:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fail_when_cut_off)
                    await trio.sleep_forever()
    assert scope.cancelled_caught
    assert failures.seen == [("cut off", 1)]


async def test_after_its_time_the_error_passes(autojump_clock: trio.testing.MockClock) -> None:
    failures = Failures()
    until = trio.current_time() + 20
    with pytest.raises(Unavailable, match="away"):
        await fail(failures, Unavailable("away"), until=until)
    assert until <= trio.current_time() <= until + BACKOFF.cap
    assert len(failures.seen) >= 4


async def test_what_went_well_for_a_while_fails_for_the_first_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures, tries = Failures(), 0
    async for attempt in retrying(BACKOFF, on=EtcdError, report=failures):
        with attempt:
            tries += 1
            if tries == 3:
                attempt.recovered()
            if tries < 5:
                raise Unavailable("away")
    assert [count for _, count in failures.seen] == [1, 2, 1, 2]
    assert failures.delays[2] <= BACKOFF.initial


async def test_the_first_and_then_fewer_and_fewer_are_logged(
    autojump_clock: trio.testing.MockClock,
) -> None:
    tries = 0
    with capture_logs() as logs:
        report = seldom(get_logger(__name__), "not_done", what="it")
        async for attempt in retrying(BACKOFF, on=EtcdError, report=report):
            with attempt:
                tries += 1
                if tries <= 20:
                    raise Unavailable(f"try {tries}")
    assert [line["failures"] for line in logs] == [1, 2, 4, 8, 16]
    assert {(line["event"], line["log_level"], line["what"]) for line in logs} == {
        ("not_done", "warning", "it")
    }
    assert logs[0]["error"] == "try 1"
    assert 0.5 <= logs[0]["retry_in"] <= 1
