"""Programs of the SDK while Ray's head is killed: of scripts/prove, since it takes a minute."""

from __future__ import annotations

import pytest

from etcd_actions import ActionsClient, Phase
from etcd_actions.model.earlier_attempts import earlier_attempts
from tests.sdk.ray_programs import action, ended, submit
from tests.sdk.service import Site, free_port
from tests.support.ray_cluster import RayCluster
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.faults]


async def test_a_head_that_is_killed_costs_attempts_and_no_result(
    ray_site: Site, ray_cluster: RayCluster, ray_client: ActionsClient
) -> None:
    """Its restart has lost the jobs: each is a failed attempt, reported once, and the next runs."""
    with ray_site.service(free_port()) as service:
        await service.logged("serving")
        await submit(ray_site, "waiting.py", "main", "width=3")
        await eventually(lambda: len(ray_site.starts()) == 4, within=120)
        ray_cluster.kill("head")
        await service.logged("ray_unavailable")
        await ray_cluster.start()
        await eventually(lambda: len(ray_site.starts()) == 8, within=180)
        (ray_site.notes / "go").touch()
        root = await ended(ray_client)
    assert root.phase is Phase.SUCCEEDED, root.status.error_state
    assert ray_site.starts() == {
        f"{each.split()[0]} {n}": 1 for each in ray_site.starts() for n in (0, 1)
    }
    listing = await ray_client.list_run_actions(action("a0").run_id)
    for each in listing.actions:
        found = await ray_client.get_task_action(each.action_id)
        [lost] = earlier_attempts(found)
        assert (lost.code, lost.kind) == ("ProcessEnded", "SYSTEM")
        assert lost.message.startswith("Ray does not know the job any more")
