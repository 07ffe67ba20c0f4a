"""The run of a process's shards: no watch outlives it, however it ends."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from etcd_actions import Phase
from etcd_actions.etcd.api import Etcd
from etcd_actions.pipeline.shards_run import ShardsRun
from etcd_actions.pipeline.watch_run import WatchRun
from tests.pipeline.sharding import Told, end, root, sharing, until_owned, until_recorded
from tests.pipeline.test_reshaping import run_of
from tests.support import flyte
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory


async def test_a_shard_that_is_listed_during_a_stop_is_not_watched_afterwards(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another shard takes the grace to finish its work; meanwhile nothing is started again."""
    starts = Counter[str]()
    start_revision = WatchRun._start_revision

    async def first_hangs(run: WatchRun) -> int:
        part = run._parts.scope.part
        starts[part] += 1
        if part == "shard 0003" and starts[part] == 1:
            await trio.sleep_forever()
        return await start_revision(run)

    monkeypatch.setattr(WatchRun, "_start_revision", first_hangs)
    service = Told()
    async with sharing(etcd, prefix, service, starts=False) as client, trio.open_nursery() as tasks:
        tasks.start_soon(client.start_watching)
        await eventually(lambda: starts["shard 0003"] == 1)
        service.hang = trio.Event()
        await client.enqueue(flyte.task(root("r1")))
        await end(client, "r1")
        await eventually(lambda: service.asked > 0)
        watches = list(run_of(client).watches.values())
        assert len(watches) == 4
        await client.stop_watching(2.0)
        assert not any(each.processor.watching for each in watches)
        assert starts["shard 0003"] == 1


async def test_after_a_failure_of_the_run_no_earlier_watch_leads(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is started again; the shards get new watches, which own them."""
    until_listed, failed = ShardsRun._until_listed, trio.Event()

    async def fails_once(run: ShardsRun) -> None:
        await until_listed(run)
        if not failed.is_set():
            await eventually(lambda: all(each.leads for each in run.watches.values()))
            failed.set()
            raise RuntimeError("unexpected")

    monkeypatch.setattr(ShardsRun, "_until_listed", fails_once)
    service = Told()
    async with sharing(etcd, prefix, service) as client:
        assert failed.is_set()
        await until_owned(4, client)
        await client.enqueue(flyte.task(root("r1")))
        await end(client, "r1")
        await until_recorded(client, "r1")
        assert client.containment.failures == {"task": 1}
    assert service.states["r1"].count(Phase.SUCCEEDED) == 1
