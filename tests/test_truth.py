"""After an ending was accepted nothing older is told of that action, whoever leads."""

from __future__ import annotations

from dataclasses import replace

import trio

from etcd_actions import Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.support import flyte
from tests.support.waiting import eventually
from tests.test_outbox import ROOT, SETTINGS, Scripted, is_idle, named, tell, watching

NEVER = 1_000.0


async def test_a_restart_from_the_position_tells_nothing_older_than_the_mark(
    etcd: Etcd, prefix: bytes
) -> None:
    """The list at the position shows RUNNING, of what a leader has marked that was killed."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        written = await client.put_status(ROOT, 1, flyte.status(Phase.RUNNING))
        await eventually(lambda: client.statistics().position >= written.revision)
    with trio.CancelScope() as killed:
        async with open_actions_client(
            etcd, prefix=prefix, run_service=service, settings=replace(SETTINGS, save_every=NEVER)
        ) as client:
            await client.start_watching()
            await eventually(lambda: client.statistics().elected)
            await tell(client, "a0", [Phase.FAILED])
            await eventually(lambda: client.statistics().marks == {"marked": 1})
            killed.cancel()
    told = len(service.told)
    async with watching(etcd, prefix, service) as client:
        await eventually(lambda: is_idle(client))
    assert service.told[told:] == []


async def test_a_child_promotes_no_parent_that_was_marked_meanwhile(
    etcd: Etcd, prefix: bytes
) -> None:
    """This process was stopped while the parent ended; what it remembers of it is old."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.QUEUED])
        await eventually(lambda: service.of("a0")[-1:] == [Phase.QUEUED])
        await eventually(lambda: is_idle(client))
        await client.stop_watching()
        async with watching(etcd, prefix, service) as other:
            await other.enqueue(flyte.task(named("0c"), "a0"))
            await tell(other, "a0", [Phase.FAILED])
            await eventually(lambda: other.statistics().marks == {"marked": 1})
        await client.start_watching()
        await eventually(lambda: client.statistics().elected)
        await eventually(lambda: is_idle(client))
    assert service.of("a0")[-1] is Phase.FAILED
