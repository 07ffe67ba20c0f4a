"""Exactly one leads, and another one takes over: by resignation, by time, by force."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions import open_etcd
from etcd_actions.errors import ConfigError, OutcomeUnknown, PermissionDenied, Unavailable
from etcd_actions.etcd.api import Compare, Etcd, KeyRange, KeyValue, Lease, Put, Txn, TxnResult
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.etcd.election import Election, Leadership, open_election
from etcd_actions.testing import EtcdServer, OwnEtcd
from tests.support.waiting import eventually, stand_still

pytestmark = pytest.mark.memory

LONG = 120
"""A time to live that no test waits for: what happens sooner was not its end."""

PATIENCE = 60


async def stored(etcd: Etcd, key: bytes) -> list[KeyValue]:
    return (await etcd.range(KeyRange.of_key(key))).kvs


async def holds(etcd: Etcd, fence: Compare) -> bool:
    return (await etcd.txn(Txn([fence], []))).succeeded


@asynccontextmanager
async def contenders(etcd: Etcd, key: bytes, count: int) -> AsyncIterator[list[Election]]:
    """All stand; none leads for want of time."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_election(etcd, key, name=f"c{n}", ttl=LONG))
            for n in range(count)
        ]


async def first_elected(elections: list[Election]) -> Election:
    await eventually(lambda: any(each.is_leader for each in elections))
    [leader] = [each for each in elections if each.is_leader]
    return leader


@pytest.fixture
async def by_transport(shared_etcd: EtcdServer, transport: TransportName) -> AsyncIterator[Etcd]:
    async with open_etcd(shared_etcd.endpoint, transport=transport) as connection:
        yield connection


async def test_one_alone_is_elected_and_resigns_on_leaving(
    by_transport: Etcd, prefix: bytes
) -> None:
    key = prefix + b"election"
    async with open_election(by_transport, key, name="me", ttl=LONG) as election:
        assert not election.is_leader
        assert not await holds(by_transport, election.fence)
        with trio.fail_after(PATIENCE):
            leadership = await election.wait_leader()
        [kv] = await stored(by_transport, key)
        assert leadership == Leadership(key, kv.create_revision)
        assert (kv.value, kv.lease != 0) == (b"me", True)
        assert election.is_leader
        assert election.leadership == leadership
        assert await holds(by_transport, election.fence)
        statistics = election.statistics()
        assert (statistics.is_leader, statistics.leader, statistics.terms) == (True, "me", 1)
        assert (statistics.losses, statistics.failures) == ({}, 0)
    assert await stored(by_transport, key) == []
    assert not await holds(by_transport, leadership.fence)
    assert not election.is_leader
    assert election.leadership is None
    assert election.fence == leadership.fence
    await election.wait_lost()


@pytest.mark.parametrize("count", [2, 3])
async def test_contenders_lead_one_after_the_other(etcd: Etcd, prefix: bytes, count: int) -> None:
    """Each resigns after a while; the next one takes over at once, and never sooner."""
    key, turns = prefix + b"election", 4
    everybody: list[Election] = []
    terms: list[tuple[float, float, int]] = []

    async def contend() -> None:
        for _ in range(turns):
            async with open_election(etcd, key, ttl=LONG) as election:
                everybody.append(election)
                leadership = await election.wait_leader()
                began = time.monotonic()
                for _ in range(5):
                    assert [each for each in everybody if each.is_leader] == [election]
                    assert await holds(etcd, leadership.fence)
                ended = time.monotonic()
                assert election.is_leader
            terms.append((began, ended, leadership.create_revision))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(contend)
    terms.sort()
    assert len(terms) == count * turns
    assert [revision for *_, revision in terms] == sorted({revision for *_, revision in terms})
    for (_, ended, _), (began, _, _) in pairwise(terms):
        assert ended < began
    assert await stored(etcd, key) == []


@pytest.mark.parametrize("by_force", ["revoke", "delete"])
async def test_a_leader_learns_that_its_key_is_gone(
    by_transport: Etcd, prefix: bytes, by_force: str
) -> None:
    """Somebody revokes its lease, or deletes its key: it is told long before it would renew."""
    key = prefix + b"election"
    async with contenders(by_transport, key, 2) as elections:
        leader = await first_elected(elections)
        before = await leader.wait_leader()
        name = leader.statistics().leader
        await eventually(lambda: {each.statistics().leader for each in elections} == {name})
        assert await holds(by_transport, before.fence)
        [kv] = await stored(by_transport, key)
        if by_force == "revoke":
            await by_transport.lease_revoke(kv.lease)
        else:
            await by_transport.delete(KeyRange.of_key(key))
        with trio.fail_after(PATIENCE):
            await leader.wait_lost()
        assert not await holds(by_transport, before.fence)
        after = await (await first_elected(elections)).wait_leader()
        assert after.create_revision > before.create_revision
        assert await holds(by_transport, after.fence)
        assert leader.statistics().losses == {"deleted": 1}
        # The revoked one is not there to be revoked again, which must not harm.
        assert sum(each.statistics().failures for each in elections) == 0


async def test_a_leader_that_vanishes_is_replaced(etcd: Etcd, prefix: bytes) -> None:
    """A lease that nobody renews expires, and the key with it."""
    key = prefix + b"election"
    lease = await etcd.lease_grant(2)
    await etcd.put(key, b"crashed", lease=lease.id)
    async with open_election(etcd, key, ttl=LONG) as election:
        assert not election.is_leader
        with trio.fail_after(PATIENCE):
            leadership = await election.wait_leader()
        assert await holds(etcd, leadership.fence)


async def test_a_process_that_was_stopped_knows_at_once(etcd: Etcd, prefix: bytes) -> None:
    """Its clock tells it, before any task of it has run; then it stands again."""
    key = prefix + b"election"
    async with open_election(etcd, key, ttl=2) as election:
        with trio.fail_after(PATIENCE):
            before = await election.wait_leader()
        stand_still(2)
        assert not election.is_leader
        assert election.leadership is None
        with trio.fail_after(PATIENCE):
            await election.wait_lost()
            after = await election.wait_leader()
        assert after.create_revision > before.create_revision
        assert not await holds(etcd, before.fence)


async def test_a_guard_decides_who_may_be_elected(by_transport: Etcd, prefix: bytes) -> None:
    """It is looked at again after a time, and does not end a term."""
    key, other = prefix + b"election", prefix + b"other"
    guard = (Compare.incarnation(other, 0),)
    await by_transport.put(other, b"there")
    async with open_election(by_transport, key, ttl=2, guard=guard) as election:
        await eventually(lambda: election.statistics().refused)
        assert election.is_refused
        assert await stored(by_transport, key) == []
        assert election.statistics().failures == 0
        async with open_election(by_transport, key, name="free", ttl=LONG) as free:
            with trio.fail_after(PATIENCE):
                await free.wait_leader()
            await eventually(lambda: election.statistics().leader == "free")
            assert not election.is_refused
        await eventually(lambda: election.is_refused)
        await by_transport.delete(KeyRange.of_key(other))
        with trio.fail_after(PATIENCE):
            leadership = await election.wait_leader()
        assert not election.is_refused
        await by_transport.put(other, b"there")
        assert await holds(by_transport, leadership.fence)
        assert election.is_leader


async def test_a_guard_that_fails_at_the_creation_elects_nobody(etcd: Etcd, prefix: bytes) -> None:
    """It held when the process looked, and not when it created the key."""
    key, other = prefix + b"election", prefix + b"other"

    class Late:
        """The other key is created before the first lease."""

        async def lease_grant(self, ttl: int) -> object:
            await etcd.put(other, b"there")
            return await etcd.lease_grant(ttl)

        def __getattr__(self, name: str) -> object:
            return getattr(etcd, name)

    guard = (Compare.incarnation(other, 0),)
    async with open_election(Late(), key, ttl=2, guard=guard) as election:  # type: ignore[arg-type]
        await eventually(lambda: election.is_refused)
        assert election.statistics().terms == 0
        assert await stored(etcd, key) == []


async def test_cancelled_it_resigns(etcd: Etcd, prefix: bytes) -> None:
    key = prefix + b"election"
    with trio.CancelScope() as scope:
        async with open_election(etcd, key, ttl=LONG) as election:
            with trio.fail_after(PATIENCE):
                await election.wait_leader()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert await stored(etcd, key) == []


async def test_cancelled_at_any_moment_it_leaves_no_key(etcd: Etcd, prefix: bytes) -> None:
    """Also while the lease is granted, or the key created."""
    key = prefix + b"election"
    for thousandths in range(0, 20, 2):
        with trio.move_on_after(thousandths / 1000):
            async with open_election(etcd, key, ttl=LONG):
                await trio.sleep_forever()
        assert await stored(etcd, key) == []


async def test_too_short_a_time_to_live(etcd: Etcd, prefix: bytes) -> None:
    with pytest.raises(ConfigError, match="ttl: 1 s is too short for a lease: give at least 2"):
        async with open_election(etcd, prefix, ttl=1):
            pytest.fail("it must not begin")


class Flawed:
    """Another connection, with some calls that fail."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.grants_refused = 0
        self.answers_lost = 0
        self.renewals_lost = 0
        self.renewals = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def lease_grant(self, ttl: int) -> Lease:
        if self.grants_refused:
            self.grants_refused -= 1
            raise PermissionDenied("etcd refuses")
        return await self._etcd.lease_grant(ttl)

    async def lease_keep_alive(self, lease_id: int) -> Lease:
        self.renewals += 1
        if self.renewals_lost:
            self.renewals_lost -= 1
            raise Unavailable("no answer")
        return await self._etcd.lease_keep_alive(lease_id)

    async def txn(self, txn: Txn) -> TxnResult:
        result = await self._etcd.txn(txn)
        if self.answers_lost and any(isinstance(each, Put) for each in txn.success):
            self.answers_lost -= 1
            raise OutcomeUnknown("the answer is lost")
        return result


async def test_a_creation_whose_answer_is_lost_is_taken_back(etcd: Etcd, prefix: bytes) -> None:
    """The key is there, but since when cannot be told: it is revoked, and made anew."""
    key = prefix + b"election"
    flawed = Flawed(etcd)
    flawed.answers_lost = 2
    async with open_election(flawed, key, ttl=LONG) as election:
        with trio.fail_after(PATIENCE):
            leadership = await election.wait_leader()
        [kv] = await stored(etcd, key)
        assert (kv.create_revision, kv.version) == (leadership.create_revision, 1)
        assert election.statistics().failures == 2


async def test_a_refusal_is_told_and_may_be_lifted(etcd: Etcd, prefix: bytes) -> None:
    flawed = Flawed(etcd)
    flawed.grants_refused = 3
    with capture_logs() as logs:
        async with open_election(flawed, prefix + b"election", ttl=LONG) as election:
            with trio.fail_after(PATIENCE):
                await election.wait_leader()
    told = [line for line in logs if line["event"] == "election_failed"]
    # The first and the second; not each of what may become thousands.
    assert [line["failures"] for line in told] == [1, 2]
    assert {line["error"] for line in told} == {"etcd refuses"}


async def test_a_leader_renews_until_it_is_answered(etcd: Etcd, prefix: bytes) -> None:
    """It leads on, in one term, for longer than its lease would live."""
    flawed = Flawed(etcd)
    flawed.renewals_lost = 3
    async with open_election(flawed, prefix + b"election", ttl=4) as election:
        with trio.fail_after(PATIENCE):
            leadership = await election.wait_leader()
        began = trio.current_time()
        await eventually(lambda: flawed.renewals == 6)
        assert trio.current_time() - began > 4
        assert election.leadership == leadership
        assert election.statistics().failures == 3


async def suspend(server: OwnEtcd, etcd: Etcd) -> None:
    """Have etcd stand still; its threads may take a moment to."""
    server.suspend()
    answered = True
    while answered:
        with trio.move_on_after(0.2) as scope:
            await etcd.range(KeyRange.of_key(b"/election"))
        answered = not scope.cancelled_caught


@pytest.mark.faults
async def test_a_leader_cut_off_gives_up_before_its_lease_ends(own_etcd: OwnEtcd) -> None:
    """etcd stands still, its time does not: by its own clock the leader gives up in time."""
    ttl = 2
    async with (
        open_etcd(own_etcd.endpoint, request_timeout=1) as etcd,
        open_election(etcd, b"/election", ttl=ttl) as election,
    ):
        with trio.fail_after(PATIENCE):
            before = await election.wait_leader()
        await suspend(own_etcd, etcd)
        # Nothing can have been renewed since; half a second is left for stopping work.
        await trio.sleep(ttl - 0.5)
        assert not election.is_leader
        with trio.fail_after(PATIENCE):
            await election.wait_lost()
        own_etcd.resume()
        with trio.fail_after(PATIENCE):
            after = await election.wait_leader()
        assert after.create_revision > before.create_revision
        assert election.statistics().losses["not_renewed"] >= 1


@pytest.mark.faults
async def test_leaving_takes_a_bounded_time_while_etcd_hangs(own_etcd: OwnEtcd) -> None:
    with capture_logs() as logs:
        async with open_etcd(own_etcd.endpoint, request_timeout=PATIENCE) as etcd:
            async with open_election(etcd, b"/election", ttl=LONG) as election:
                with trio.fail_after(PATIENCE):
                    await election.wait_leader()
                await suspend(own_etcd, etcd)
                began = trio.current_time()
            assert 1.9 < trio.current_time() - began < PATIENCE / 2
    assert [line["error"] for line in logs if line["event"] == "not_resigned"] == [
        "no answer within 2 s"
    ]


@pytest.mark.faults
async def test_it_outlives_an_etcd_that_comes_late_and_crashes(killable_etcd: OwnEtcd) -> None:
    """It waits, is elected, and after a crash leads again, in the same term or in another."""
    killable_etcd.stop()
    async with (
        open_etcd(killable_etcd.endpoint, request_timeout=1) as etcd,
        open_election(etcd, b"/election", ttl=5) as election,
    ):
        await eventually(lambda: election.statistics().failures >= 2)
        assert not election.is_leader
        await trio.to_thread.run_sync(killable_etcd.start)
        with trio.fail_after(PATIENCE):
            await election.wait_leader()
        killable_etcd.kill()
        seen = election.statistics().failures
        await eventually(lambda: election.statistics().failures > seen)
        await trio.to_thread.run_sync(killable_etcd.start)
        async with open_etcd(killable_etcd.endpoint) as direct:
            with trio.fail_after(PATIENCE):
                leadership = await election.wait_leader()
                while not await holds(direct, election.fence):
                    await election.wait_lost()
                    leadership = await election.wait_leader()
            assert election.leadership in (leadership, None)


CHILD = """
import sys, time
import structlog, trio
from etcd_actions import open_etcd
from etcd_actions.etcd.election import open_election

async def main(endpoint, key):
    async with open_etcd(endpoint) as etcd, open_election(etcd, key.encode(), ttl=2) as election:
        while True:
            now = time.monotonic()
            if election.is_leader:
                print(now, flush=True)
            await trio.sleep(0.01)

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
trio.run(main, *sys.argv[1:])
"""


@pytest.mark.faults
async def test_a_stopped_process_does_not_lead_beside_its_successor(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """It leads, is stopped, is replaced, goes on, and does not for a moment think it leads."""
    key = prefix + b"election"
    led: list[float] = []

    async def read(child: trio.Process) -> None:
        assert child.stdout is not None
        rest = b""
        async for data in child.stdout:
            *lines, rest = (rest + data).split(b"\n")
            led.extend(map(float, lines))

    with trio.fail_after(2 * PATIENCE):
        async with trio.open_nursery() as nursery:
            child = await trio.lowlevel.open_process(
                [sys.executable, "-c", CHILD, shared_etcd.endpoint, key.decode()],
                stdout=-1,
            )
            try:
                nursery.start_soon(read, child)
                await eventually(lambda: len(led) > 3)
                child.send_signal(signal.SIGSTOP)
                async with open_election(etcd, key, ttl=LONG) as election:
                    await election.wait_leader()
                    began = time.monotonic()
                    child.send_signal(signal.SIGCONT)
                    # Long enough for it to look a hundred times.
                    await trio.sleep(1)
                    assert election.is_leader
                    ended = time.monotonic()
                await eventually(lambda: led[-1] > ended)
            finally:
                child.kill()
                with trio.CancelScope(shield=True):
                    await child.wait()
    assert [at for at in led if began <= at <= ended] == []
    assert led[0] < began
