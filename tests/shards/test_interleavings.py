"""Two processes change and own shards, in all orders of their calls; each compare is needed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from etcd_actions.etcd.api import Compare, Delete, KeyRange, Put, Txn
from etcd_actions.model import Keyspace
from etcd_actions.shards import Shard, ShardKeys, create_table, remove_table, replace_shards
from etcd_actions.shards.shard_range import divided
from tests.shards.interleavings import Gate, GatedEtcd, Process, next_order, run_in_order
from tests.shards.protocol import PREFIX, Drop, Member, Single, StillClock, Work, World

KEYS = ShardKeys(Keyspace(PREFIX, "flyte"), "flyte")


def writes(txn: Txn, prefix: bytes) -> bool:
    return any(isinstance(each, Put) and each.key.startswith(prefix) for each in txn.success)


def deletes(txn: Txn, prefix: bytes) -> bool:
    return any(
        isinstance(each, Delete) and each.keys.start.startswith(prefix) for each in txn.success
    )


def is_below(compare: Compare, *prefixes: bytes) -> bool:
    return compare.key.startswith(prefixes)


Scenario = Callable[[World], Awaitable[list[Process]]]


async def settled(world: World) -> tuple[Member, Member, list[Shard]]:
    """Two processes that watch both shards, and own none."""
    first, second = world.join(), world.join()
    await create_table(world.admin, KEYS, divided(KEYS.scope, [b"flyte/m"]))
    for member in (first, second):
        await member.refresh()
        assert member.view is not None
        for shard in member.view.table.shards:
            await member.watch(member.place_of(shard))
    assert first.view is not None
    await world.delete_run("a1")
    return first, second, list(first.view.table.shards)


def gated(member: Member, script: Callable[[], Awaitable[None]]) -> Process:
    async def process(gate: Gate) -> None:
        member.etcd = GatedEtcd(member.etcd, gate)
        for work in member.work.values():
            work.checkpoint._etcd = member.etcd
        await script()

    return process


def work_of(member: Member, shard: Shard) -> Work:
    return member.work[member.place_of(shard)]


async def own(member: Member, work: Work, *, closes: bool = False) -> None:
    """Become the owner, work, and vanish: with an open or a closed term."""
    await member.stand(work)
    if work.fence is None:
        return
    await member.open(work)
    if work.fence is not None:
        await member.write(work)
    if closes and work.fence is not None:
        await member.see(work)
        await member.report(work)
        await member.save(work)
    # The process is silent until its lease ends.
    await member.etcd.lease_revoke(work.lease)


async def split_and_own(world: World) -> list[Process]:
    first, second, [shard, _] = await settled(world)

    async def split() -> None:
        await replace_shards(first.etcd, KEYS, [shard], [b"flyte/b2"])

    return [gated(first, split), gated(second, partial(own, second, work_of(second, shard)))]


async def split_and_split(world: World) -> list[Process]:
    """Of different shards; both compute the same new ids."""
    first, second, [left, right] = await settled(world)

    async def split(member: Member, shard: Shard, boundary: bytes) -> None:
        await replace_shards(member.etcd, KEYS, [shard], [boundary])

    return [
        gated(first, partial(split, first, left, b"flyte/b2")),
        gated(second, partial(split, second, right, b"flyte/r4")),
    ]


async def owner_and_merge(world: World) -> list[Process]:
    """An owner merges its shard with the next one, and another process becomes its owner."""
    first, second, [left, right] = await settled(world)
    work = work_of(first, left)
    await first.stand(work)
    await first.open(work)

    async def merge() -> None:
        await first.replace([left, right], [])
        await first.write(work)

    return [gated(first, merge), gated(second, partial(own, second, work_of(second, right)))]


async def remove_and_own(world: World) -> list[Process]:
    first, second, [shard, _] = await settled(world)

    async def remove() -> None:
        await remove_table(first.etcd, KEYS)

    return [gated(first, remove), gated(second, partial(own, second, work_of(second, shard)))]


async def remove_and_split(world: World) -> list[Process]:
    first, second, [shard, _] = await settled(world)

    async def remove() -> None:
        await remove_table(first.etcd, KEYS)

    async def split() -> None:
        await replace_shards(second.etcd, KEYS, [shard], [b"flyte/b2"])

    return [gated(first, remove), gated(second, split)]


async def create_and_lead_without_shards(world: World) -> list[Process]:
    first = world.join()
    single = world.join(single=True)
    assert isinstance(single, Single)
    await single.watch(single.place)

    async def create() -> None:
        await create_table(first.etcd, KEYS, divided(KEYS.scope, [b"flyte/m"]))

    return [
        gated(first, create),
        gated(single, partial(own, single, single.work[single.place], closes=True)),
    ]


async def create_and_create(world: World) -> list[Process]:
    """Where no leader without shards saved a checkpoint."""
    await world.admin.delete(KeyRange.of_key(KEYS.single_checkpoint))
    world.saved = False
    first, second = world.join(), world.join()

    async def create(member: Member, boundary: bytes) -> None:
        await create_table(member.etcd, KEYS, divided(KEYS.scope, [boundary]))

    return [
        gated(first, partial(create, first, b"flyte/m")),
        gated(second, partial(create, second, b"flyte/b2")),
    ]


async def two_owners(world: World) -> list[Process]:
    """The lease of an owner ends while it works; another process becomes the owner."""
    first, second, [shard, _] = await settled(world)
    work = work_of(first, shard)
    await first.stand(work)
    await first.open(work)

    async def stopped() -> None:
        await first.write(work)
        await first.see(work)
        await first.report(work)
        if work.fence is not None:
            await first.save(work)

    async def next_owner() -> None:
        await second.etcd.lease_revoke(work.lease)
        await own(second, work_of(second, shard))

    return [gated(first, stopped), gated(second, next_owner)]


async def save_and_remove(world: World) -> list[Process]:
    """The lease of an owner ends, and all shards are removed, while it saves its checkpoint."""
    first, second, [shard, _] = await settled(world)
    work = work_of(first, shard)
    await first.stand(work)
    await first.open(work)

    async def save() -> None:
        await first.see(work)
        await first.report(work)
        await first.save(work)

    async def remove() -> None:
        await second.etcd.lease_revoke(work.lease)
        await remove_table(second.etcd, KEYS)

    return [gated(first, save), gated(second, remove)]


SCENARIOS: list[Scenario] = [
    split_and_own,
    split_and_split,
    owner_and_merge,
    remove_and_own,
    remove_and_split,
    create_and_lead_without_shards,
    create_and_create,
    two_owners,
    save_and_remove,
]


def all_orders(scenario: Scenario, drop: Drop | None = None) -> int:
    """Run a scenario in all orders of its calls; returns their number."""
    order: list[int] | None = []
    count = 0

    async def main(order: list[int]) -> list[int]:
        world = World(drop)
        await world.start()
        return await run_in_order(await scenario(world), order, world.check)

    while order is not None:
        order = next_order(order, trio.run(main, order, clock=StillClock()))
        count += 1
    return count


OMITTED: dict[tuple[str, Scenario], Drop] = {
    ("of an owner's creation, that the range is unchanged", split_and_own): lambda compare, txn: (
        writes(txn, KEYS.owners) and is_below(compare, KEYS.ranges)
    ),
    (
        "of a leader without shards, that there is no range",
        create_and_lead_without_shards,
    ): lambda compare, txn: writes(txn, KEYS.single_election) and is_below(compare, KEYS.ranges),
    (
        "of the table's creation, that there is no leader without shards",
        create_and_lead_without_shards,
    ): lambda compare, txn: writes(txn, KEYS.ranges) and is_below(compare, KEYS.single_election),
    (
        "of the table's creation, that that leader's checkpoint is unchanged",
        create_and_lead_without_shards,
    ): lambda compare, txn: writes(txn, KEYS.ranges) and is_below(compare, KEYS.single_checkpoint),
    (
        "of the table's creation, that there is neither a range nor another checkpoint",
        create_and_create,
    ): (
        lambda compare, txn: (
            writes(txn, KEYS.ranges)
            and (compare == KEYS.no_table or is_below(compare, KEYS.single_checkpoint))
        )
    ),
    ("of a replacement, that the ranges are unchanged", split_and_split): lambda compare, txn: (
        writes(txn, KEYS.ranges) and deletes(txn, KEYS.ranges) and is_below(compare, KEYS.ranges)
    ),
    ("of a replacement, that the checkpoints are unchanged", split_and_own): lambda compare, txn: (
        writes(txn, KEYS.ranges) and is_below(compare, KEYS.checkpoints)
    ),
    (
        "of the table's removal, that the shards have no owners",
        remove_and_own,
    ): lambda compare, txn: (
        not writes(txn, KEYS.ranges)
        and deletes(txn, KEYS.ranges)
        and is_below(compare, KEYS.owners)
    ),
    (
        "of the table's removal, that the checkpoints are unchanged",
        remove_and_own,
    ): lambda compare, txn: (
        not writes(txn, KEYS.ranges)
        and deletes(txn, KEYS.ranges)
        and is_below(compare, KEYS.checkpoints)
    ),
    ("of an owner's write, that it is the owner", two_owners): lambda _, txn: writes(
        txn, b"/marks"
    ),
    ("of a checkpoint, that its writer is the owner", save_and_remove): lambda _, txn: any(
        isinstance(each, Txn) for each in txn.success
    ),
}
"""Compares, and a scenario that fails without each.

The compare of a replacement that the shards have no other owner has a second one behind it: a new
owner saves its term before it works, so the checkpoint is changed.
"""


# The others take seconds. The everyday suite has random orders of such steps in test_protocol.py.
EVERYDAY = {split_and_own, save_and_remove}


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(each, marks=[pytest.mark.slow] * (each not in EVERYDAY)) for each in SCENARIOS],
)
def test_in_all_orders(scenario: Scenario) -> None:
    assert all_orders(scenario) > 5


@pytest.mark.slow
@pytest.mark.parametrize(("omitted", "scenario"), OMITTED)
def test_each_compare_is_needed(omitted: str, scenario: Scenario) -> None:
    """Without it the model fails in some order of the calls."""
    with pytest.raises(ExceptionGroup) as failed:
        all_orders(scenario, OMITTED[omitted, scenario])
    assert failed.group_contains(AssertionError)
