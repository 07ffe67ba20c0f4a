"""Programs of the SDK on a real Ray cluster of a head and two nodes."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_actions import ActionsClient, Phase
from etcd_actions.executor import AttemptDirectory
from tests.executor.wheels import make_wheel
from tests.sdk.door import open_door
from tests.sdk.ray_programs import action, ended, submit
from tests.sdk.service import Site, free_port, kill
from tests.support.etcd_server import EtcdServer
from tests.support.ray_cluster import RayCluster
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.faults]

BRANCHES, WIDTH = 2, 3
TASKS = 1 + BRANCHES + BRANCHES * WIDTH


async def test_a_program_runs_over_the_nodes(
    ray_site: Site, ray_cluster: RayCluster, ray_client: ActionsClient
) -> None:
    """Its result is right, each task is started once, and their logs can be read here."""
    with ray_site.service(free_port()) as service:
        await service.logged("serving")
        await submit(ray_site, "many.py", "tree", f"branches={BRANCHES}", f"width={WIDTH}")
        root = await ended(ray_client)
    assert root.phase is Phase.SUCCEEDED, root.status.error_state
    assert set(ray_site.starts().values()) == {1}
    assert len(ray_site.starts()) == TASKS
    logs = list(ray_site.state_dir.glob("attempts/*/1/log"))
    assert len(logs) == TASKS
    assert all(b"Running entrypoint for job" in log.read_bytes() for log in logs)
    assert all(AttemptDirectory.at(log.parent).exit_code == 0 for log in logs)


async def test_the_code_of_a_program_and_the_packages_of_its_image_come_with_it(
    ray_cluster: RayCluster,
    shared_etcd: EtcdServer,
    prefix: bytes,
    tmp_path: Path,
    ray_python: Path,
) -> None:
    """``flyte.run`` sends a bundle of the code; Ray installs the packages."""
    await ray_cluster.start()
    make_wheel(tmp_path / "wheels", "made_here", "VALUE = 42")
    executor = ("--executor", "ray", "--ray-address", ray_cluster.address)
    with open_door(tmp_path, shared_etcd.endpoint, prefix, ray_python, executor=executor) as door:

        async def told(*arguments: str, project: str) -> dict[str, Any]:
            run = partial(door.run, *arguments, project=project)
            return await trio.to_thread.run_sync(run)

        code = await told("packages_main.py", str(tmp_path / "code"), project="packages")
        assert code == {"outputs": ["HEY!"], "code": True, "at": True}
        image = await told("images.py", "wheel", str(tmp_path / "wheels"), project="images")
        assert image == {"outputs": ["42"], "runs": ["build-image", "images.main"]}


async def test_an_abort_stops_the_job(
    ray_site: Site, ray_cluster: RayCluster, ray_client: ActionsClient
) -> None:
    with ray_site.service(free_port()) as service:
        await service.logged("serving")
        await submit(ray_site, "waiting.py", "main", "width=1")
        await eventually(lambda: len(ray_site.starts()) == 2, within=120)
        assert ray_cluster.running(str(ray_site.state_dir.parent))
        await ray_client.abort_action(action("a0"), "enough")
        await eventually(lambda: not ray_cluster.running(str(ray_site.state_dir.parent)))
        # It is reported once, and not retried.
        assert (await ended(ray_client)).phase is Phase.ABORTED
    assert set(ray_site.starts().values()) == {1}


async def test_a_service_that_is_killed_finds_its_jobs(
    ray_site: Site, ray_client: ActionsClient, tmp_path: Path
) -> None:
    """Also without its state directory: by the names of the jobs."""
    port = free_port()
    with ray_site.service(port) as first:
        await first.logged("serving")
        await submit(ray_site, "waiting.py", "main", "width=2")
        await eventually(lambda: len(ray_site.starts()) == 3, within=120)
        kill(first)
    ray_site.state_dir = tmp_path / "another"
    with ray_site.service(port) as second:
        await second.logged("serving")
        (ray_site.notes / "go").touch()
        root = await ended(ray_client)
    assert root.phase is Phase.SUCCEEDED, root.status.error_state
    assert set(ray_site.starts().values()) == {1}


async def test_workers_of_two_pools_share_a_program_while_that_of_ray_is_killed(
    ray_site: Site, ray_client: ActionsClient, tmp_path: Path
) -> None:
    """The next worker of Ray, with a directory of its own, follows the job of the first one."""
    ray = (*ray_site.executor, "--pool", "ray", "--tasks-listen", f"127.0.0.1:{free_port()}")
    ray_site.executor = ("--executor", "none")
    ray_site.state_dir.mkdir()
    with ExitStack() as stack:
        service = stack.enter_context(ray_site.service(free_port()))
        local = stack.enter_context(ray_site.worker("local"))
        first = stack.enter_context(ray_site.worker("first", *ray))
        for each, word in ((service, "serving"), (local, "working"), (first, "working")):
            await each.logged(word)
        await submit(ray_site, "pools.py", "main")
        await eventually(lambda: len(ray_site.starts()) == 2, within=120)
        kill(first)
        second = stack.enter_context(ray_site.worker("second", *ray))
        await second.logged("working")
        (ray_site.notes / "go").touch()
        root = await ended(ray_client)
        assert root.phase is Phase.SUCCEEDED, root.status.error_state
        assert set(ray_site.starts().values()) == {1}
        assert len(ray_site.starts()) == 3
        outputs = Path(root.outputs_of(1)) / "outputs.pb"
        assert b"main:local middle:ray last:local" in outputs.read_bytes()
    ray_site.end_all()
