"""The streams of RunService: the last state always comes, and they end without an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from flyteidl2.common import list_pb2
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase
from etcd_actions.etcd.api import Delete, KeyRange, Txn
from tests.server.clients import DEADLINE, Failed, Reading
from tests.server.front.run_calls import RunsAsker, action_id, create, run_id, serve_runs
from tests.support import flyte
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory(jumps=False)

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")
WATCH = pb.WatchActionDetailsRequest(action_id=action_id("r1"))


async def report(client: ActionsClient, phase: Phase, of: ActionId = ROOT) -> None:
    await client.put_status(of, 1, ActionStatus(phase=phase, attempts=1))


async def phases_to_the_end(reading: Reading) -> list[int]:
    """What is still told, up to a clean end."""
    await reading.ended()
    assert reading.error is None
    found: list[int] = []
    while True:
        try:
            message = reading._receive.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return found
        found.append(message.details.status.phase)


async def test_it_is_followed_to_its_end(asker: RunsAsker, client: ActionsClient) -> None:
    await asker("CreateRun", create("r1"))
    async with asker.stream("WatchActionDetails", WATCH) as reading:
        assert (await reading.next()).details.status.phase == Phase.QUEUED
        await report(client, Phase.RUNNING)
        assert (await reading.next()).details.status.phase == Phase.RUNNING
        await report(client, Phase.SUCCEEDED)
        told = (await reading.next()).details
        assert told.status.phase == Phase.SUCCEEDED
        assert told.id == action_id("r1")
        assert told.attempts[0].outputs.output_uri
        assert await phases_to_the_end(reading) == []


async def test_a_run_is_followed_to_its_end(asker: RunsAsker, client: ActionsClient) -> None:
    request = create("r1")
    request.run_spec.queue = "fast"
    await asker("CreateRun", request)
    watch = pb.WatchRunDetailsRequest(run_id=run_id("r1"))
    async with asker.stream("WatchRunDetails", watch) as reading:
        assert (await reading.next()).details.run_spec.queue == "fast"
        await report(client, Phase.FAILED)
        assert (await reading.next()).details.action.status.phase == Phase.FAILED
        await reading.ended()
        assert reading.error is None


async def test_what_is_over_is_told_at_once(asker: RunsAsker, client: ActionsClient) -> None:
    await asker("CreateRun", create("r1"))
    await report(client, Phase.SUCCEEDED)
    async with asker.stream("WatchActionDetails", WATCH) as reading:
        assert await phases_to_the_end(reading) == [Phase.SUCCEEDED]
    key = client.keys.task_action(ROOT)
    await client.store.txn(Txn((), (Delete(KeyRange.of_key(key)),)))
    async with asker.stream("WatchActionDetails", WATCH) as reading:
        assert len(await phases_to_the_end(reading)) == 1


async def test_who_reads_late_gets_the_last_state(asker: RunsAsker, client: ActionsClient) -> None:
    await asker("CreateRun", create("r1"))
    unread = asker.unread("WatchActionDetails", WATCH)
    for phase in (Phase.QUEUED, Phase.INITIALIZING, Phase.RUNNING, Phase.SUCCEEDED):
        await report(client, phase)
    reading = Reading(unread)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading.run)
        phases = await phases_to_the_end(reading)
    assert phases[-1] == Phase.SUCCEEDED
    assert phases == sorted(phases)


async def test_what_is_deleted_while_it_goes_on_is_told_as_aborted(
    asker: RunsAsker, client: ActionsClient
) -> None:
    await client.enqueue(flyte.task(ROOT))
    async with asker.stream("WatchActionDetails", WATCH) as reading:
        await reading.next()
        key = client.keys.task_action(ROOT)
        await client.store.txn(Txn((), (Delete(KeyRange.of_key(key)),)))
        assert await phases_to_the_end(reading) == [Phase.ABORTED]


async def test_another_projects_run_cannot_be_followed(asker: RunsAsker) -> None:
    await asker("CreateRun", create("r1"))
    for method, request in (
        (
            "WatchActionDetails",
            pb.WatchActionDetailsRequest(action_id=action_id("r1", project="q")),
        ),
        ("WatchRunDetails", pb.WatchRunDetailsRequest(run_id=run_id("r1", project="q"))),
        ("WatchActions", pb.WatchActionsRequest(run_id=run_id("r1", project="q"))),
    ):
        async with asker.stream(method, request) as reading:
            await reading.ended()
            assert isinstance(reading.error, Failed)
            assert reading.error.code == "not_found"


async def test_streams_end_with_their_client_and_with_the_service(
    client: ActionsClient, tmp_path: Path
) -> None:
    async with serve_runs(client, tmp_path) as (asker, server):
        await asker("CreateRun", create("r1"))
        actions = pb.WatchActionsRequest(run_id=run_id("r1"))
        for method, request in (("WatchActionDetails", WATCH), ("WatchActions", actions)):
            async with asker.stream(method, request) as reading:
                await reading.next()
                assert server.statistics().open_streams == 1
            await eventually(lambda: server.statistics().open_streams == 0)
            async with asker.stream(method, request) as reading:
                await reading.next()
                server.drain()
                await reading.ended()
                assert reading.error is None
            server._streams.is_draining = False
        assert server.statistics().calls.get(("WatchActions", "internal")) is None


async def test_after_a_silence_what_is_known_is_told_again(
    client: ActionsClient, tmp_path: Path
) -> None:
    async with serve_runs(client, tmp_path, keepalive=0.05) as (asker, _):
        await asker("CreateRun", create("r1"))
        async with asker.stream("WatchActionDetails", WATCH) as reading:
            assert await reading.next() == await reading.next()


async def test_all_actions_of_a_run_are_followed(asker: RunsAsker, client: ActionsClient) -> None:
    await asker("CreateRun", create("r1"))
    await client.enqueue(flyte.task(CHILD, "a0"))
    request = pb.WatchActionsRequest(
        run_id=run_id("r1"),
        filter=[
            list_pb2.Filter(function=list_pb2.Filter.EQUAL, field="phase", values=["SUCCEEDED"])
        ],
    )
    async with asker.stream("WatchActions", request) as reading:
        known = {each.action.id.name: each for each in (await reading.next()).enriched_actions}
        assert known.keys() == {"a0", "c1"}
        assert dict(known["a0"].children_phase_counts) == {Phase.QUEUED: 1}
        await client.enqueue(flyte.task(ActionId("p", "d", "r1", "c2"), "a0"))
        await report(client, Phase.SUCCEEDED, CHILD)
        with trio.fail_after(DEADLINE):
            while "c2" not in known or known["c1"].action.status.phase != Phase.SUCCEEDED:
                for each in (await reading.next()).enriched_actions:
                    known[each.action.id.name] = each
        assert known["c1"].meets_filter
        assert not known["c2"].meets_filter
        assert dict(known["a0"].children_phase_counts) == {Phase.QUEUED: 1, Phase.SUCCEEDED: 1}
        key = client.keys.task_action(ActionId("p", "d", "r1", "c2"))
        await client.store.txn(Txn((), (Delete(KeyRange.of_key(key)),)))
        with trio.fail_after(DEADLINE):
            while known["c2"].action.status.phase != ActionPhase.ACTION_PHASE_ABORTED:
                known |= {
                    each.action.id.name: each for each in (await reading.next()).enriched_actions
                }
        assert dict(known["a0"].children_phase_counts) == {Phase.ABORTED: 1, Phase.SUCCEEDED: 1}


@pytest.mark.slow
async def test_a_wide_run_is_told_whole_while_it_changes(
    asker: RunsAsker, client: ActionsClient
) -> None:
    """Nothing is missing of 600 actions that end while a stream begins."""
    await asker("CreateRun", create("r1"))
    children = [ActionId("p", "d", "r1", f"c{number}") for number in range(600)]
    async with trio.open_nursery() as nursery:
        for child in children:
            nursery.start_soon(client.enqueue, flyte.task(child, "a0"))
    ended: set[str] = set()
    numbers: dict[int, int] = {}
    request = pb.WatchActionsRequest(run_id=run_id("r1"))
    async with asker.stream("WatchActions", request) as reading, trio.open_nursery() as nursery:
        for child in children:
            nursery.start_soon(report, client, Phase.SUCCEEDED, child)
        with trio.fail_after(60):
            while len(ended) < len(children):
                for each in (await reading.next()).enriched_actions:
                    if each.action.status.phase == Phase.SUCCEEDED:
                        ended.add(each.action.id.name)
                    if each.action.id.name == "a0":
                        numbers = dict(each.children_phase_counts)
    assert sum(numbers.values()) == 600
