"""Who asks about a run at the same time has one listing together, and never too old a one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.actions.run_listings import Listed, Run, RunListings
from etcd_actions.codecs import codec_of
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, Put, Txn
from etcd_actions.model import ActionUpdate, Keyspace, build_action_update
from etcd_actions.storage.store import Store
from tests.cli.here import reads, taskaction

pytestmark = pytest.mark.memory

RUN = Run("flyte", "r1")


class Reader:
    """A run whose listing takes a second, and holds the number of the listing."""

    def __init__(self) -> None:
        self.revision = 10
        self.begun = 0
        self.failing = 0

    async def __call__(self, run: Run) -> Listed[str]:
        self.begun += 1
        number, revision = self.begun, self.revision
        await trio.sleep(1)
        if self.failing:
            self.failing -= 1
            raise Unavailable("not now")
        return Listed(revision, {b"owner": [f"{run.name}-{number}"]})


async def test_those_who_ask_meanwhile_have_one_together(autojump_clock: MockClock) -> None:
    reader = Reader()
    listings = RunListings(reader)
    found: list[Sequence[str]] = []

    async def ask(revision: int) -> None:
        found.append(await listings.owned(RUN, b"owner", revision))

    async with trio.open_nursery() as nursery:
        for revision in range(1, 11):
            nursery.start_soon(ask, revision)
        await wait_all_tasks_blocked()
        reader.revision = 20
        # They happened after the listing began.
        for revision in range(11, 21):
            nursery.start_soon(ask, revision)
    assert found == [["r1-1"]] * 10 + [["r1-2"]] * 10
    assert await listings.owned(RUN, b"another", 20) == ()
    assert reader.begun == 2


async def test_one_after_the_other_they_take_a_fifth_of_the_time(
    autojump_clock: MockClock,
) -> None:
    reader = Reader()
    listings = RunListings(reader)
    began = trio.current_time()
    for _ in range(3):
        # Nobody knows when it happened: each has to look anew.
        await listings.owned(RUN, b"owner", 0)
    assert reader.begun == 3
    # The pause is a second at most.
    assert trio.current_time() - began == pytest.approx(3 * 1 + 2 * 1)


async def test_an_old_one_does_not_count(autojump_clock: MockClock) -> None:
    reader = Reader()
    listings = RunListings(reader)
    await listings.owned(RUN, b"owner", 10)
    await trio.sleep(5)
    assert await listings.owned(RUN, b"owner", 10) == ["r1-2"]


async def test_a_failure_is_one_caller_s_and_so_is_a_cancellation(
    autojump_clock: MockClock,
) -> None:
    reader = Reader()
    reader.failing = 1
    listings = RunListings(reader)
    found: list[Sequence[str]] = []

    async def fail() -> None:
        with pytest.raises(Unavailable):
            await listings.owned(RUN, b"owner", 1)

    async def succeed() -> None:
        found.append(await listings.owned(RUN, b"owner", 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await wait_all_tasks_blocked()
        with trio.move_on_after(1.5) as scope:
            await succeed()
        assert scope.cancelled_caught
        nursery.start_soon(succeed)
        nursery.start_soon(succeed)
    assert found == [["r1-3"]] * 2


async def test_runs_do_not_wait_for_each_other_and_few_are_kept(
    autojump_clock: MockClock,
) -> None:
    reader = Reader()
    listings = RunListings(reader)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(listings.owned, Run("flyte", f"r{number}"), b"owner", 1)
    assert trio.current_time() - began == pytest.approx(1)
    assert len(listings._runs) >= 2
    await listings.owned(Run("flyte", "last"), b"owner", 1)
    assert len(listings._runs) == 2


async def test_a_run_that_expires_is_listed_a_few_times_and_not_once_an_action(
    etcd: Etcd, prefix: bytes
) -> None:
    """Each deletion listed the whole run: 10,000 times 10,000 objects."""
    keys = Keyspace(prefix)
    values = {
        prefix + f"flyte/r1-a{number}".encode(): taskaction("r1", f"a{number}", "a0")
        for number in range(100)
    }
    await etcd.txn(Txn([], [Put(key, value) for key, value in values.items()]))
    deleted: list[ActionUpdate] = []
    for key, value in list(values.items())[1:]:
        revision = (await etcd.delete(KeyRange.of_key(key))).revision
        action = codec_of(value).decode(value, key=key, revision=revision)
        deleted.append(build_action_update(action, key=key, revision=revision, deleted=True))
    noted, noting = reads(etcd)
    collector = OrphanCollector(Store(noting, etcd.txn), keys)
    async with trio.open_nursery() as nursery:
        for update in deleted[:50]:
            nursery.start_soon(collector.on_owner_deleted, update)
    for update in deleted[50:]:
        await collector.on_owner_deleted(update)
    # Objects, and traces; all were deleted when the first was looked at.
    assert len(noted.ranges) == 2
