"""One process at a time runs an action, and only it may report."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionStatus,
    ActionUpdate,
    Phase,
    open_actions_client,
)
from etcd_actions.errors import ClaimLost
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Incarnation, Keyspace
from etcd_actions.storage.claims import Claim, Claims
from tests.support import flyte
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0", "o")


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


async def claim(client: ActionsClient, claims: Claims) -> Claim | None:
    action = await client.get_task_action(ROOT)
    return await claims.claim(ROOT, action.incarnation)


@pytest.mark.network
async def test_one_of_two_gets_it_and_keeps_it(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    async with client.open_claims() as one, client.open_claims() as two:
        mine = await claim(client, one)
        assert mine is not None
        assert await claim(client, one) == mine
        assert await claim(client, two) is None
        assert await two.taken() == {"flyte/r1-a0"}
        await one.release(mine)
        theirs = await claim(client, two)
        assert theirs is not None
        assert theirs.create_revision > mine.create_revision


async def test_only_who_has_it_may_report(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    running = ActionStatus(Phase.RUNNING)
    async with client.open_claims() as claims:
        mine = await claim(client, claims)
        assert mine is not None
        await client.put_status(ROOT, 1, running, claim=mine)
        # The same again writes nothing, so nothing needs to hold.
        await client.put_status(ROOT, 1, running, claim=mine)
        await claims.release(mine)
        with pytest.raises(ClaimLost):
            await client.put_status(ROOT, 1, ActionStatus(Phase.SUCCEEDED), claim=mine)
    assert (await client.get_task_action(ROOT)).phase is Phase.RUNNING


async def test_another_incarnation_cannot_be_claimed(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    action = await client.get_task_action(ROOT)
    async with client.open_claims() as claims:
        before = Incarnation(action.key, action.create_revision - 1, action.metadata.uid)
        assert await claims.claim(ROOT, before) is None
        assert await claims.taken() == set()


async def test_claims_go_with_their_owner(client: ActionsClient, etcd: Etcd, prefix: bytes) -> None:
    await client.enqueue(flyte.task(ROOT))
    async with client.open_claims() as claims:
        assert await claim(client, claims) is not None
    async with client.open_claims() as other:
        assert await claim(client, other) is not None
    assert not (await etcd.range(KeyRange.of_prefix(Keyspace(prefix).claims))).kvs


async def test_a_lost_lease_is_told_and_another_taken(
    client: ActionsClient, etcd: Etcd, prefix: bytes
) -> None:
    await client.enqueue(flyte.task(ROOT))
    async with client.open_claims(ttl=2) as claims:
        mine = await claim(client, claims)
        assert mine is not None
        lost = claims.lost
        found = await etcd.range(KeyRange.of_key(mine.key))
        await etcd.lease_revoke(found.kvs[0].lease)
        with pytest.raises(ClaimLost):
            await client.put_status(ROOT, 1, ActionStatus(Phase.RUNNING), claim=mine)
        with trio.fail_after(30):
            await lost.wait()
        again = await claim(client, claims)
        assert again is not None
        assert again != mine
        await client.put_status(ROOT, 1, ActionStatus(Phase.RUNNING), claim=again)


async def test_all_actions_can_be_subscribed_to(client: ActionsClient) -> None:
    other = ActionId("q", "d", "r2", "a0", "o")
    await client.enqueue(flyte.task(ROOT))
    async with client.subscribe_all() as updates:
        seen = {}
        with trio.fail_after(30):
            async for update in updates:
                if isinstance(update, ActionUpdate):
                    seen[update.action_id] = update.phase
                else:
                    await client.enqueue(flyte.task(other))
                    await client.put_status(ROOT, 1, ActionStatus(Phase.RUNNING))
                if len(seen) == 2 and seen[ROOT] is Phase.RUNNING:
                    break
    assert set(seen) == {ROOT, other}
    await eventually(lambda: client.statistics().subscriptions == 0)
