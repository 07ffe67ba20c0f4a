"""Members have keys on a lease, and a view of all shards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from etcd_actions.errors import ConfigError
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue
from etcd_actions.model import Keyspace
from etcd_actions.shards import (
    Membership,
    ShardKeys,
    ShardView,
    create_table,
    open_membership,
    replace_shards,
)
from etcd_actions.shards.shard_range import initial_ranges
from etcd_actions.testing import MemoryStore
from tests.support.waiting import eventually_holds

pytestmark = pytest.mark.memory

PATIENCE = 60


@pytest.fixture
def keys(prefix: bytes) -> ShardKeys:
    return ShardKeys(Keyspace(prefix, "flyte"), "flyte")


async def stored(etcd: Etcd, prefix: bytes) -> list[KeyValue]:
    return (await etcd.range(KeyRange.of_prefix(prefix))).kvs


async def view_with(
    membership: Membership, condition: Callable[[ShardView], bool], *, within: float = PATIENCE
) -> ShardView:
    """The first view for which a condition holds, by waiting for changes."""
    with trio.fail_after(within):
        while True:
            view = membership.view
            if view is not None and condition(view):
                return view
            await membership.wait_changed(view)


async def test_members_see_each_other_until_they_leave(etcd: Etcd, keys: ShardKeys) -> None:
    async with open_membership(etcd, keys, name="h/1/x") as first:
        await view_with(first, lambda view: set(view.members) == {"h/1/x"})
        async with open_membership(etcd, keys) as second:
            names = {"h/1/x", second.name}
            view = await view_with(first, lambda view: set(view.members) == names)
            assert view.members[second.name].tzinfo is not None
            await view_with(second, lambda view: set(view.members) == names)
            assert all(kv.lease for kv in await stored(etcd, keys.members))
        await view_with(first, lambda view: set(view.members) == {"h/1/x"})
    assert await stored(etcd, keys.prefix) == []


async def test_the_view_has_table_owners_and_ready_members(etcd: Etcd, keys: ShardKeys) -> None:
    async with open_membership(etcd, keys, name="me") as member:
        view = await member.ready()
        assert not view.table.exists
        table = await create_table(etcd, keys, initial_ranges(keys.scope, 2, []))
        view = await view_with(member, lambda view: len(view.table.shards) == 2)
        assert view.table.shards == table.shards
        assert view.table.problem == ""
        assert view.ownerless_since.keys() == {0, 1}
        await etcd.put(keys.owner(1), b"other")
        view = await view_with(member, lambda view: view.owners == {1: "other"})
        assert view.ownerless_since.keys() == {0}
        first, second = table.shards
        member.set_ready(first)
        member.set_ready(second)
        view = await view_with(member, lambda view: all(view.ready.values()))
        assert view.ready == dict.fromkeys((0, 1), frozenset({"me"}))
        member.clear_ready(second)
        await view_with(member, lambda view: not view.ready[1])
        # Of a shard that was replaced, no member is ready.
        await replace_shards(etcd, keys, [first], [b"flyte/b"])
        view = await view_with(member, lambda view: len(view.table.shards) == 3)
        assert view.ready == dict.fromkeys((1, 2, 3), frozenset())
        member.clear_ready(first)
        await eventually_holds(lambda: _is_empty(etcd, keys.ready))


async def _is_empty(etcd: Etcd, prefix: bytes) -> bool:
    return not await stored(etcd, prefix)


async def test_a_member_that_listed_another_range_is_not_ready(etcd: Etcd, keys: ShardKeys) -> None:
    """The same id, after the table was removed and created again."""
    [shard] = (await create_table(etcd, keys, [keys.scope])).shards
    async with open_membership(etcd, keys, name="me") as member:
        member.set_ready(shard)
        await view_with(member, lambda view: "me" in view.ready.get(0, ()))
        await etcd.delete(KeyRange.of_key(keys.range(0)))
        [again] = (await create_table(etcd, keys, [keys.scope])).shards
        await view_with(member, lambda view: view.table.shards == (again,))
        assert member.view is not None
        assert member.view.ready == {0: frozenset()}
        # A late withdrawal of the earlier one does not withdraw the present one.
        member.set_ready(again)
        member.clear_ready(shard)
        await view_with(member, lambda view: view.ready[0] == {"me"})


async def test_the_view_is_the_same_until_it_changes(etcd: Etcd, keys: ShardKeys) -> None:
    async with open_membership(etcd, keys, name="me") as member:
        view = await view_with(member, lambda view: "me" in view.members)
        await etcd.put(keys.checkpoint(0), b"{}")
        await etcd.put(keys.prefix + b"more", b"")
        changed = await view_with(member, lambda view: bool(view.undecodable))
        assert changed is not view
        assert list(changed.undecodable) == [keys.prefix + b"more"]
        await etcd.put(keys.checkpoint(0), b"{}")
        await etcd.put(keys.member("other"), b"nonsense")
        again = await view_with(member, lambda view: len(view.undecodable) == 2)
        assert set(again.members) == {"me"}
        with trio.move_on_after(1):
            await etcd.put(keys.checkpoint(0), b"{}")
            await member.wait_changed(again)
            pytest.fail("a checkpoint is no part of the view")


async def test_a_range_that_cannot_be_decoded_is_a_problem_until_it_is_fixed(
    etcd: Etcd, keys: ShardKeys
) -> None:
    await create_table(etcd, keys, initial_ranges(keys.scope, 2, []))
    [first, _] = await stored(etcd, keys.ranges)
    async with open_membership(etcd, keys) as member:
        await view_with(member, lambda view: not view.table.problem)
        await etcd.put(first.key, b"nonsense")
        view = await view_with(member, lambda view: bool(view.table.problem))
        assert first.key.decode() in view.table.problem
        await etcd.put(first.key, first.value)
        await view_with(member, lambda view: not view.table.problem)


async def test_a_member_leaves(etcd: Etcd, keys: ShardKeys) -> None:
    """Its key is deleted, and stays so; its other keys go with its lease."""
    [shard] = (await create_table(etcd, keys, [keys.scope])).shards
    async with open_membership(etcd, keys, name="me", ttl=3) as member:
        member.set_ready(shard)
        await view_with(member, lambda view: view.ready[0] == {"me"})
        with trio.fail_after(PATIENCE):
            await member.leave()
        assert await stored(etcd, keys.members) == []
        await member.leave()
        await trio.sleep(4)
        assert await stored(etcd, keys.members) == []
        assert len(await stored(etcd, keys.ready)) == 1
    assert await stored(etcd, keys.ready) == []


async def test_a_member_that_leaves_at_once_was_none(etcd: Etcd, keys: ShardKeys) -> None:
    async with open_membership(etcd, keys) as member:
        with trio.fail_after(PATIENCE):
            await member.leave()
        assert await stored(etcd, keys.members) == []


@pytest.mark.parametrize("lost", ["the lease", "its keys", "their lease"])
async def test_keys_that_were_lost_are_written_again(
    etcd: Etcd, keys: ShardKeys, lost: str
) -> None:
    [shard] = (await create_table(etcd, keys, [keys.scope])).shards
    async with open_membership(etcd, keys, name="me", ttl=3) as member:
        member.set_ready(shard)
        await view_with(member, lambda view: view.ready[0] == {"me"})
        [own] = await stored(etcd, keys.members)
        if lost == "the lease":
            await etcd.lease_revoke(own.lease)
        elif lost == "its keys":
            await etcd.delete(KeyRange.of_prefix(keys.members))
            await etcd.delete(KeyRange.of_prefix(keys.ready))
        else:
            await etcd.put(own.key, own.value)
        await view_with(member, lambda view: not view.members)
        view = await view_with(
            member, lambda view: "me" in view.members and view.ready[0] == {"me"}
        )
        assert view.ready[0] == {"me"}
        [again] = await stored(etcd, keys.members)
        assert again.value == own.value
        assert again.lease != 0
        assert (again.lease == own.lease) == (lost != "the lease")
    assert await stored(etcd, keys.members) == []


async def test_without_etcd_a_member_waits(memory: MemoryStore, keys: ShardKeys) -> None:
    etcd, other = memory.client(), memory.client()
    etcd.faults.cut()
    async with open_membership(etcd, keys, name="me") as member:
        await trio.sleep(30)
        assert member.view is None
        etcd.faults.heal()
        await view_with(member, lambda view: "me" in view.members)
        # Cut off for longer than the lease: the others plan without it; then it is back.
        etcd.faults.cut()
        await trio.sleep(30)
        assert await stored(other, keys.members) == []
        etcd.faults.heal()
        await eventually_holds(lambda: _is_member(other, keys))


async def _is_member(etcd: Etcd, keys: ShardKeys) -> bool:
    return bool(await stored(etcd, keys.members))


async def test_answers_that_are_lost(memory: MemoryStore, keys: ShardKeys) -> None:
    """What was perhaps written is written again, or deleted."""
    etcd, other = memory.client(), memory.client()
    etcd.faults.lose_answer(applied=True, which=lambda call: call.method == "KV/Txn", times=2)
    async with open_membership(etcd, keys, name="me") as member:
        await eventually_holds(lambda: _is_member(other, keys))
        etcd.faults.lose_answer(applied=False, which=lambda call: call.method == "KV/Txn", times=2)
        with trio.fail_after(PATIENCE):
            await member.leave()
        assert await stored(other, keys.members) == []


async def test_a_name_that_cannot_be_in_a_key(etcd: Etcd, keys: ShardKeys) -> None:
    with pytest.raises(ConfigError, match="name of the member"):
        async with open_membership(etcd, keys, name="a b"):
            pass
