"""Processes that share the work by shards: each run is recorded by one, and served by all."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import pytest
import trio

from etcd_actions import ActionUpdate, Phase, open_actions_client
from etcd_actions.errors import ConfigError, PermissionDenied, RunServiceRejected, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, Put, Txn
from etcd_actions.model import ActionId, ActionObject, Keyspace
from etcd_actions.pipeline.shard_watch import ShardWatch
from etcd_actions.shards import ShardKeys, load_table
from etcd_actions.shards.shard_range import initial_ranges
from etcd_actions.shards.table_changes import create_table
from tests.pipeline.sharding import (
    RUNS,
    SHARDED,
    Told,
    end,
    owned,
    root,
    served,
    sharing,
    until_owned,
    until_recorded,
    until_statistics,
)
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.memory


async def test_one_process_owns_all_shards(etcd: Etcd, prefix: bytes) -> None:
    service = Told()
    async with sharing(etcd, prefix, service) as client:
        for run in RUNS:
            await client.enqueue(flyte.task(root(run)))
        await until_owned(4, client)
        for run in RUNS:
            await end(client, run)
        await until_recorded(client, *RUNS)
        statistics = client.statistics()
        assert statistics.marks == {"marked": len(RUNS)}
        assert (statistics.elected, statistics.collects, statistics.refused) == (True, True, "")
        assert statistics.reflector is not None
        assert statistics.reflector.keys == len(RUNS)
        assert [each.owner for each in statistics.shards] == [statistics.member] * 4
        assert sum(each.keys or 0 for each in statistics.shards) == len(RUNS)
        assert all(not each.problem for each in statistics.shards)
    assert all(service.states[run][-1] is Phase.SUCCEEDED for run in RUNS)
    assert all(service.records[run] == 1 for run in RUNS)


async def test_processes_share_the_work(etcd: Etcd, prefix: bytes) -> None:
    """Each watches its own shards only, and every run is reported and marked once."""
    service = Told()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(sharing(etcd, prefix, service)) for _ in range(3)
        ]
        for run in RUNS:
            await clients[0].enqueue(flyte.task(root(run)))
        await until_owned(4, *clients)
        for number, run in enumerate(RUNS):
            await end(clients[number % 3], run)
        await until_recorded(clients[0], *RUNS)
        marked = [client.statistics().marks.get("marked", 0) for client in clients]
        assert sum(marked) == len(RUNS)
        keys = [reflector.keys for each in clients if (reflector := each.statistics().reflector)]
        assert sum(keys) == len(RUNS)
        assert sum(client.statistics().collects for client in clients) == 1
        await until_statistics(clients[0], lambda each: len(each.members) == 3)
    assert all(service.states[run].count(Phase.SUCCEEDED) == 1 for run in RUNS)


@pytest.mark.parametrize("shards", [0, 4])
async def test_what_is_over_before_the_first_owner_listed_is_reported(
    etcd: Etcd, prefix: bytes, shards: int
) -> None:
    """A process has started, and was killed before it could lead, or report anything."""
    keys = ShardKeys(Keyspace(prefix), "flyte")
    settings = replace(SHARDED, shards=shards)
    if shards:
        await create_table(etcd, keys, initial_ranges(keys.scope, shards, []))
    else:
        lease = await etcd.lease_grant(60)
        await etcd.put(keys.single_election, b"another", lease=lease.id)
        async with sharing(etcd, prefix, settings=settings) as follower:
            assert not follower.statistics().elected
        await etcd.lease_revoke(lease.id)
    service = Told()
    async with sharing(etcd, prefix, settings=settings, starts=False) as client:
        for run in RUNS:
            await client.enqueue(flyte.task(root(run)))
            await end(client, run)
            await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(root(run))))
    async with sharing(etcd, prefix, service, settings=settings):
        await eventually(lambda: service.states.keys() == set(RUNS))


async def test_a_planned_leave_hands_over_at_once(etcd: Etcd, prefix: bytes) -> None:
    """The others have listed before: no shard waits for a lease, or holds an ending."""
    service = Told()
    settings = replace(SHARDED, election_ttl=60)
    async with sharing(etcd, prefix, service, settings=settings) as stays:
        async with sharing(etcd, prefix, service, settings=settings) as leaves:
            await until_owned(4, stays, leaves)
            for run in RUNS:
                await stays.enqueue(flyte.task(root(run)))
            await until_statistics(stays, lambda each: not each.deferred)
            began = trio.current_time()
            await leaves.stop_watching()
        assert trio.current_time() - began < 3
        for run in RUNS:
            await end(stays, run)
        await until_owned(4, stays)
        await until_recorded(stays, *RUNS)
        # No ending was held: the terms were closed.
        assert trio.current_time() - began < 30
        assert stays.statistics().deferred == 0
    assert all(service.states[run].count(Phase.SUCCEEDED) == 1 for run in RUNS)


async def test_the_last_process_finishes_its_work(etcd: Etcd, prefix: bytes) -> None:
    service = Told()
    async with sharing(etcd, prefix, service) as client:
        for run in RUNS:
            await client.enqueue(flyte.task(root(run)))
            await end(client, run)
        await client.stop_watching()
        assert client.statistics().marks == {"marked": len(RUNS)}
        assert not client.statistics().watching
        await client.start_watching()
        await until_owned(4, client)
    keys = ShardKeys(Keyspace(prefix), "flyte")
    owners = await etcd.range(KeyRange.of_prefix(keys.owners))
    members = await etcd.range(KeyRange.of_prefix(keys.members))
    assert (owners.kvs, members.kvs) == ([], [])


@pytest.mark.slow
async def test_a_silent_owner_is_replaced(etcd: Etcd, prefix: bytes) -> None:
    """Its leases expire; what it did not mark is marked once."""
    service = Told()
    silent = _Silent(etcd)
    async with sharing(silent, prefix, service) as first:  # type: ignore[arg-type]
        await until_owned(4, first)
        for run in RUNS:
            await first.enqueue(flyte.task(root(run)))
        async with sharing(etcd, prefix, service) as second:
            await until_owned(4, first, second)
            silent.is_silent = True
            for run in RUNS:
                await end(second, run)
            await eventually(lambda: len(owned(second)) == 4)
            await until_recorded(second, *RUNS)
            assert owned(first) == set()
            silent.is_silent = False
            await until_owned(4, first, second)
    assert all(service.states[run][-1] is Phase.SUCCEEDED for run in RUNS)


class _Silent:
    """A connection whose writes and renewals are not answered while it is silent."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.is_silent = False

    async def txn(self, txn: Txn) -> object:
        self._fail()
        return await self._etcd.txn(txn)

    async def lease_keep_alive(self, lease: int) -> object:
        self._fail()
        return await self._etcd.lease_keep_alive(lease)

    async def lease_revoke(self, lease: int) -> None:
        self._fail()
        await self._etcd.lease_revoke(lease)

    async def lease_grant(self, ttl: int) -> object:
        self._fail()
        return await self._etcd.lease_grant(ttl)

    def _fail(self) -> None:
        if self.is_silent:
            raise Unavailable("silent")

    def __getattr__(self, name: str) -> object:
        return getattr(self._etcd, name)


# --- subscriptions --------------------------------------------------------------------------------


async def received(subscription: object, count: int) -> list[tuple[str, Phase, int]]:
    """The next updates of a subscription."""
    found: list[tuple[str, Phase, int]] = []
    with trio.fail_after(60):
        while len(found) < count:
            item = await subscription.receive()  # type: ignore[attr-defined]
            if isinstance(item, ActionUpdate):
                found.append((item.action_id.run, item.phase, item.revision))
    return found


STEPS = (Phase.QUEUED, Phase.INITIALIZING, Phase.RUNNING, Phase.SUCCEEDED)


@pytest.mark.parametrize("snapshot", first_everyday([True, False]))
async def test_a_subscriber_on_any_process_gets_each_state(
    etcd: Etcd, prefix: bytes, snapshot: bool
) -> None:
    """On the owner of its run, and on the other process."""
    async with sharing(etcd, prefix) as one, sharing(etcd, prefix) as other:
        for run in RUNS:
            await one.enqueue(flyte.task(root(run)))
        await until_owned(4, one, other)
        for run in RUNS:
            async with (
                one.subscribe(root(run), snapshot=snapshot) as here,
                other.subscribe(root(run), snapshot=snapshot) as there,
            ):
                for phase in STEPS:
                    await end(one, run, phase)
                    for subscription in (here, there):
                        while True:
                            ((_, last, _),) = await received(subscription, 1)
                            if last is phase:
                                break
                            assert last < phase or last is Phase.UNSPECIFIED
            assert (await other.list_child_actions(root(run))).actions[0].phase is Phase.SUCCEEDED
        await until_owned(4, one, other)


async def test_a_subscription_survives_the_hand_over_of_its_shard(
    etcd: Etcd, prefix: bytes
) -> None:
    """Nothing is omitted, repeated or older; its watch ends with it."""
    async with sharing(etcd, prefix) as first:
        for run in RUNS:
            await first.enqueue(flyte.task(root(run)))
        await until_owned(4, first)
        async with AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(first.subscribe(root(run), snapshot=True))
                for run in RUNS
            ]
            got = {run: await received(each, 1) for run, each in zip(RUNS, opened, strict=True)}
            async with sharing(etcd, prefix) as second:
                for phase in STEPS:
                    for run in RUNS:
                        await end(first, run, phase)
                    for run, each in zip(RUNS, opened, strict=True):
                        while got[run][-1][1] is not phase:
                            got[run] += await received(each, 1)
                    if phase is Phase.QUEUED:
                        await eventually(lambda: len(owned(second)) == 2)
                assert len(owned(first)) == 2
                assert served(first) == {0, 1, 2, 3}
                await until_recorded(first, *RUNS)
                # The mark is a state, too; it may have replaced the one before.
                for run, each in zip(RUNS, opened, strict=True):
                    marked = (await first.get_task_action(root(run))).revision
                    while got[run][-1][2] != marked:
                        got[run] += await received(each, 1)
                    revisions = [revision for _, _, revision in got[run]]
                    assert revisions == sorted(set(revisions))
                await stack.aclose()
                await until_owned(4, first, second)


async def test_a_subscription_survives_a_stop_and_a_start(etcd: Etcd, prefix: bytes) -> None:
    async with sharing(etcd, prefix) as first, sharing(etcd, prefix) as second:
        for run in RUNS:
            await first.enqueue(flyte.task(root(run)))
        await until_owned(4, first, second)
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(first.subscribe(root(run))) for run in RUNS]
            await first.stop_watching()
            await eventually(lambda: len(owned(second)) == 4)
            for run in RUNS:
                await end(second, run)
            await first.start_watching()
            for each in opened:
                while (await received(each, 1))[0][1] is not Phase.SUCCEEDED:
                    pass
        await until_owned(4, first, second)


async def test_all_updates_are_received_on_each_process(etcd: Etcd, prefix: bytes) -> None:
    async with sharing(etcd, prefix) as first, sharing(etcd, prefix) as second:
        await until_owned(4, first, second)
        async with first.subscribe_all() as one, second.subscribe_all() as other:
            for run in RUNS:
                await first.enqueue(flyte.task(root(run)))
                await end(first, run)
            for each in (one, other):
                last: dict[str, Phase] = {}
                while list(last.values()) != [Phase.SUCCEEDED] * len(RUNS):
                    for run, phase, _ in await received(each, 1):
                        last[run] = phase


# --- what a shard takes with it -------------------------------------------------------------------


async def test_orphans_aborts_and_conditions_follow_their_shard(etcd: Etcd, prefix: bytes) -> None:
    keys = Keyspace(prefix)
    async with open_actions_client(etcd, prefix=prefix) as writer:
        for run in RUNS:
            await writer.enqueue(flyte.task(root(run)))
            for name in ("c1", "c2"):
                await writer.enqueue(flyte.task(ActionId("p", "d", run, name), "a0"))
        for run in RUNS[::2]:
            await etcd.delete(KeyRange.of_key(keys.task_action(root(run))))
        for run in RUNS[1::2]:
            kvs = (await etcd.range(KeyRange.of_prefix(keys.run_prefixes(run)[0]))).kvs
            await writer.abort_action(root(run), "why")
            # The abort was interrupted.
            await etcd.txn(Txn([], [Put(kv.key, kv.value) for kv in kvs[1:]]))
    async with sharing(etcd, prefix) as first, sharing(etcd, prefix) as second:

        async def ended(run: str) -> bool:
            actions = (await first.list_run_actions(root(run).run_id)).actions
            if run in RUNS[::2]:
                return not actions
            return all(each.phase is Phase.ABORTED and each.is_recorded for each in actions)

        for run in RUNS:
            await eventually_holds(partial(ended, run))
        await until_owned(4, first, second)


# --- the two modes --------------------------------------------------------------------------------


async def test_one_leader_and_shards_exclude_each_other(etcd: Etcd, prefix: bytes) -> None:
    """The wrong one says so, serves subscribers, and takes over from the other with its work."""
    alone = replace(SHARDED, shards=0)
    service = Told()
    async with sharing(etcd, prefix, service, settings=alone) as leader:
        await until_statistics(leader, lambda each: each.elected)
        await leader.enqueue(flyte.task(root("r1")))
        async with sharing(etcd, prefix, service) as divided:
            await until_statistics(divided, lambda each: "without shards" in each.refused)
            assert divided.statistics().watching
            async with divided.subscribe(root("r1"), snapshot=True) as subscription:
                assert (await received(subscription, 1))[0][0] == "r1"
            await leader.stop_watching()
            await end(divided, "r1")
            await until_owned(4, divided)
            await until_recorded(divided, "r1")
            assert divided.statistics().refused == ""
            await leader.start_watching()
            await divided.stop_watching()
            await until_statistics(leader, lambda each: "shards" in each.refused)
            assert not leader.statistics().elected
            async with leader.subscribe(root("r1"), snapshot=True) as subscription:
                assert (await received(subscription, 1))[0][1] is Phase.SUCCEEDED
    table = await load_table(etcd, ShardKeys(Keyspace(prefix), "flyte"))
    assert len(table.shards) == 4
    assert service.states["r1"].count(Phase.SUCCEEDED) == 1


async def test_shards_need_an_election(etcd: Etcd, prefix: bytes) -> None:
    with pytest.raises(ConfigError, match="shards"):
        async with sharing(etcd, prefix, settings=replace(SHARDED, elect=False)):
            pass


async def test_a_process_that_does_not_record_watches_all(etcd: Etcd, prefix: bytes) -> None:
    settings = replace(SHARDED, record=False)
    async with sharing(etcd, prefix) as owner, sharing(etcd, prefix, settings=settings) as reader:
        await owner.enqueue(flyte.task(root("r1")))
        await until_statistics(
            reader, lambda each: each.reflector is not None and each.reflector.keys == 1
        )
        assert reader.statistics().shards == ()
        await until_owned(4, owner)


# --- failures -------------------------------------------------------------------------------------


class _Refusing:
    """A connection that refuses to list some keys."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.refused: bytes | None = None

    async def range(self, keys: KeyRange, **options: object) -> object:
        if self.refused is not None and self.refused in keys and not keys.end == keys.start + b"\0":
            raise PermissionDenied("these keys")
        return await self._etcd.range(keys, **options)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._etcd, name)


async def test_a_shard_that_cannot_be_read_holds_up_no_other(etcd: Etcd, prefix: bytes) -> None:
    service = Told()
    async with sharing(etcd, prefix, service) as creator:
        await until_owned(4, creator)
        for run in RUNS:
            await creator.enqueue(flyte.task(root(run)))
    refusing = _Refusing(etcd)
    refusing.refused = Keyspace(prefix).task_action(root("rj"))
    async with sharing(refusing, prefix, service) as client:  # type: ignore[arg-type]
        for run in RUNS:
            await end(client, run)
        others = [run for run in RUNS if run != "rj"]
        (bad,) = [each for each in client.statistics().shards if each.problem]
        assert "cannot be read" in bad.problem
        readable = [
            run for run in others if not bad.start <= f"flyte/{run}-" < (bad.end or "\U0010ffff")
        ]
        await until_recorded(client, *readable)
        assert not (await client.get_task_action(root("rj"))).is_recorded
        refusing.refused = None
        await until_recorded(client, *RUNS)
        await until_statistics(client, lambda each: not any(one.problem for one in each.shards))


async def test_an_unexpected_failure_of_a_shard_holds_up_no_other(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = ShardWatch._serve
    failures = 2

    async def fails(self: ShardWatch) -> bool:
        nonlocal failures
        if self.shard.id == 1 and failures:
            failures -= 1
            raise RuntimeError("unexpected")
        return await serve(self)

    monkeypatch.setattr(ShardWatch, "_serve", fails)
    async with sharing(etcd, prefix) as client:
        await eventually(lambda: owned(client) >= {0, 2, 3})
        await until_owned(4, client)
        assert client.containment.failures == {"task": 2}


async def test_a_start_can_be_stopped_and_repeated(etcd: Etcd, prefix: bytes) -> None:
    async with sharing(etcd, prefix, starts=False) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.start_watching)
            await trio.lowlevel.checkpoint()
            await client.stop_watching()
        await client.start_watching()
        await client.start_watching()
        await until_owned(4, client)
        await client.stop_watching()
        await client.stop_watching()
        assert not client.statistics().watching


# --- dead letters, retention, permissions ---------------------------------------------------------


class _Rejecting(Told):
    """It rejects the records of all runs, until it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.rejects = True

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        if self.rejects:
            raise RunServiceRejected("no", code=3)
        await super().record_action(update, action)


async def test_dead_letters_follow_their_shard(etcd: Etcd, prefix: bytes) -> None:
    """Each owner has those of its runs; a request is answered by any owner, also a later one."""
    service = _Rejecting()
    async with sharing(etcd, prefix, service) as first:
        async with sharing(etcd, prefix, service) as second:
            await until_owned(4, first, second)
            for run in RUNS:
                await first.enqueue(flyte.task(root(run)))
                await end(first, run)
            both = (first, second)
            await eventually(
                lambda: sum(len(each.statistics().dead_letters) for each in both) == len(RUNS)
            )
            for each in both:
                assert 0 < len(each.statistics().dead_letters) < len(RUNS)
            service.rejects = False
            *others, last = await first.dead_letters()
            for letter in others:
                assert await first.retry_dead_letter(letter, wait=True) is None
            await second.stop_watching()
        await until_owned(4, first)
        assert await first.retry_dead_letter(last, wait=True) is None
        await until_statistics(first, lambda each: not each.dead_letters)
    assert all(service.records[run] == 1 for run in RUNS)


async def test_recorded_actions_expire(etcd: Etcd, prefix: bytes) -> None:
    settings = replace(SHARDED, retain_terminal=60.0)
    async with (
        sharing(etcd, prefix, settings=settings) as first,
        sharing(etcd, prefix, settings=settings) as second,
    ):
        await until_owned(4, first, second)
        for run in RUNS:
            await first.enqueue(flyte.task(root(run)))
            await end(first, run)
        await until_recorded(first, *RUNS)
        found = await etcd.range(KeyRange.of_prefix(Keyspace(prefix).prefix))
        assert all(kv.lease for kv in found.kvs)
        assert len({kv.lease for kv in found.kvs}) <= 2


async def test_a_start_that_may_not_read_the_shards_is_refused(etcd: Etcd, prefix: bytes) -> None:
    refusing = _Refusing(etcd)
    refusing.refused = ShardKeys(Keyspace(prefix), "flyte").prefix
    async with sharing(refusing, prefix, starts=False) as client:  # type: ignore[arg-type]
        with pytest.raises(PermissionDenied):
            await client.start_watching()
        assert not client.statistics().watching
        refusing.refused = None
        await client.start_watching()
        await until_owned(4, client)
