"""A member of etcd is cut off from its peers, and not from its clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from etcd_actions import Phase
from etcd_actions.errors import OutcomeUnknown, Unavailable
from etcd_actions.etcd import ConnectionSettings, EtcdClient, open_connection
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.run_service.grpc_run_service import open_run_service
from tests.faults.test_takeover import begin, end, running
from tests.support.cluster import Member
from tests.support.leading import SETTINGS
from tests.support.load import Load, make_run, root_of
from tests.support.namespaces import why_not
from tests.support.partition import PartedCluster
from tests.support.patient import patiently
from tests.support.recording import RecordingSink, until_stored
from tests.support.run_service_server import RunServiceServer
from tests.support.scene import all_marked, judge_delivery, processing, reflecting, subscribed
from tests.support.waiting import eventually, eventually_holds

pytestmark = [pytest.mark.faults, pytest.mark.slow]

LEADER = "the leader of etcd"
ACTIONS = 20
TTL = 2


@pytest.fixture
def namespaces() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
async def parted(namespaces: None, tmp_path: Path) -> AsyncIterator[PartedCluster]:
    """Three members whose ways to each other can be cut."""
    cluster = PartedCluster(tmp_path)
    with cluster.network():
        try:
            async with cluster.relayed():
                await trio.to_thread.run_sync(cluster.start)
                yield cluster
        finally:
            cluster.stop()


async def connected(stack: AsyncExitStack, *members: Member) -> EtcdClient:
    endpoints = parse_endpoints([member.endpoint for member in members])
    settings = ConnectionSettings(endpoints=endpoints, dial_timeout=0.5, request_timeout=1.5)
    return await stack.enter_async_context(open_connection(settings))


async def chosen(cluster: PartedCluster, which: str) -> tuple[Member, list[Member]]:
    """The member to cut off, and the others."""
    leader = await trio.to_thread.run_sync(cluster.leader)
    member = next(each for each in cluster.members if (each is leader) == (which == LEADER))
    return member, [each for each in cluster.members if each is not member]


async def until_lost(member: Member) -> None:
    """Return once a member knows that it has no leader; the relay is in this thread."""

    async def is_alone() -> bool:
        return not await trio.to_thread.run_sync(member.metric, "etcd_server_has_leader")

    await eventually_holds(is_alone)


each_member = pytest.mark.parametrize("which", [LEADER, "a follower"])


@each_member
async def test_a_member_without_its_peers_shows_nothing_older_and_takes_no_write(
    parted: PartedCluster, prefix: bytes, which: str
) -> None:
    """Who has other members goes on with them; who has none gets all once it is healed."""
    everybody, lonely = RecordingSink(), RecordingSink()
    member, others = await chosen(parted, which)
    with trio.fail_after(120):
        async with AsyncExitStack() as stack:
            direct = await connected(stack, *others)
            # The member that will be cut off is the first, and so in use.
            every = await connected(stack, member, *others)
            only = await connected(stack, member)
            await stack.enter_async_context(reflecting(every, prefix, everybody))
            await stack.enter_async_context(reflecting(only, prefix, lonely))
            await Load(direct).play([make_run(prefix, "rd1", 3)])
            await judge_delivery(everybody, direct, prefix)
            await judge_delivery(lonely, direct, prefix)
            parted.part(member)
            await until_lost(member)
            before = len(lonely.changes)
            await Load(direct, seed=1).play([make_run(prefix, "rd2", 3)])
            await judge_delivery(everybody, direct, prefix)
            with pytest.raises(Unavailable):
                await only.range(KeyRange.of_prefix(prefix))
            with pytest.raises((Unavailable, OutcomeUnknown)):
                await only.put(b"/partition", b"by who was cut off")
            assert len(lonely.changes) == before
            parted.join(member)
            await patiently(only.put, b"/partition", b"healed")
            await judge_delivery(lonely, direct, prefix)


async def test_a_leader_behind_a_member_without_its_peers_revives_nothing(
    parted: PartedCluster, prefix: bytes
) -> None:
    """Its lease goes on nowhere but in its own mind, and it stops calling before that ends."""
    actions = make_run(prefix, "rx1", ACTIONS)
    keys = KeyRange.of_prefix(prefix)
    settings = replace(SETTINGS, election_ttl=TTL)
    member, others = await chosen(parted, LEADER)
    with RunServiceServer() as server, trio.fail_after(150):
        server.refuses = running
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            direct = await connected(stack, *others)
            behind = await connected(stack, member)
            beside = await connected(stack, *others)
            tells = await enter(open_run_service(server.endpoint))
            tells_too = await enter(open_run_service(server.endpoint))
            first = await enter(processing(behind, prefix, tells, settings=settings))
            updates = await enter(subscribed(first, [root_of("rx1")]))
            await eventually(lambda: first.statistics().elected)
            await begin(direct, actions)
            await eventually(lambda: server.calls["status"] >= 3 * ACTIONS)
            second = await enter(processing(beside, prefix, tells_too, settings=settings))
            parted.part(member)
            await until_lost(member)
            await patiently(end, direct, actions)
            await eventually(lambda: second.statistics().elected)
            await until_stored(direct, keys, all_marked)
            assert set(server.phases.values()) == {Phase.FAILED}
            # What the first one has to tell again would be taken now.
            server.refuses = lambda _what, _request: False
            assert not any(update.phase.is_terminal for update in updates)
            parted.join(member)
            await eventually(lambda: not first.statistics().elected)
            ended = {action.key for action in actions}
            await eventually(
                lambda: {each.key for each in updates if each.phase is Phase.FAILED} == ended
            )
            # The member that comes back may cost the second one a lease, never its reports.
            await eventually(lambda: second.statistics().elected)
    assert server.revived == []
    assert len(server.phases) == ACTIONS
    assert set(server.phases.values()) == {Phase.FAILED}
