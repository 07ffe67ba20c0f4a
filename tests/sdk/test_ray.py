"""Programs of the SDK on a real Ray cluster of a head and two nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from etcd_actions import ActionId, ActionsClient, Phase, StoredAction, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor import AttemptDirectory
from etcd_actions.model.earlier_attempts import earlier_attempts
from tests.sdk.service import Site, free_port, kill
from tests.support.etcd_server import EtcdServer
from tests.support.ray_cluster import RayCluster, open_ray_cluster
from tests.support.waiting import eventually, eventually_holds

pytestmark = [pytest.mark.slow, pytest.mark.faults]

BRANCHES, WIDTH = 2, 3
TASKS = 1 + BRANCHES + BRANCHES * WIDTH


@pytest.fixture(scope="module")
def cluster(ray_python: Path) -> Iterator[RayCluster]:
    with open_ray_cluster(ray_python) as cluster:
        yield cluster


@pytest.fixture
async def site(
    cluster: RayCluster, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, ray_python: Path
) -> Site:
    await cluster.start()
    site = Site(tmp_path, shared_etcd.endpoint, prefix, ray_python)
    site.executor = ("--executor", "ray", "--ray-address", cluster.address)
    return site


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


def action(name: str) -> ActionId:
    return ActionId("flytesnacks", "development", "rmany", name, "local")


async def submit(site: Site, program: str, task: str, *inputs: str) -> None:
    await site.submit(program, task, *inputs, f"directory={site.notes}", run="rmany")


async def ended(client: ActionsClient) -> StoredAction:
    """The root, once it has ended."""
    found = None

    async def has_ended() -> bool:
        nonlocal found
        found = await client.get_task_action(action("a0"))
        return found.is_terminal

    await eventually_holds(has_ended, within=300)
    assert found is not None
    return found


async def test_a_program_runs_over_the_nodes(
    site: Site, cluster: RayCluster, client: ActionsClient
) -> None:
    """Its result is right, each task is started once, and their logs can be read here."""
    with site.service(free_port()) as service:
        await service.logged("serving")
        await submit(site, "many.py", "tree", f"branches={BRANCHES}", f"width={WIDTH}")
        root = await ended(client)
    assert root.phase is Phase.SUCCEEDED, root.status.error_state
    assert set(site.starts().values()) == {1}
    assert len(site.starts()) == TASKS
    logs = list(site.state_dir.glob("attempts/*/1/log"))
    assert len(logs) == TASKS
    assert all(b"Running entrypoint for job" in log.read_bytes() for log in logs)
    assert all(AttemptDirectory.at(log.parent).exit_code == 0 for log in logs)


async def test_an_abort_stops_the_job(
    site: Site, cluster: RayCluster, client: ActionsClient
) -> None:
    with site.service(free_port()) as service:
        await service.logged("serving")
        await submit(site, "waiting.py", "main", "width=1")
        await eventually(lambda: len(site.starts()) == 2, within=120)
        assert cluster.running(str(site.state_dir.parent))
        await client.abort_action(action("a0"), "enough")
        await eventually(lambda: not cluster.running(str(site.state_dir.parent)))
        # It is reported once, and not retried.
        assert (await ended(client)).phase is Phase.ABORTED
    assert set(site.starts().values()) == {1}


async def test_a_service_that_is_killed_finds_its_jobs(
    site: Site, client: ActionsClient, tmp_path: Path
) -> None:
    """Also without its state directory: by the names of the jobs."""
    port = free_port()
    with site.service(port) as first:
        await first.logged("serving")
        await submit(site, "waiting.py", "main", "width=2")
        await eventually(lambda: len(site.starts()) == 3, within=120)
        kill(first)
    site.state_dir = tmp_path / "another"
    with site.service(port) as second:
        await second.logged("serving")
        (site.notes / "go").touch()
        root = await ended(client)
    assert root.phase is Phase.SUCCEEDED, root.status.error_state
    assert set(site.starts().values()) == {1}


async def test_a_head_that_is_killed_costs_attempts_and_no_result(
    site: Site, cluster: RayCluster, client: ActionsClient
) -> None:
    """Its restart has lost the jobs: each is a failed attempt, reported once, and the next runs."""
    with site.service(free_port()) as service:
        await service.logged("serving")
        await submit(site, "waiting.py", "main", "width=3")
        await eventually(lambda: len(site.starts()) == 4, within=120)
        cluster.kill("head")
        await service.logged("ray_unavailable")
        await cluster.start()
        await eventually(lambda: len(site.starts()) == 8, within=180)
        (site.notes / "go").touch()
        root = await ended(client)
    assert root.phase is Phase.SUCCEEDED, root.status.error_state
    assert site.starts() == {f"{each.split()[0]} {n}": 1 for each in site.starts() for n in (0, 1)}
    listing = await client.list_run_actions(action("a0").run_id)
    for each in listing.actions:
        found = await client.get_task_action(each.action_id)
        [lost] = earlier_attempts(found)
        assert (lost.code, lost.kind) == ("ProcessEnded", "SYSTEM")
        assert lost.message.startswith("Ray does not know the job any more")


async def test_workers_of_two_pools_share_a_program_while_that_of_ray_is_killed(
    site: Site, client: ActionsClient, tmp_path: Path
) -> None:
    """The next worker of Ray, with a directory of its own, follows the job of the first one."""
    ray = (*site.executor, "--pool", "ray", "--tasks-listen", f"127.0.0.1:{free_port()}")
    site.executor = ("--executor", "none")
    site.state_dir.mkdir()
    with ExitStack() as stack:
        service = stack.enter_context(site.service(free_port()))
        local = stack.enter_context(site.worker("local"))
        first = stack.enter_context(site.worker("first", *ray))
        for each, word in ((service, "serving"), (local, "working"), (first, "working")):
            await each.logged(word)
        await submit(site, "pools.py", "main")
        await eventually(lambda: len(site.starts()) == 2, within=120)
        kill(first)
        second = stack.enter_context(site.worker("second", *ray))
        await second.logged("working")
        (site.notes / "go").touch()
        root = await ended(client)
        assert root.phase is Phase.SUCCEEDED, root.status.error_state
        assert set(site.starts().values()) == {1}
        assert len(site.starts()) == 3
        outputs = Path(root.outputs_of(1)) / "outputs.pb"
        assert b"main:local middle:ray last:local" in outputs.read_bytes()
    site.end_all()
