"""The run of a process's shards: no watch outlives one that failed."""

from __future__ import annotations

import pytest
import trio

from etcd_actions import Phase
from etcd_actions.etcd.api import Etcd
from etcd_actions.pipeline.shards_run import ShardsRun
from tests.pipeline.sharding import Told, end, root, sharing, until_owned, until_recorded
from tests.support import flyte
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory


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
