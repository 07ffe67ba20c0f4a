"""A lease is kept alive, known to be lost, and given back."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from etcd_actions._internal.call_time import suspended
from etcd_actions._internal.containment import Containment
from etcd_actions.errors import BackgroundFailure, LeaseNotFound, OutcomeUnknown, Unavailable
from etcd_actions.etcd import session as sessions
from etcd_actions.etcd.api import Etcd, KeyRange, Lease
from etcd_actions.etcd.session import Session, open_session
from tests.support.lessor import Lessor

TTL = 9
# Less a margin of a tenth.
SURE = 8.1


async def test_on_a_real_etcd_it_lives_and_is_revoked(etcd: Etcd, prefix: bytes) -> None:
    async with open_session(etcd, 60) as session:
        await etcd.put(prefix, b"", lease=session.lease.id)
        assert session.is_sure
    assert session.over.is_set()
    assert not session.is_sure
    assert not (await etcd.range(KeyRange.of_key(prefix))).kvs
    with pytest.raises(LeaseNotFound):
        await etcd.lease_keep_alive(session.lease.id)


@pytest.mark.slow
async def test_on_a_real_etcd_it_learns_that_its_lease_is_revoked(etcd: Etcd) -> None:
    async with open_session(etcd, 2) as session:
        await etcd.lease_revoke(session.lease.id)
        with trio.fail_after(30):
            await session.over.wait()
        assert session.gone


async def test_it_is_renewed_for_as_long_as_it_is_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL) as session:
        for _ in range(100):
            await trio.sleep(1)
            assert session.is_sure
            assert session.deadline < lessor.expires[session.lease.id]
    # Three times in each of its lives.
    assert len(lessor.asked) == pytest.approx(3 * 100 / TTL, abs=2)
    assert lessor.revoked == [1]


async def test_it_is_sure_from_when_the_renewal_was_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lessor = Lessor()
    lessor.latency = 2
    began = trio.current_time()
    async with open_session(lessor.etcd, TTL) as session:
        # What etcd counts begins later, by half of the latency.
        assert session.deadline == pytest.approx(began + SURE)
        renewed = trio.Event()

        async def wait() -> None:
            await session.wait_renewed()
            renewed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await renewed.wait()
        assert session.deadline == pytest.approx(lessor.asked[-1] + SURE)
        assert session.deadline < lessor.expires[session.lease.id]


async def test_slow_renewals_do_not_end_it_while_they_are_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL) as session:
        # With a third of the time before it, and one of the next: just below what is sure.
        lessor.latency = 2
        await trio.sleep(20 * TTL)
        assert session.is_sure
        # Now the answer comes too late: nobody may use it.
        lessor.latency = 20
        began = trio.current_time()
        await session.over.wait()
        assert trio.current_time() - began <= SURE
        assert not session.gone
        assert session.lease.id in lessor.expires
        await trio.sleep(100)
        assert not session.is_sure


async def test_a_lease_that_is_gone_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL) as session:
        lessor.drop(session.lease.id)
        began = trio.current_time()
        await session.over.wait()
        assert trio.current_time() - began == pytest.approx(TTL / 3)
        assert session.gone
        assert not session.is_sure
    assert lessor.revoked == []


async def test_while_etcd_is_away_it_tries_until_nothing_is_sure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lessor = Lessor()
    with capture_logs() as logs:
        async with open_session(lessor.etcd, TTL) as session:
            lessor.failure = Unavailable("away")
            await trio.sleep(SURE - 3)
            assert session.is_sure
            lessor.failure = None
            await trio.sleep(2)
            assert session.is_sure
            lessor.failure = Unavailable("away")
            deadline = session.deadline
            await session.over.wait()
            assert trio.current_time() == pytest.approx(deadline)
            assert not session.gone
    told = [line["failures"] for line in logs if line["event"] == "lease_not_renewed"]
    assert told[:2] == [1, 2]
    assert told.count(1) == 2
    assert [line["error"] for line in logs if line["event"] == "lease_not_revoked"] == ["away"]


async def test_a_renewal_without_an_answer_is_sent_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As by a member whose leader has died: it answers the next one once it has another leader."""
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL) as session:
        lessor.latency = 1000
        await trio.sleep(TTL / 3 + 1)
        lessor.latency = 0
        for _ in range(100):
            await trio.sleep(1)
            assert session.is_sure


async def test_one_that_may_be_replaced_is_tried_beyond_what_is_sure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Another leader of etcd gives leases their time again: what etcd fences may go on."""
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL, replaces=True) as session:
        lessor.failure = Unavailable("away")
        lessor.expires[session.lease.id] += 100
        await trio.sleep(50)
        assert not session.is_sure
        assert not session.over.is_set()
        lessor.failure = None
        await session.wait_renewed()
        assert session.is_sure
    assert lessor.granted == lessor.revoked == [1]


async def test_a_lost_lease_is_replaced_as_soon_as_etcd_grants_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL, replaces=True) as session:
        lost = session.over
        lessor.drop(session.lease.id)
        lessor.refuses_grants = True
        await trio.sleep(2 * TTL)
        # What hangs on it is gone, but there is nothing to go on with.
        assert not lost.is_set()
        lessor.refuses_grants = False
        await lost.wait()
        assert session.lease.id == 2
        assert session.is_sure
        await trio.sleep(10 * TTL)
        assert session.is_sure
    assert (lessor.granted, lessor.revoked) == ([1, 2], [2])


async def test_many_that_find_it_gone_get_one_lease_instead(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL, replaces=True) as session:
        lessor.latency = 1
        lessor.drop(1)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(session.replace, 1)
        assert (lessor.granted, session.lease.id) == ([1, 2], 2)


async def test_a_renewal_of_the_lease_before_is_not_taken_for_one_of_this(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL, replaces=True) as session:
        lessor.latency = 2
        await trio.sleep(TTL / 3 + 1.5)
        # Etcd has answered, and the lease is gone before the answer is here.
        lessor.latency = 0
        await session.replace(1)
        await trio.sleep(1)
        assert session.lease.id == 2


async def test_a_process_that_was_paused_finds_it_over_before_it_does_anything(
    mock_clock: trio.testing.MockClock,
) -> None:
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL) as session:
        await trio.testing.wait_all_tasks_blocked()
        # Nothing runs meanwhile.
        mock_clock.jump(SURE)
        assert not session.is_sure
        # A renewal that etcd grants by chance does not make it good again.
        lessor.expires[1] += 1000
        await session.over.wait()
        assert not session.is_sure


async def test_a_machine_that_was_suspended_counts_that(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """trio's clock stood still, and etcd's went on."""
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL) as session:
        await trio.testing.wait_all_tasks_blocked()
        asleep = suspended() + SURE - 1
        monkeypatch.setattr(sessions, "suspended", lambda: asleep)
        assert session.is_sure
        asleep += 1.1
        assert not session.is_sure
        # The renewal that comes now finds it so, and leaves it so.
        await session.over.wait()
        assert not session.gone


async def test_leaving_takes_a_bounded_time(autojump_clock: trio.testing.MockClock) -> None:
    lessor = Lessor()
    unrevoked: list[tuple[int, str]] = []
    with trio.CancelScope() as scope:
        async with open_session(
            lessor.etcd, TTL, unrevoked=lambda *what: unrevoked.append(what)
        ) as session:
            lessor.latency = 1000
            scope.cancel()
            began = trio.current_time()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() - began == pytest.approx(2)
    assert unrevoked == [(1, "no answer within 2 s")]
    assert not session.is_sure


async def test_cancelled_it_revokes(autojump_clock: trio.testing.MockClock) -> None:
    lessor = Lessor()
    lessor.latency = 1
    with trio.move_on_after(30) as scope:
        async with open_session(lessor.etcd, TTL):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert lessor.revoked == [1]


async def test_without_a_lease_it_does_not_begin() -> None:
    lessor = Lessor()
    lessor.refuses_grants = True
    with pytest.raises(Unavailable, match="no lease is granted"):
        async with open_session(lessor.etcd, TTL):
            pytest.fail("it must not begin")


async def test_an_unexpected_failure_ends_what_nobody_else_contains(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessor, containment = Lessor(), Containment()
    faults = 2
    keep_alive = lessor.lease_keep_alive

    async def fail(lease_id: int) -> object:
        nonlocal faults
        if faults:
            faults -= 1
            raise ZeroDivisionError
        return await keep_alive(lease_id)

    monkeypatch.setattr(lessor, "lease_keep_alive", fail)
    with pytest.raises(BackgroundFailure, match="the lease session") as raised:
        async with open_session(lessor.etcd, TTL):
            await trio.sleep_forever()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert lessor.revoked == [1]
    runner = partial(containment.keep, "task", "renewing")
    async with open_session(lessor.etcd, TTL, runner=runner) as session:
        await trio.sleep(10 * TTL)
        assert session.is_sure
    assert containment.failures == {"task": 1}


async def test_an_answer_that_is_lost_is_asked_for_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lessor = Lessor()
    async with open_session(lessor.etcd, TTL) as session:
        lessor.failure = OutcomeUnknown("lost")
        await trio.sleep(TTL / 3 + 0.01)
        lessor.failure = None
        await session.wait_renewed()
        assert session.is_sure


async def test_an_answer_that_a_paused_process_finds_comes_too_late(
    mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there before the process noticed the time: somebody may have looked already."""
    lessor, answer, asked, told = Lessor(), trio.Event(), trio.Event(), []

    async def keep_alive(lease_id: int) -> Lease:
        asked.set()
        await answer.wait()
        return Lease(lease_id, TTL)

    monkeypatch.setattr(lessor, "lease_keep_alive", keep_alive)

    async def wait(session: Session) -> None:
        await session.wait_renewed()
        told.append(session.is_sure)

    async with open_session(lessor.etcd, 10 * TTL) as session, trio.open_nursery() as nursery:
        nursery.start_soon(wait, session)
        await trio.testing.wait_all_tasks_blocked()
        # One that was begun late, so that it would last on from when it was sent.
        mock_clock.jump(10 * SURE - 1)
        await asked.wait()
        mock_clock.jump(2)
        assert not session.is_sure
        answer.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not session.is_sure
        assert session.over.is_set()
        assert told == []
        nursery.cancel_scope.cancel()
