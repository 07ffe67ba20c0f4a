"""Shards follow the numbers of their keys: large ones are split, small neighbours merged."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import trio

from etcd_actions import ActionsClient, Phase
from etcd_actions.errors import FailedPrecondition
from etcd_actions.etcd.api import Etcd, KeyRange, Txn
from etcd_actions.model import Keyspace
from etcd_actions.pipeline.reshaping import Reshaper
from etcd_actions.pipeline.sharded_processor import ShardedProcessor
from etcd_actions.pipeline.shards_run import ShardsRun
from tests.pipeline.sharding import SHARDED, Told, end, root, sharing, until_owned, until_recorded
from tests.pipeline.test_sharded import received
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

RUNS = tuple(f"rz{letter}" for letter in "abcdefghijkl")


def run_of(client: ActionsClient) -> ShardsRun:
    processor = client._processor
    assert isinstance(processor, ShardedProcessor)
    assert processor._run is not None
    return processor._run


def reshaper(client: ActionsClient, *, split_from: int = 4, least: int = 4) -> Reshaper:
    run = run_of(client)
    return Reshaper(
        client._etcd,
        run._parts.keys,
        run._parts.shard_keys,
        run._joined_membership,
        run.watches.values,
        split_from=split_from,
        least=least,
    )


def count(client: ActionsClient) -> int:
    return len(client.statistics().shards)


async def fill(client: ActionsClient) -> None:
    """All runs are in the last of four shards."""
    for run in RUNS:
        await client.enqueue(flyte.task(root(run)))
    await eventually(lambda: [each.keys for each in client.statistics().shards] == [0, 0, 0, 12])


async def test_a_large_shard_is_split_at_its_median(etcd: Etcd, prefix: bytes) -> None:
    """Its runs are recorded once, and subscriptions stay on the old watch."""
    service = Told()
    async with sharing(etcd, prefix, service) as client:
        await until_owned(4, client)
        await fill(client)
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(client.subscribe(root(run))) for run in RUNS]
            assert await reshaper(client).reshape_once()
            await until_owned_again(client, 5)
            new = client.statistics().shards[3:]
            assert [(each.id, each.keys) for each in new] == [(4, 6), (5, 6)]
            for run, subscription in zip(RUNS, opened, strict=True):
                await end(client, run)
                while (await received(subscription, 1))[0][1] is not Phase.SUCCEEDED:
                    pass
            await until_recorded(client, *RUNS)
        await until_owned(5, client)
    assert all(service.states[run].count(Phase.SUCCEEDED) == 1 for run in RUNS)


async def until_owned_again(client: ActionsClient, shards: int) -> None:
    await eventually(
        lambda: (
            count(client) == shards
            and all(each.owned and each.keys is not None for each in client.statistics().shards)
        )
    )


async def test_small_neighbours_are_merged_down_to_the_first_number(
    etcd: Etcd, prefix: bytes
) -> None:
    async with sharing(etcd, prefix) as client:
        await until_owned(4, client)
        await fill(client)
        assert await reshaper(client).reshape_once()
        await until_owned_again(client, 5)
        one = reshaper(client, split_from=1000)
        assert await one.reshape_once()
        await until_owned_again(client, 4)
        assert [each.keys for each in client.statistics().shards] == [0, 0, 6, 6]
        assert not await one.reshape_once()
        await client.enqueue(flyte.task(root("r1")))
        await end(client, "r1")
        await until_recorded(client, "r1")


@pytest.mark.parametrize("reason", first_everyday(["small", "equal", "one run", "another's"], 2))
async def test_it_leaves_others_alone(etcd: Etcd, prefix: bytes, reason: str) -> None:
    """A shard below the least size, one with a single run, and one that another process owns."""
    async with sharing(etcd, prefix) as client:
        await until_owned(4, client)
        if reason == "one run":
            for number in range(12):
                await client.enqueue(flyte.task(root(f"rz-{number}")))
            await eventually(lambda: client.statistics().shards[3].keys == 12)
        elif reason == "equal":
            for run in ("r1", "ra", "rj", "rz"):
                await client.enqueue(flyte.task(root(run)))
        else:
            await fill(client)
        if reason == "another's":
            run_of(client).watches.clear()
        one = reshaper(client, split_from=100 if reason == "small" else 1)
        assert not await one.reshape_once()
        assert count(client) == 4


class _Losing:
    """A connection that loses the answer to a transaction that replaces shards."""

    def __init__(self, etcd: Etcd, *, applied: bool) -> None:
        self._etcd = etcd
        self._applied = applied
        self.lost = 0

    async def txn(self, txn: Txn) -> object:
        if len(txn.success) > 4 and not self.lost:
            self.lost += 1
            if self._applied:
                await self._etcd.txn(txn)
            raise FailedPrecondition("the answer was lost")
        return await self._etcd.txn(txn)

    def __getattr__(self, name: str) -> object:
        return getattr(self._etcd, name)


@pytest.mark.parametrize("applied", [False, True])
async def test_a_lost_answer_leaves_each_run_with_an_owner(
    etcd: Etcd, prefix: bytes, applied: bool
) -> None:
    async with sharing(etcd, prefix) as client:
        await until_owned(4, client)
        await fill(client)
        one = reshaper(client)
        one._etcd = _Losing(etcd, applied=applied)  # type: ignore[assignment]
        with pytest.raises(FailedPrecondition):
            await one.reshape_once()
        await until_owned_again(client, 5 if applied else 4)
        for run in RUNS:
            await end(client, run)
        await until_recorded(client, *RUNS)


async def test_the_sizes_are_looked_at_from_time_to_time(etcd: Etcd, prefix: bytes) -> None:
    settings = replace(
        SHARDED,
        split_from=4,
        election_ttl=30,
        save_every=10.0,
        reflector=replace(SHARDED.reflector, dead_after=15.0),
    )
    async with sharing(etcd, prefix, settings=settings) as client:
        await until_owned(4, client)
        await fill(client)
        await trio.sleep(100)
        await eventually(lambda: client.statistics().shards[-1].id > 3)
        keys = Keyspace(prefix)
        assert (await etcd.range(KeyRange.of_prefix(keys.prefix), limit=1)).total == len(RUNS)
