"""A model of several processes that share shards, step by step, over the etcd in memory.

A process makes one step at a time: it reads its view, which is old from then on, or does one thing
that its plan or its role allows. Transactions, plans, checkpoints and views are those of the
package. What the model adds is what must hold after each step, see `World.check`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import trio
from trio.abc import Clock

from etcd_actions.errors import EtcdError, FailedPrecondition, OutcomeUnknown
from etcd_actions.etcd.api import Compare, Etcd, KeyRange, KeyValue, Put, Txn, TxnResult
from etcd_actions.etcd.election import Leadership
from etcd_actions.model import Keyspace
from etcd_actions.record.checkpoint import Checkpoint
from etcd_actions.shards import (
    Plan,
    Role,
    Shard,
    ShardKeys,
    ShardRange,
    ShardView,
    create_table,
    load_table,
    make_plan,
    remove_table,
    replace_shards,
)
from etcd_actions.shards.assignment import assign
from etcd_actions.shards.shard_keys import encode_ready
from etcd_actions.shards.shard_range import divided
from etcd_actions.shards.shard_table import read_table
from etcd_actions.shards.shard_view import ShardIndex
from etcd_actions.testing import MemoryClient, MemoryStore
from etcd_actions.watch import Change, ChangeKind

RUNS = ("a1", "b2-x", "b2-y", "m3", "r4-1", "z5")
BOUNDARIES = [b"flyte/b2", b"flyte/m", b"flyte/r4", b"flyte/z"]
PREFIX = b"/p/"
FOREVER = 1_000_000
"""Seconds: a lease ends when a step says so."""
TTL = 10

Step = Callable[[], Awaitable[None]]
Drop = Callable[[Compare, Txn], bool]


class StillClock(Clock):
    """A clock that a test moves; it keeps its time from one `trio.run` to the next."""

    def __init__(self) -> None:
        self.now = 1000.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return max(0.0, deadline - self.now)


class Forgetful:
    """A connection that sends transactions without some of their compares: to test the model."""

    def __init__(self, client: MemoryClient, drop: Drop) -> None:
        self._client = client
        self._drop = drop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def txn(self, txn: Txn) -> TxnResult:
        kept = [compare for compare in txn.compare if not self._drop(compare, txn)]
        return await self._client.txn(Txn(kept, txn.success, txn.failure))


class Deletion(NamedTuple):
    """Work of an owner: it has to report that an object of a run was deleted."""

    revision: int
    run: str


class Place(NamedTuple):
    """What a leader leads: a shard, or without one all runs."""

    shard: Shard | None
    range: ShardRange
    owner: bytes
    checkpoint: bytes
    guard: Compare


@dataclass
class Work:
    """What a process has of a place: its watch, and its term if it leads."""

    place: Place
    checkpoint: Checkpoint
    seen: int
    pending: list[Deletion]
    fence: Compare | None = None
    lease: int = 0
    opened: bool = False

    def done_up_to(self) -> int:
        return min([self.seen, *(each.revision - 1 for each in self.pending)])

    @property
    def incarnation(self) -> int:
        assert self.fence is not None
        assert isinstance(self.fence.operand, int)
        return self.fence.operand


def suffix(run: str) -> bytes:
    return f"flyte/{run}-a0".encode()


class World:
    """The store, the processes, and what has happened."""

    def __init__(self, drop: Drop | None = None) -> None:
        self.keys = ShardKeys(Keyspace(PREFIX, "flyte"), "flyte")
        self.store = MemoryStore(order="answers_first")
        self.admin = self.store.client()
        self.drop = drop
        self.members: list[Member] = []
        # Leases of processes that were killed.
        self.left: list[int] = []
        self.deletions: list[Deletion] = []
        self.reported: set[Deletion] = set()
        # The owner of the last fenced write for a run, and all before it.
        self.writers: dict[str, int] = {}
        # The last term that was opened for a run; whether each is closed, None if unknown.
        self.terms: dict[str, int] = {}
        self.closed: dict[int, bool | None] = {}
        self.ids: dict[int, int] = {}
        self.joined = 0
        # Whether a leader has saved a checkpoint: then each part of the scope has one.
        self.saved = True

    async def start(self) -> None:
        """A leader without shards has saved a checkpoint."""
        fence = Leadership(self.keys.single_election, (await self.put_owner()).revision).fence
        checkpoint = Checkpoint(self.admin, self.keys.single_checkpoint)
        await checkpoint.open_term(1, TTL, fence)
        await checkpoint.save(2, fence)
        await checkpoint.close_term(fence)
        await self.admin.delete(KeyRange.of_key(self.keys.single_election))

    async def put_owner(self) -> Any:
        return await self.admin.put(self.keys.single_election, b"first")

    def join(self, *, single: bool = False) -> Member:
        self.joined += 1
        kind = Single if single else Member
        member = kind(self, f"m{self.joined}")
        self.members.append(member)
        return member

    def kill(self, member: Member) -> None:
        self.members.remove(member)
        self.left += member.leases()

    async def expire(self, leases: list[int]) -> None:
        for lease in leases:
            try:
                await self.admin.lease_revoke(lease)
            except EtcdError:
                continue

    async def operate(self, pick: int) -> None:
        """An operator splits a shard, merges two, or removes all, where they have no owner."""
        table = await load_table(self.admin, self.keys)
        if not table.exists:
            return
        shard = table.shards[pick % len(table.shards)]
        inside = [each for each in BOUNDARIES if shard.range.start < each and each in shard.range]
        behind = [each for each in table.shards if each.range.start == shard.range.end]
        if pick % 5 == 0:
            await remove_table(self.admin, self.keys)
        elif inside:
            await replace_shards(self.admin, self.keys, [shard], inside[:1])
        elif behind:
            await replace_shards(self.admin, self.keys, [shard, *behind], [])

    async def delete_run(self, run: str) -> None:
        key = PREFIX + suffix(run)
        await self.admin.put(key, b"")
        deleted = await self.admin.delete(KeyRange.of_key(key))
        self.deletions.append(Deletion(deleted.revision, run))

    def deletions_in(self, range_: ShardRange, after: int) -> list[Deletion]:
        found = (each for each in self.deletions if suffix(each.run) in range_)
        return [each for each in found if each.revision > after]

    def wrote(self, work: Work) -> None:
        """An owner's fenced write succeeded: no earlier owner of a run may ever write again."""
        for run in RUNS:
            if suffix(run) in work.place.range:
                assert self.writers.get(run, 0) <= work.incarnation, (
                    f"{run}: written by owner {self.writers[run]}, then by {work.incarnation}"
                )
                self.writers[run] = work.incarnation

    def opened(self, work: Work) -> None:
        self.closed[work.incarnation] = False
        for run in RUNS:
            if suffix(run) in work.place.range:
                self.terms[run] = max(work.incarnation, self.terms.get(run, 0))

    async def check(self) -> None:
        """What must hold at every moment."""
        found = await self.admin.range(KeyRange.of_prefix(b"/etcd-actions/"))
        owners, checkpoints, ranges, single, leader = (
            {kv.key: kv for kv in found.kvs if kv.key.startswith(prefix)}
            for prefix in (
                self.keys.owners,
                self.keys.checkpoints,
                self.keys.ranges,
                self.keys.single_checkpoint,
                self.keys.single_election,
            )
        )
        table = read_table(self.keys, ranges.values(), found.revision)
        if table.exists:
            assert table.problem == ""
            assert not leader, "a leader without shards next to shards"
            assert not single, "a checkpoint without shards next to shards"
        else:
            assert not checkpoints, "checkpoints without shards"
            self.ids.clear()
        ids = {self.keys.owner(shard.id) for shard in table.shards}
        assert owners.keys() <= ids, "an owner of a shard that does not exist"
        for shard in table.shards:
            assert self.ids.setdefault(shard.id, shard.revision) == shard.revision, "an id twice"
        places = [
            (shard.range, checkpoints[key])
            for shard in table.shards
            if (key := self.keys.checkpoint(shard.id)) in checkpoints
        ]
        assert len(places) == len(table.shards) or not self.saved, "a shard without a checkpoint"
        places += [(self.keys.scope, value) for value in single.values()]
        for range_, kv in places:
            self._check_checkpoint(range_, json.loads(kv.value))

    def _check_checkpoint(self, range_: ShardRange, value: Any) -> None:
        for deletion in self.deletions:
            if suffix(deletion.run) in range_ and deletion.revision <= value["revision"]:
                assert deletion in self.reported, f"{value} is above {deletion}, not reported"
        for run, term in self.terms.items():
            if suffix(run) in range_ and self.closed[term] is False:
                assert not value["term"].get("closed"), f"term {term} of {run} is not closed"

    async def below(self, prefix: bytes) -> dict[bytes, KeyValue]:
        return {kv.key: kv for kv in (await self.admin.range(KeyRange.of_prefix(prefix))).kvs}

    async def calm(self) -> None:
        """Without faults each shard gets an owner, its target, within some rounds."""
        await self.expire(self.left)
        self.left = []
        for member in [each for each in self.members if isinstance(each, Single) or each.leaving]:
            self.kill(member)
        await self.expire(self.left)
        if not self.members:
            self.join()
        for _ in range(8):
            for member in self.members:
                member.client.faults.heal()
                member.client.faults._scripts.clear()
                await member.settle()
                await self.check()
        table = await load_table(self.admin, self.keys)
        owners = await self.below(self.keys.owners)
        targets = assign((shard.id for shard in table.shards), (each.name for each in self.members))
        assert table.exists
        assert {key: kv.value.decode() for key, kv in owners.items()} == {
            self.keys.owner(shard): name for shard, name in targets.items()
        }
        for member in self.members:
            mine = {shard for shard, name in targets.items() if name == member.name}
            assert {place.shard.id for place in member.work if place.shard} == mine


@dataclass(eq=False)
class Member:
    """A process with shards; `options` are the steps that it may make next."""

    world: World
    name: str
    view: ShardView | None = None
    lease: int = 0
    leaving: bool = False
    work: dict[Place, Work] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = self.world.store.client()
        self.index = ShardIndex(self.world.keys)
        self.known: dict[bytes, KeyValue] = {}
        self.etcd: Etcd = self.client
        if self.world.drop is not None:
            self.etcd = Forgetful(self.client, self.world.drop)

    def leases(self) -> list[int]:
        found = [self.lease, *(work.lease for work in self.work.values())]
        return [lease for lease in found if lease]

    async def options(self) -> list[Step]:
        """The steps that this process may make next, by its own knowledge."""
        steps: list[Step] = [self.refresh]
        if not self.lease:
            steps.append(self.enter)
        elif not self.leaving:
            steps.append(self.leave)
        view = self.view
        if view is None:
            return steps
        if not view.table.exists:
            steps.append(self.create)
        for work in self.work.values():
            steps += [partial(self.see, work), partial(self.follow, work)]
            steps += self.steps_of_leader(work)
        plan = self.plan()
        if plan is None:
            return steps
        duties = {self.place_of(duty.shard): duty for duty in plan.duties.values()}
        for place, work in self.work.items():
            if place not in duties or duties[place].hands_over:
                steps.append(partial(self.stop, work))
        for place, duty in duties.items():
            if place not in self.work:
                if duty.role in (Role.TARGET, Role.FALLBACK):
                    steps.append(partial(self.watch, place))
                continue
            work = self.work[place]
            if duty.reports_ready and self.lease:
                steps.append(partial(self.report_ready, duty.shard))
            if duty.stands and work.fence is None:
                steps.append(partial(self.stand, work))
        return steps

    def steps_of_leader(self, work: Work) -> list[Step]:
        if work.fence is None:
            return []
        if not work.opened:
            return [partial(self.open, work), partial(self.write, work)]
        steps: list[Step] = [
            partial(step, work) for step in (self.write, self.report, self.save, self.close)
        ]
        if work.place.shard is not None:
            steps.append(partial(self.split, work))
            steps.append(partial(self.merge, work))
        return steps

    def plan(self) -> Plan | None:
        assert self.view is not None
        leading = {
            work.place.shard.id
            for work in self.work.values()
            if work.fence is not None and work.place.shard is not None
        }
        now = trio.current_time()
        return make_plan(self.view, self.name, leading=leading, now=now, ttl=TTL)

    def place_of(self, shard: Shard) -> Place:
        keys = self.world.keys
        return Place(
            shard,
            shard.range,
            keys.owner(shard.id),
            keys.checkpoint(shard.id),
            keys.shard_unchanged(shard.id, shard.revision),
        )

    async def refresh(self) -> None:
        """Receive all changes up to now."""
        found = await self.etcd.range(KeyRange.of_prefix(self.world.keys.prefix))
        now = {kv.key: kv for kv in found.kvs}
        for key in self.known.keys() - now.keys():
            self.index.take(Change.deletion(key, found.revision))
        for kv in now.values():
            if self.known.get(kv.key) != kv:
                self.index.take(Change(ChangeKind.MODIFIED, kv))
        self.known, self.view = now, self.index.view()

    async def enter(self) -> None:
        self.lease = (await self.etcd.lease_grant(FOREVER)).id
        value = b'{"since":"2026-11-29T00:00:00Z","form":1}'
        await self.etcd.put(self.world.keys.member(self.name), value, lease=self.lease)

    async def leave(self) -> None:
        await self.etcd.delete(KeyRange.of_key(self.world.keys.member(self.name)))
        self.leaving = True

    async def create(self) -> None:
        await create_table(
            self.etcd, self.world.keys, divided(self.world.keys.scope, BOUNDARIES[1:3])
        )

    async def watch(self, place: Place) -> None:
        """List at the checkpoint: all deletions since then are received."""
        checkpoint = Checkpoint(self.etcd, place.checkpoint)
        start = await checkpoint.load()
        newest = (await self.etcd.range(KeyRange.of_key(place.checkpoint))).revision
        if start:
            pending = self.world.deletions_in(place.range, start)
            self.work[place] = Work(place, checkpoint, newest, pending)

    async def see(self, work: Work) -> None:
        newest = (await self.etcd.range(KeyRange.of_key(b"x"))).revision
        work.pending += self.world.deletions_in(work.place.range, work.seen)
        work.seen = newest

    async def follow(self, work: Work) -> None:
        """A standby forgets the deletions that the leader has reported."""
        if work.fence is None:
            saved = await work.checkpoint.load()
            work.pending = [each for each in work.pending if each.revision > saved]

    async def report_ready(self, shard: Shard) -> None:
        key = self.world.keys.ready_member(shard.id, self.name)
        await self.etcd.put(key, encode_ready(shard.revision), lease=self.lease)

    async def stand(self, work: Work) -> None:
        """Create the owner's key, as an election with the place's guard does."""
        place, lease = work.place, (await self.etcd.lease_grant(FOREVER)).id
        compares = [Compare.incarnation(place.owner, 0), place.guard]
        put = Put(place.owner, self.name.encode(), lease)
        try:
            created = await self.etcd.txn(Txn(compares, [put]))
        except OutcomeUnknown:
            await self.etcd.lease_revoke(lease)
            raise
        if created.succeeded:
            work.fence = Leadership(place.owner, created.revision).fence
            work.lease, work.opened = lease, False

    async def open(self, work: Work) -> None:
        assert work.fence is not None
        try:
            await work.checkpoint.open_term(work.incarnation, TTL, work.fence)
        except OutcomeUnknown:
            raise
        except EtcdError:
            self.depose(work)
            return
        work.opened = True
        self.world.opened(work)

    async def write(self, work: Work) -> None:
        """A fenced write for the runs of the place, such as a mark."""
        assert work.fence is not None
        result = await self.etcd.txn(Txn([work.fence], [Put(b"/marks", self.name.encode())]))
        if result.succeeded:
            self.world.wrote(work)
        else:
            self.depose(work)

    async def report(self, work: Work) -> None:
        """Report a deletion to the run service: that call is not fenced."""
        if work.pending:
            self.world.reported.add(work.pending.pop(0))

    async def save(self, work: Work) -> None:
        assert work.fence is not None
        done = work.done_up_to()
        if done > 0 and not await work.checkpoint.save(done, work.fence):
            self.depose(work)

    async def close(self, work: Work) -> None:
        """Close the term: no call can still arrive. This process works no more in it."""
        assert work.fence is not None
        incarnation = work.incarnation
        try:
            await work.checkpoint.close_term(work.fence)
        except OutcomeUnknown:
            self.world.closed[incarnation] = None
            raise
        except EtcdError:
            self.depose(work)
            return
        self.world.closed[incarnation] = True
        await self.resign(work)

    async def resign(self, work: Work) -> None:
        if work.lease:
            lease, work.lease = work.lease, 0
            self.depose(work)
            await self.world.expire([lease])

    async def stop(self, work: Work) -> None:
        await self.resign(work)
        self.work.pop(work.place, None)

    def depose(self, work: Work) -> None:
        work.fence = None
        work.opened = False

    async def split(self, work: Work) -> None:
        shard = work.place.shard
        assert shard is not None
        inside = [each for each in BOUNDARIES if shard.range.start < each and each in shard.range]
        if inside:
            await self.replace([shard], inside[:1])

    async def merge(self, work: Work) -> None:
        """Merge with the next shard of the view."""
        shard = work.place.shard
        assert shard is not None
        assert self.view is not None
        for other in self.view.table.shards:
            if other.range.start == shard.range.end:
                await self.replace([shard, other], [])

    async def replace(self, old: list[Shard], boundaries: list[bytes]) -> None:
        fences = {
            work.place.shard.id: work.fence
            for work in self.work.values()
            if work.fence is not None and work.place.shard in old and work.place.shard is not None
        }
        await replace_shards(self.etcd, self.world.keys, old, boundaries, fences=fences)

    async def settle(self) -> None:
        """All that the plan says, by the newest view."""
        await self.refresh()
        if not self.lease or self.world.keys.member(self.name) not in self.known:
            await self.enter()
        assert self.view is not None
        if not self.view.table.exists:
            await self.create()
        await self.refresh()
        for work in list(self.work.values()):
            owner = self.known.get(work.place.owner)
            if work.fence is not None and (owner and owner.create_revision) != work.incarnation:
                self.depose(work)
        plan = self.plan()
        assert plan is not None
        duties = {self.place_of(duty.shard): duty for duty in plan.duties.values()}
        for place, work in list(self.work.items()):
            if place not in duties or duties[place].hands_over:
                await self.hand_over(work)
        for place, duty in duties.items():
            if place not in self.work and duty.stands:
                await self.watch(place)
            if place not in self.work:
                continue
            work = self.work[place]
            await self.see(work)
            if duty.reports_ready:
                await self.report_ready(duty.shard)
            if duty.stands and work.fence is None:
                await self.stand(work)
            if work.fence is not None:
                await self.open(work)
            if work.fence is not None:
                await self.write(work)

    async def hand_over(self, work: Work) -> None:
        if work.fence is not None:
            while work.pending:
                await self.report(work)
            if not work.opened:
                await self.open(work)
        if work.fence is not None:
            await self.save(work)
        if work.fence is not None:
            await self.close(work)
        await self.stop(work)


class Single(Member):
    """A process without shards: one leader for all runs, while there is no table."""

    @property
    def place(self) -> Place:
        keys = self.world.keys
        return Place(None, keys.scope, keys.single_election, keys.single_checkpoint, keys.no_table)

    async def options(self) -> list[Step]:
        place = self.place
        if place not in self.work:
            return [partial(self.watch, place), self.remove]
        work = self.work[place]
        steps: list[Step] = [
            partial(self.see, work),
            partial(self.follow, work),
            partial(self.stop, work),
        ]
        if work.fence is None:
            return [*steps, partial(self.stand, work), self.remove]
        return steps + self.steps_of_leader(work)

    async def remove(self) -> None:
        """An operator removes the table."""
        try:
            await remove_table(self.etcd, self.world.keys)
        finally:
            await self.world.check()


async def attempt(step: Step) -> bool:
    """Make a step; False if it was refused, or its outcome is unknown."""
    try:
        await step()
    except (EtcdError, FailedPrecondition):
        return False
    return True


__all__ = [
    "RUNS",
    "Forgetful",
    "Member",
    "Single",
    "StillClock",
    "World",
    "attempt",
]
