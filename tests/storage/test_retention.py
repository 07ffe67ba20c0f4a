"""Leases of recorded actions: never too short, few, and gone with nobody's own objects."""

from __future__ import annotations

from typing import cast

import pytest
import trio
import trio.testing

from etcd_actions.codecs import json
from etcd_actions.errors import (
    ConfigError,
    EtcdError,
    OutcomeUnknown,
    PermissionDenied,
    Unavailable,
)
from etcd_actions.etcd.api import Etcd, KeyRange, Lease, WatchCreate
from etcd_actions.model import FINALIZER_RECORD
from etcd_actions.record.recorder import MarkResult, Recorder
from etcd_actions.storage.retention import Retention
from etcd_actions.storage.store import Store
from tests.codecs.labels import add_label
from tests.support.endings import ENDING, ended, get, put

pytestmark = pytest.mark.memory


class Granting:
    """Grants leases with numbers of its own, when it is let."""

    def __init__(self) -> None:
        self.ttls: list[int] = []
        self.gate = trio.Event()
        self.gate.set()
        self.error: EtcdError | None = None

    async def lease_grant(self, ttl: int) -> Lease:
        self.ttls.append(ttl)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Lease(len(self.ttls), ttl)


def retention(granting: Granting, seconds: float, *, write: float = 10.0) -> Retention:
    return Retention(cast(Etcd, granting), seconds, write=write)


# --- buckets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(1, 1.0), (16, 1.0), (160, 10.0), (86_400, 5_400.0)]
)
async def test_a_lease_lasts_from_the_end_of_its_bucket(
    mock_clock: trio.testing.MockClock, seconds: float, bucket: float
) -> None:
    """Whoever gets it last, and writes slowly, still has the whole time."""
    granting = Granting()
    leases = retention(granting, seconds)
    assert granting.ttls == []
    assert await leases.lease() == 1
    mock_clock.jump(bucket - 0.01)
    assert await leases.lease() == 1
    mock_clock.jump(0.01)
    assert await leases.lease() == 2
    assert await leases.lease() == 2
    assert leases.granted == 2
    assert all(ttl >= seconds + bucket + 10 for ttl in granting.ttls)
    assert all(ttl < seconds + bucket + 11 for ttl in granting.ttls)


async def test_the_time_that_granting_takes_counts(mock_clock: trio.testing.MockClock) -> None:
    """etcd's clock for the lease may have started when it was asked."""
    granting = Granting()
    granting.gate = trio.Event()
    leases = retention(granting, 16)
    got: list[int] = []

    async def ask() -> None:
        got.append(await leases.lease())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(0.9)
        granting.gate.set()
    mock_clock.jump(0.09)
    assert [*got, await leases.lease()] == [1, 1]
    mock_clock.jump(0.01)
    assert await leases.lease() == 2


async def test_all_that_ask_at_once_share_one() -> None:
    """Its error, too: each would else wait for etcd on its own, one behind the other."""
    granting = Granting()
    leases = retention(granting, 60)
    outcomes: list[int | EtcdError] = []

    async def ask() -> None:
        try:
            outcomes.append(await leases.lease())
        except EtcdError as error:
            outcomes.append(error)

    async def all_ask() -> None:
        outcomes.clear()
        granting.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            granting.gate.set()

    granting.error = PermissionDenied("not for you")
    await all_ask()
    assert [type(each) for each in outcomes] == [PermissionDenied] * 5
    assert len({id(each) for each in outcomes}) == 5
    granting.error = None
    await all_ask()
    assert outcomes == [2] * 5
    assert len(granting.ttls) == 2


async def test_a_lost_answer_is_no_lost_write() -> None:
    """Nothing was attached to the lease that may be there; it expires."""
    granting = Granting()
    granting.error = OutcomeUnknown("the answer was lost")
    with pytest.raises(Unavailable) as caught:
        await retention(granting, 60).lease()
    assert type(caught.value) is Unavailable


async def test_who_asks_first_may_be_cancelled() -> None:
    """Another one asks then."""
    granting = Granting()
    granting.gate = trio.Event()
    leases = retention(granting, 60)
    got: list[int] = []

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            got.append(await leases.lease())

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, second)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel("the test says so")
        await trio.testing.wait_all_tasks_blocked()
        granting.gate.set()
    assert got == [2]


async def test_a_lost_lease_is_replaced_once() -> None:
    """By the first that finds it gone; the others get the new one."""
    leases = retention(Granting(), 60)
    lost = await leases.lease()
    for _ in range(3):
        leases.lost(lost)
        assert await leases.lease() == lost + 1


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 9e9])
def test_times_that_are_none(seconds: float) -> None:
    with pytest.raises(ConfigError, match="retain_terminal"):
        retention(Granting(), seconds)


# --- on a real etcd -----------------------------------------------------------------------


async def test_leases_are_shared(etcd: Etcd, prefix: bytes) -> None:
    """All that is marked in one bucket has one; another process has another."""
    leases = [Retention(etcd, 60), Retention(etcd, 60)]
    found = set()
    for number in range(6):
        seen = await put(etcd, prefix + b"%d" % number, ended(FINALIZER_RECORD))
        await Recorder(Store(etcd), leases[number % 2]).mark(seen, ENDING)
        now = await get(etcd, seen.key)
        assert now is not None
        found.add(now.lease)
    assert len(found) == 2
    assert 0 not in found
    for lease in found:
        await etcd.lease_revoke(lease)


async def test_a_revoked_lease_is_replaced(etcd: Etcd, prefix: bytes) -> None:
    """What was attached to it is gone; what comes next gets another."""
    recorder = Recorder(Store(etcd), Retention(etcd, 60))
    first = await put(etcd, prefix + b"1", ended(FINALIZER_RECORD))
    assert await recorder.mark(first, ENDING) is MarkResult.MARKED
    marked = await get(etcd, first.key)
    assert marked is not None
    await etcd.lease_revoke(marked.lease)
    second = await put(etcd, prefix + b"2", ended(FINALIZER_RECORD))
    assert await recorder.mark(second, ENDING) is MarkResult.MARKED
    now = await get(etcd, second.key)
    assert now is not None
    assert now.lease not in (0, marked.lease)
    await etcd.lease_revoke(now.lease)


async def test_an_old_lease_takes_nothing_that_was_written_anew(etcd: Etcd, prefix: bytes) -> None:
    """By an API server, which detaches it; or made again under its name."""
    recorder = Recorder(Store(etcd), Retention(etcd, 60))
    for name in (b"left", b"edited", b"goes on", b"made again"):
        seen = await put(etcd, prefix + name, ended(FINALIZER_RECORD))
        assert await recorder.mark(seen, ENDING) is MarkResult.MARKED
    marked = await get(etcd, prefix + b"edited")
    assert marked is not None
    await etcd.put(prefix + b"edited", add_label(json, marked.value, "team", "blue"))
    await etcd.put(prefix + b"goes on", ended(FINALIZER_RECORD))
    await etcd.delete(KeyRange.of_key(prefix + b"made again"))
    await etcd.put(prefix + b"made again", ended(FINALIZER_RECORD))
    await etcd.lease_revoke(marked.lease)
    left = await etcd.range(KeyRange.of_prefix(prefix))
    assert {kv.key.removeprefix(prefix) for kv in left.kvs} == {
        b"edited",
        b"goes on",
        b"made again",
    }


@pytest.mark.slow
async def test_recorded_actions_expire(etcd: Etcd, prefix: bytes) -> None:
    """By themselves, not before their time, and nothing else with them."""
    kept = await put(etcd, prefix + b"kept", ended(FINALIZER_RECORD))
    seen = await put(etcd, prefix + b"marked", ended(FINALIZER_RECORD))
    recorder = Recorder(Store(etcd), Retention(etcd, 1, write=0.5))
    assert await recorder.mark(seen, ENDING) is MarkResult.MARKED
    started = trio.current_time()
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, KeyRange.of_key(seen.key), seen.mod_revision))
        with trio.fail_after(30):
            deleted = False
            while not deleted:
                for response in await stream.receive():
                    deleted = deleted or any(event.is_delete for event in response.events)
    assert trio.current_time() - started > 1
    assert await get(etcd, kept.key) == kept
