"""The table of shards is created, changed and removed; each change depends on owners and keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any

import pytest
import trio

from etcd_actions.errors import ConfigError, FailedPrecondition, OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import Compare, Etcd, KeyRange, Put, Txn
from etcd_actions.etcd.election import Leadership
from etcd_actions.model import Keyspace
from etcd_actions.record.checkpoint import Checkpoint, Predecessor
from etcd_actions.shards import (
    Shard,
    ShardKeys,
    ShardTable,
    create_table,
    load_table,
    remove_table,
    replace_shards,
)
from etcd_actions.shards.shard_range import divided, initial_ranges
from etcd_actions.testing import MemoryClient, MemoryStore

pytestmark = pytest.mark.memory

ANY_OWNER = Compare.incarnation(b"unused", 1)


@pytest.fixture
def keys(prefix: bytes) -> ShardKeys:
    return ShardKeys(Keyspace(prefix, "flyte"), "flyte")


async def create(etcd: Etcd, keys: ShardKeys, count: int = 4) -> ShardTable:
    return await create_table(etcd, keys, initial_ranges(keys.scope, count, []))


async def own(etcd: Etcd, keys: ShardKeys, shard: Shard, name: str = "m") -> Compare | None:
    """Create a shard's owner key as its election does; returns the fence."""
    key = keys.owner(shard.id)
    compares = [Compare.incarnation(key, 0), keys.shard_unchanged(shard.id, shard.revision)]
    created = await etcd.txn(Txn(compares, [Put(key, name.encode())]))
    return Leadership(key, created.revision).fence if created.succeeded else None


async def lead_without_shards(etcd: Etcd, keys: ShardKeys) -> Compare | None:
    """Create the election's key as a leader without shards does; returns the fence."""
    key = keys.single_election
    created = await etcd.txn(Txn([Compare.incarnation(key, 0), keys.no_table], [Put(key, b"one")]))
    return Leadership(key, created.revision).fence if created.succeeded else None


async def value_of(etcd: Etcd, key: bytes) -> Any:
    found = await etcd.range(KeyRange.of_key(key))
    return json.loads(found.kvs[0].value) if found.kvs else None


async def save(
    etcd: Etcd, key: bytes, fence: Compare, revision: int, *, ttl: int = 10, close: bool = True
) -> None:
    """Save a checkpoint as a leader does, with an open or a closed term."""
    checkpoint = Checkpoint(etcd, key)
    assert isinstance(fence.operand, int)
    await checkpoint.open_term(fence.operand, ttl, fence)
    assert await checkpoint.save(revision, fence)
    if close:
        await checkpoint.close_term(fence)


async def lowest_first(etcd: Etcd, keys: ShardKeys) -> list[int]:
    """The ids in the order of their ranges; each table that is read divides the scope."""
    table = await load_table(etcd, keys)
    assert table.problem == ""
    assert table.exists
    ids = [shard.id for shard in table.shards]
    assert table.next_id > max(ids)
    return ids


async def test_a_table_is_created_once(etcd: Etcd, keys: ShardKeys) -> None:
    assert not (await load_table(etcd, keys)).exists
    table = await create(etcd, keys, 4)
    assert [shard.id for shard in table.shards] == [0, 1, 2, 3]
    assert [str(shard) for shard in table.shards] == ["0000", "0001", "0002", "0003"]
    assert len({shard.revision for shard in table.shards}) == 1
    # The present table has precedence over the number.
    assert (await create(etcd, keys, 16)).shards == table.shards
    assert await lowest_first(etcd, keys) == [0, 1, 2, 3]


async def test_the_most_shards_are_created_in_one_transaction(etcd: Etcd, keys: ShardKeys) -> None:
    fence = await lead_without_shards(etcd, keys)
    assert fence is not None
    await save(etcd, keys.single_checkpoint, fence, 1)
    await etcd.delete(KeyRange.of_key(keys.single_election))
    assert len((await create(etcd, keys, 60)).shards) == 60


async def test_a_table_takes_over_from_the_leader_without_shards(
    etcd: Etcd, keys: ShardKeys
) -> None:
    fence = await lead_without_shards(etcd, keys)
    assert fence is not None
    await save(etcd, keys.single_checkpoint, fence, 2, close=False)
    before = await value_of(etcd, keys.single_checkpoint)
    with pytest.raises(Unavailable, match="one records without shards"):
        await create(etcd, keys)
    assert not (await load_table(etcd, keys)).exists
    await etcd.delete(KeyRange.of_key(keys.single_election))
    await create(etcd, keys, 3)
    # Each shard continues it, with its open term; there is no such leader again.
    assert [await value_of(etcd, keys.checkpoint(n)) for n in range(3)] == [before] * 3
    assert await value_of(etcd, keys.single_checkpoint) is None
    assert await lead_without_shards(etcd, keys) is None
    checkpoint = Checkpoint(etcd, keys.checkpoint(1))
    [_, shard, _] = (await load_table(etcd, keys)).shards
    owner = await own(etcd, keys, shard)
    assert owner is not None
    assert await checkpoint.open_term(99, 10, owner) == Predecessor(10, own=False)
    assert checkpoint.saved == 2


async def test_no_table_is_created_over_owners_of_an_earlier_one(
    etcd: Etcd, keys: ShardKeys
) -> None:
    [shard, *_] = (await create(etcd, keys)).shards
    assert await own(etcd, keys, shard, "old") is not None
    await etcd.delete(KeyRange.of_prefix(keys.ranges))
    with pytest.raises(Unavailable, match=r"still have owners: 0000 .old."):
        await create(etcd, keys)


async def test_a_split_and_a_merge(etcd: Etcd, keys: ShardKeys) -> None:
    table = await create(etcd, keys, 3)
    first, second, third = table.shards
    boundary = second.range.start + b"x"
    table = await replace_shards(etcd, keys, [second], [boundary])
    assert await lowest_first(etcd, keys) == [0, 3, 4, 2]
    left, right = table.shards[1:3]
    assert [left.range, right.range] == divided(second.range, [boundary])
    table = await replace_shards(etcd, keys, [right, left], [])
    assert await lowest_first(etcd, keys) == [0, 5, 2]
    assert table.shards[1].range == second.range
    # All at once, with other boundaries.
    table = await replace_shards(etcd, keys, table.shards, [b"flyte/a", b"flyte/b"])
    assert await lowest_first(etcd, keys) == [6, 7, 8]
    # A replaced shard has no owner any more, and no checkpoint.
    for shard in (first, second, third, left, right):
        assert await own(etcd, keys, shard) is None
    assert await own(etcd, keys, table.shards[0]) is not None


async def test_a_new_shard_misses_no_deletion_from_now_on(etcd: Etcd, keys: ShardKeys) -> None:
    """However late its first owner lists; and that owner waits for no calls of another."""
    before = (await etcd.put(keys.prefix + b"x", b"")).revision
    # Of a table that was removed by hand.
    await etcd.put(keys.checkpoint(1), b"nonsense")
    await etcd.put(keys.checkpoint(7), b"nonsense")
    table = await create(etcd, keys, 3)
    for shard in table.shards:
        checkpoint = Checkpoint(etcd, keys.checkpoint(shard.id))
        assert before <= await checkpoint.load() < table.revision
        fence = await own(etcd, keys, shard)
        assert fence is not None
        assert await checkpoint.open_term(99, 5, fence) is None
    assert await value_of(etcd, keys.checkpoint(7)) is None


async def test_an_id_is_used_once(etcd: Etcd, keys: ShardKeys) -> None:
    [shard] = (await create(etcd, keys, 1)).shards
    used = {0}
    for number in range(10):
        boundaries = [f"flyte/{number}".encode()] if number % 2 else []
        table = await replace_shards(etcd, keys, [shard], boundaries)
        new = {each.id for each in table.shards}
        if len(new) > 1:
            [shard] = (await replace_shards(etcd, keys, table.shards, [])).shards
            new.add(shard.id)
        else:
            [shard] = table.shards
        assert not new & used
        used |= new


async def test_a_shard_with_an_owner_is_not_replaced(etcd: Etcd, keys: ShardKeys) -> None:
    table = await create(etcd, keys, 2)
    first, second = table.shards
    fence = await own(etcd, keys, second, "other")
    assert fence is not None
    for old in ([second], [first, second]):
        with pytest.raises(FailedPrecondition, match="shard 0001 has the owner other"):
            await replace_shards(etcd, keys, old, [])
    stale = Compare.incarnation(keys.owner(1), 7)
    with pytest.raises(FailedPrecondition, match="has the owner other"):
        await replace_shards(etcd, keys, [second], [], fences={1: stale})
    with pytest.raises(FailedPrecondition, match="shard 0000 has no owner any more"):
        await replace_shards(etcd, keys, [first], [], fences={0: ANY_OWNER})
    assert (await load_table(etcd, keys)).shards == table.shards


async def test_an_owner_replaces_its_shard(etcd: Etcd, keys: ShardKeys) -> None:
    """Its key is deleted in the same transaction: it can write nothing more."""
    first, second = (await create(etcd, keys, 2)).shards
    fence = await own(etcd, keys, first)
    assert fence is not None
    # The other shard had no owner yet.
    lowest = (await value_of(etcd, keys.checkpoint(1)))["revision"]
    await save(etcd, keys.checkpoint(0), fence, 3)
    await replace_shards(etcd, keys, [first, second], [], fences={0: fence})
    assert await lowest_first(etcd, keys) == [2]
    assert not (await etcd.txn(Txn([fence], []))).succeeded
    assert (await etcd.range(KeyRange.of_prefix(keys.owners))).kvs == []
    assert await value_of(etcd, keys.checkpoint(0)) is None
    assert 0 < lowest < 3
    assert (await value_of(etcd, keys.checkpoint(2)))["revision"] == lowest


async def test_shards_that_were_changed_meanwhile(etcd: Etcd, keys: ShardKeys) -> None:
    table = await create(etcd, keys, 2)
    first, second = table.shards
    await replace_shards(etcd, keys, [first], [b"flyte/b"])
    with pytest.raises(FailedPrecondition, match="changed by another process"):
        await replace_shards(etcd, keys, [first, second], [])
    with pytest.raises(FailedPrecondition, match="changed by another process"):
        await replace_shards(etcd, keys, [first], [b"flyte/c"])
    assert await lowest_first(etcd, keys) == [2, 3, 1]


async def test_what_cannot_be_replaced(etcd: Etcd, keys: ShardKeys) -> None:
    table = await create(etcd, keys, 3)
    first, second, third = table.shards
    with pytest.raises(ConfigError, match=r"0000 .* and 0002 .* are not adjacent"):
        await replace_shards(etcd, keys, [first, third], [])
    with pytest.raises(ConfigError, match="0 cannot be replaced"):
        await replace_shards(etcd, keys, [], [])
    with pytest.raises(ConfigError, match="divides no run"):
        await replace_shards(etcd, keys, [first], [b"flyte/a-b"])
    await etcd.put(keys.range(7), b"nonsense")
    with pytest.raises(FailedPrecondition, match="range/0007 cannot be decoded"):
        await replace_shards(etcd, keys, [first, second], [])


async def test_the_most_that_one_change_replaces(etcd: Etcd, keys: ShardKeys) -> None:
    table = await create(etcd, keys, 25)
    for shard in table.shards:
        fence = await own(etcd, keys, shard)
        assert fence is not None
        await save(etcd, keys.checkpoint(shard.id), fence, 1)
        await etcd.delete(KeyRange.of_key(keys.owner(shard.id)))
    boundaries = [each.range.start + b"a" for each in table.shards[1:]]
    assert len((await replace_shards(etcd, keys, table.shards, boundaries)).shards) == 25
    with pytest.raises(ConfigError, match="1 cannot be replaced by 26"):
        await replace_shards(etcd, keys, [table.shards[0]], sorted(boundaries + [b"flyte/a"] * 1))


MERGED: list[tuple[Sequence[tuple[int, int, bool] | None], int, int, bool]] = [
    # (revision, ttl, closed) of each shard; then those of the merged one.
    ([(5, 10, True), (3, 10, True)], 3, 10, True),
    ([(5, 10, True), (3, 20, True), (4, 30, False)], 3, 30, False),
    ([(5, 40, False), (3, 20, False)], 3, 40, False),
    ([(5, 40, True), (3, 20, False)], 3, 20, False),
    # Without a checkpoint no deletion is promised, and the others' are not forgotten.
    ([None, (3, 10, True)], 3, 10, True),
    ([(0, 10, False), (3, 10, True)], 3, 10, False),
]


@pytest.mark.parametrize(("before", "revision", "ttl", "closed"), MERGED)
async def test_a_merged_checkpoint(
    etcd: Etcd,
    keys: ShardKeys,
    before: Sequence[tuple[int, int, bool] | None],
    revision: int,
    ttl: int,
    closed: bool,
) -> None:
    """The lowest revision, and the longest open term, if one is open."""
    table = await create(etcd, keys, len(before))
    while (await etcd.put(keys.prefix, b"")).revision < 10:
        pass
    cluster_id = f"{(await etcd.range(KeyRange.of_key(keys.prefix))).cluster_id:x}"
    for shard, saved in zip(table.shards, before, strict=True):
        if saved is None:
            await etcd.delete(KeyRange.of_key(keys.checkpoint(shard.id)))
        else:
            term = {"revision": 1, "ttl": saved[1], "closed": saved[2]}
            value = {"revision": saved[0], "clusterId": cluster_id, "term": term}
            await etcd.put(keys.checkpoint(shard.id), json.dumps(value).encode())
    table = await replace_shards(etcd, keys, table.shards, [])
    [new] = table.shards
    merged = await value_of(etcd, keys.checkpoint(new.id))
    assert merged["revision"] == revision
    assert merged["clusterId"] == cluster_id
    term = merged["term"]
    assert (term["ttl"], term.get("closed", False)) == (ttl, closed)
    fence = await own(etcd, keys, new)
    assert fence is not None
    checkpoint = Checkpoint(etcd, keys.checkpoint(new.id))
    expected = None if closed else Predecessor(ttl, own=False)
    assert await checkpoint.open_term(99, 5, fence) == expected
    assert checkpoint.saved == revision


async def test_a_checkpoint_that_cannot_be_used_counts_as_none_with_an_open_term(
    etcd: Etcd, keys: ShardKeys
) -> None:
    table = await create(etcd, keys, 3)
    fence = await own(etcd, keys, table.shards[0])
    assert fence is not None
    await save(etcd, keys.checkpoint(0), fence, 3)
    await etcd.put(keys.checkpoint(1), b"[" * 3000)
    await etcd.put(keys.checkpoint(2), b'{"revision":1,"clusterId":"123"}')
    table = await replace_shards(etcd, keys, table.shards, [], fences={0: fence})
    merged = await value_of(etcd, keys.checkpoint(table.shards[0].id))
    assert (merged["revision"], merged["term"].get("closed", False)) == (3, False)


async def test_a_table_is_removed(etcd: Etcd, keys: ShardKeys) -> None:
    await remove_table(etcd, keys)
    table = await create(etcd, keys, 3)
    fences = [await own(etcd, keys, shard, f"m{shard}") for shard in table.shards]
    for number, fence in enumerate(fences):
        assert fence is not None
        await save(etcd, keys.checkpoint(number), fence, 4 - number)
    for number, name in enumerate(["m0000", "m0001", "m0002"]):
        with pytest.raises(FailedPrecondition, match=f"{number:04d} .{name}.*have owners"):
            await remove_table(etcd, keys)
        await etcd.delete(KeyRange.of_key(keys.owner(number)))
    assert await lead_without_shards(etcd, keys) is None
    await remove_table(etcd, keys)
    assert (await value_of(etcd, keys.single_checkpoint))["revision"] == 2
    assert (await etcd.range(KeyRange.of_prefix(keys.prefix))).kvs == []
    assert await lead_without_shards(etcd, keys) is not None
    assert await own(etcd, keys, table.shards[0]) is None


async def test_shards_that_cannot_be_used_can_be_removed(etcd: Etcd, keys: ShardKeys) -> None:
    await create(etcd, keys, 3)
    await etcd.put(keys.range(1), b"nonsense")
    await remove_table(etcd, keys)
    assert not (await load_table(etcd, keys)).exists


Change = Callable[[Etcd, ShardKeys, ShardTable], Coroutine[Any, Any, None]]


async def _create(etcd: Etcd, keys: ShardKeys, _: ShardTable) -> None:
    await create(etcd, keys, 4)


async def _split(etcd: Etcd, keys: ShardKeys, table: ShardTable) -> None:
    await replace_shards(etcd, keys, table.shards[:1], [b"flyte/b"])


async def _merge(etcd: Etcd, keys: ShardKeys, table: ShardTable) -> None:
    await replace_shards(etcd, keys, table.shards[:2], [])


async def _remove(etcd: Etcd, keys: ShardKeys, _: ShardTable) -> None:
    await remove_table(etcd, keys)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize(
    ("change", "count"), [(_create, 4), (_split, 3), (_merge, 1), (_remove, 0)]
)
async def test_a_change_whose_answer_is_lost_may_be_repeated(
    memory: MemoryStore, keys: ShardKeys, change: Change, count: int, applied: bool
) -> None:
    etcd: MemoryClient = memory.client()
    table = ShardTable.of(keys.scope, [])
    if change is not _create:
        table = await create(etcd, keys, 2)
    etcd.faults.lose_answer(applied=applied)
    with pytest.raises(OutcomeUnknown):
        await change(etcd, keys, table)
    written = (await etcd.range(KeyRange.of_prefix(keys.prefix))).kvs
    await change(etcd, keys, table)
    after = (await etcd.range(KeyRange.of_prefix(keys.prefix))).kvs
    assert (after == written) == applied
    table = await load_table(etcd, keys)
    assert len(table.shards) == count
    for before, behind in pairwise(table.shards):
        assert before.range.end == behind.range.start


async def test_a_change_is_decided_again_after_a_race(memory: MemoryStore, keys: ShardKeys) -> None:
    """Another process changes shards between the read and the write."""
    etcd, other = memory.client(), memory.client()
    table = await create(etcd, keys, 3)

    async def race(change: Callable[[], Any], between: Callable[[], Any]) -> None:
        with etcd.faults.hold() as held:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(change)
                await held.reached.wait()
                await between()
                held.release()

    def split(client: Etcd, shard: Shard, name: str) -> Callable[[], Any]:
        async def run() -> None:
            await replace_shards(client, keys, [shard], [f"flyte/{name}".encode()])

        return run

    first, second, third = table.shards
    await race(split(etcd, first, "b"), split(other, third, "x"))
    assert await lowest_first(etcd, keys) == [5, 6, 1, 3, 4]
    table = await load_table(etcd, keys)

    async def owned() -> None:
        assert await own(other, keys, second, "o") is not None

    with pytest.RaisesGroup(
        pytest.RaisesExc(FailedPrecondition, match="shard 0001 has the owner o")
    ):
        await race(split(etcd, second, "rm"), owned)
