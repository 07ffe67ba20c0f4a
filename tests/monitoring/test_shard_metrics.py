"""The metrics of processes that share the work by shards."""

from __future__ import annotations

from etcd_actions.etcd.api import Etcd
from etcd_actions.monitoring import open_monitoring
from tests.monitoring.test_monitoring import LOOPBACK, samples
from tests.pipeline.sharding import RUNS, root, sharing, until_owned
from tests.support import flyte
from tests.support.waiting import eventually_holds


async def test_shards_are_counted_and_each_action_is_queued_once(etcd: Etcd, prefix: bytes) -> None:
    async with sharing(etcd, prefix) as first, sharing(etcd, prefix) as second:
        await until_owned(4, first, second)
        for run in RUNS:
            await first.enqueue(flyte.task(root(run)))
        async with (
            open_monitoring(first, etcd, LOOPBACK, prefix=prefix, silence_limit=30) as one,
            open_monitoring(second, etcd, LOOPBACK, prefix=prefix, silence_limit=30) as other,
        ):

            async def each_is_queued_once() -> bool:
                queued = [
                    (await samples(each))["etcd_actions_queued_actions", "default"]
                    for each in (one, other)
                ]
                return sum(queued) == len(RUNS)

            await eventually_holds(each_is_queued_once)
            found = [await samples(each) for each in (one, other)]
    assert sum(each["etcd_actions_shards", "owned"] for each in found) == 4
    for each in found:
        states = ("owned", "standby", "elsewhere")
        assert sum(each["etcd_actions_shards", state] for state in states) == 4
        assert each["etcd_actions_shards_unowned",] == 0
        assert each["etcd_actions_shard_ownerless_seconds",] == 0
        assert each["etcd_actions_shard_members",] == 2
