"""The demand of a pool, by which autoscalers start workers, on a real Prometheus."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.testing import EtcdServer
from tests.cli.command import running
from tests.deploy.test_prometheus import Prometheus, scraping
from tests.executor.tasks import Machine, until
from tests.support.documents import block
from tests.support.etcd_server import free_port
from tests.support.waiting import eventually_holds

pytestmark = pytest.mark.slow

# The expression of the page docs/deploy/workers.md, which the manifests have, too.
DEMAND = block("docs/deploy/workers.md", "promql").text
RUNS = [ActionId("p", "d", f"r{number}", "a0", "o") for number in range(4)]


async def reaches(prometheus: Prometheus, value: str | None) -> None:
    """Return once the demand has a value; None for no value."""

    async def is_there() -> bool:
        found = [each["value"][1] for each in await prometheus.values(DEMAND)]
        return found == ([] if value is None else [value])

    await eventually_holds(is_there)


@pytest.mark.parametrize("sharing", [(), ("--shards", "4")], ids=["leader", "shards"])
async def test_the_demand_of_a_pool(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path, sharing: tuple[str, ...]
) -> None:
    """It counts actions without a worker, stays while they run, and is none without a leader."""
    machine = Machine(tmp_path)
    go, port = tmp_path / "go", free_port()
    common = (
        *("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()),
        *("--blob-dir", str(tmp_path / "blobs")),
    )
    offering = (
        *("--executor-slots", "2", "--cpus", "100", "--python", sys.executable),
        *("--executor-state-dir", str(machine.state_dir)),
        *("--monitoring-listen", f"127.0.0.1:{port}"),
    )
    async with open_actions_client(etcd, prefix=prefix) as client:
        with running(tmp_path, "run", *common, *sharing) as service:
            target = (await service.logged("monitoring"))["listen"]
            async with scraping(
                tmp_path, target, workers={f"127.0.0.1:{port}": "default"}
            ) as prometheus:
                await reaches(prometheus, "0")
                for action_id in RUNS:
                    await enqueue(client, machine, action_id, go)
                # One is of another pool.
                await reaches(prometheus, "3")
                with running(tmp_path, "worker", *common, *offering) as worker:
                    await worker.logged("working")
                    running_now = "sum(etcd_actions_executor_running)"

                    async def are_running() -> bool:
                        found = await prometheus.values(running_now)
                        return [each["value"][1] for each in found] == ["2"]

                    await eventually_holds(are_running)
                    await reaches(prometheus, "3")
                    go.touch()
                    for action_id in RUNS[:3]:
                        assert (await until(client, action_id)).phase is Phase.SUCCEEDED
                    await reaches(prometheus, "0")
                    worker.signal(signal.SIGTERM)
                    assert await worker.wait() == 0
                service.signal(signal.SIGTERM)
                assert await service.wait() == 0
                await reaches(prometheus, None)


async def enqueue(client: ActionsClient, machine: Machine, action_id: ActionId, go: Path) -> None:
    action = machine.task(action_id, f'while [ ! -e "{go}" ]; do sleep 0.05; done')
    # Each run has its own place for outputs.
    action.run_output_base = str(machine.base / action_id.run)
    if action_id is RUNS[3]:
        action.task.queue = "gpu"
    await client.enqueue(action)
