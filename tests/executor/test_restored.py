"""A restored etcd below an executor that goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from etcd_actions import ActionsClient, Phase, open_actions_client, open_etcd
from tests.executor.fakes import Bench
from tests.executor.tasks import ROOT
from tests.support.etcd_server import EtcdServer
from tests.support.patient import patiently
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.faults


async def reaches(bench: Bench, phase: Phase) -> None:
    async def is_there() -> bool:
        return (await patiently(bench.client.get_task_action, ROOT)).phase is phase

    await eventually_holds(is_there)


def _seen(client: ActionsClient) -> int:
    reflector = client.statistics().reflector
    return 0 if reflector is None else reflector.revision


@pytest.mark.slow
async def test_what_was_restored_is_ended_again_and_run_no_second_time(
    own_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """Its revisions are lower than what the executor knows, and it had seen the end."""
    async with (
        open_etcd(own_etcd.endpoint, request_timeout=2) as etcd,
        open_actions_client(etcd, prefix=prefix) as client,
    ):
        await client.start_watching()
        bench = Bench(client, tmp_path)
        with trio.fail_after(60):
            await bench.enqueue(ROOT)
            own_etcd.stop()
            own_etcd.save("backup")
            own_etcd.start()
            async with bench.executor() as executor:
                await reaches(bench, Phase.RUNNING)
                bench.attempts.finish("r1-a0")
                # All that it does for the action is done, and it knows.
                await eventually(lambda: executor.statistics().ended == {"SUCCEEDED": 1})
                await eventually(lambda: executor.statistics().running == 0)
                # A watch that saw nothing of what is taken back has nothing to notice.
                ended = await patiently(client.get_task_action, ROOT)
                await eventually(lambda: _seen(client) >= ended.revision)
                own_etcd.stop()
                own_etcd.restore("backup")
                own_etcd.start()
                await eventually(lambda: executor.statistics().ended == {"SUCCEEDED": 2})
                await reaches(bench, Phase.SUCCEEDED)
                assert bench.attempts.started == 1
