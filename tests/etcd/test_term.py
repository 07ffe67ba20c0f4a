"""How long a lease is surely alive, and what that means for calls that nothing fences."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
import trio
import trio.testing

from etcd_actions._internal.call_time import call_until, lease_left, time_left
from etcd_actions.errors import RunServiceRejected, RunServiceUnavailable
from etcd_actions.etcd import session as sessions
from etcd_actions.etcd.api import Lease
from etcd_actions.etcd.session import Moment, Session
from etcd_actions.etcd.term import Leadership, Term
from etcd_actions.record.leader_calls import LANDING, LeaderCalls, LeaseTooShort
from tests.support.lessor import session_of

TTL = 10
SURE = 9.0


def begun(session: Session | None = None) -> Term:
    return Term(Leadership(b"key", 7), session or session_of(TTL))


async def test_the_lease_is_sure_from_when_its_renewal_was_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Less a margin, for servers that count a deadline from when they got the call."""
    session = session_of(TTL)
    term = begun(session)
    assert term.sure_until() == pytest.approx(trio.current_time() + SURE)
    asked = Moment.now()
    # The answer is late.
    await trio.sleep(3)
    session.renewed(Lease(1, TTL), asked)
    assert term.sure_until() == pytest.approx(trio.current_time() + SURE - 3)
    await trio.sleep(SURE - 3)
    assert not term.lasts


async def test_a_suspended_machine_counts_as_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    """trio's clock stands still meanwhile, and etcd's goes on."""
    term = begun()
    assert term.lasts
    monkeypatch.setattr(sessions, "suspended", lambda: 3600.0)
    assert not term.lasts
    assert term.sure_until() < trio.current_time()


async def test_a_call_waits_for_the_renewal_when_too_little_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    session = session_of(TTL)
    term, calls, made = begun(session), LeaderCalls(), []

    async def call() -> None:
        made.append(trio.current_time())

    calls.start(term, -math.inf)
    await trio.sleep(SURE - term.least_call + 0.1)
    with trio.move_on_after(1):
        await calls.make(call)
    assert made == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(calls.make, call)
        await trio.testing.wait_all_tasks_blocked()
        session.renewed(Lease(1, TTL), Moment.now())
    assert made == [trio.current_time()]


async def test_nothing_is_sent_once_the_term_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not by what waits for a renewal either: it waits until it is cancelled."""
    term, calls, made = begun(), LeaderCalls(), []

    async def call() -> None:
        made.append(1)

    calls.start(term, -math.inf)
    term.over.set()
    with trio.move_on_after(1000):
        await calls.make(call)
    assert made == []


async def test_a_call_ends_with_the_lease_and_is_in_doubt_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    term, calls = begun(), LeaderCalls()
    calls.start(term, -math.inf)
    until = term.sure_until()
    with pytest.raises(LeaseTooShort):
        await calls.make(trio.sleep_forever)
    assert trio.current_time() == pytest.approx(until)
    assert calls.uncertain_until == pytest.approx(until + LANDING)


@pytest.mark.parametrize(
    ("error", "doubt"),
    [
        (None, False),
        (RunServiceRejected("no", code=3), False),
        (RunServiceUnavailable("?"), True),
        (SystemExit(1), True),
    ],
)
async def test_what_may_still_land_is_known(error: BaseException | None, doubt: bool) -> None:
    term, calls = begun(), LeaderCalls()
    calls.start(term, -math.inf)

    async def call() -> None:
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error

    with suppress(RunServiceUnavailable, RunServiceRejected, SystemExit):
        await calls.make(call)
    assert (calls.uncertain_until > trio.current_time()) == doubt


async def test_a_call_knows_how_long_it_may_take(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert time_left() == lease_left() == math.inf
    end = trio.current_time() + 5
    with trio.move_on_after(3), call_until(lambda: end):
        assert time_left() == pytest.approx(3)
        assert lease_left() == pytest.approx(5)
        # As after a suspension: earlier than was said.
        end -= 4
        assert time_left() == pytest.approx(1)
        await trio.lowlevel.checkpoint()
    assert time_left() == math.inf
