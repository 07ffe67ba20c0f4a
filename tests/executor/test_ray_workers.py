"""Workers of a Ray cluster, next to others: its head is one whose jobs the test runs."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.core.tasks_pb2 import Resources

from etcd_actions import ActionsClient, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor import (
    Executor,
    ExecutorSettings,
    Offer,
    RaySettings,
    open_executor,
)
from etcd_actions.executor.lost_attempts import WORKER_LOST
from etcd_actions.model.earlier_attempts import earlier_attempts
from etcd_actions.pipeline.watching_settings import WatchingSettings
from tests.executor.tasks import ROOT, named, until
from tests.executor.test_ray_executor import task, write
from tests.executor.workers import fake_worker
from tests.support.everyday import first_everyday
from tests.support.http_server import HttpRequest, answer
from tests.support.ray_head import RayHead
from tests.support.waiting import eventually

BASE = "memory://bucket/workers"


class RayWorker(NamedTuple):
    executor: Executor
    client: ActionsClient


@asynccontextmanager
async def ray_worker(
    etcd: Etcd, prefix: bytes, head: RayHead, directory: Path
) -> AsyncIterator[RayWorker]:
    """A worker of pool ``ray``, for as long as the context lasts."""
    directory.mkdir()
    settings = ExecutorSettings(
        python=Path(sys.executable),
        service="10.0.0.5:8092",
        state_dir=directory,
        claim_ttl=1,
        ray=RaySettings(address=head.address),
        offer=Offer(slots=4, cpus=None, memory=None, gpus=None, pools=("ray",)),
    )
    watching = WatchingSettings(record=False)
    with trio.fail_after(60):
        async with open_actions_client(etcd, prefix=prefix, settings=watching) as client:
            await client.start_watching()
            async with open_executor(client, settings) as executor:
                yield RayWorker(executor, client)


def for_ray(name: str, parent: str = "", *, cpus: str = "1") -> Action:
    """A task of pool ``ray``."""

    def change(action: Action) -> None:
        action.task.queue = "ray"
        resources = action.task.spec.task_template.container.resources
        resources.requests.add(name=Resources.CPU, value=cpus)

    return task(name, BASE, change, parent)


async def test_each_action_goes_to_the_worker_of_its_pool(
    etcd: Etcd, prefix: bytes, client: ActionsClient, head: RayHead, tmp_path: Path
) -> None:
    """The one of Ray takes any request: it is Ray's to judge."""
    async with (
        ray_worker(etcd, prefix, head, tmp_path / "ray"),
        fake_worker(etcd, prefix, tmp_path / "local") as local,
    ):
        await client.enqueue(task("a0", BASE))
        await eventually(lambda: local.attempts.begun == ["r1-a0"])
        await client.enqueue(for_ray("c1", "a0", cpus="5000"))
        await until(client, named("c1"), Phase.RUNNING)
        await client.enqueue(task("c2", BASE, parent="a0"))
        await eventually(lambda: local.attempts.begun == ["r1-a0", "r1-c2"])
        [job] = head.submitted
        assert job["metadata"]["job_name"] == "r1/c1"
        assert job["entrypoint_num_cpus"] == 5000
        write(job, "outputs.pb", b"")
        head.set("SUCCEEDED", driver_exit_code=0)
        assert (await until(client, named("c1"))).phase is Phase.SUCCEEDED


async def test_without_a_worker_of_ray_its_pool_waits_for_one(
    etcd: Etcd, prefix: bytes, client: ActionsClient, head: RayHead, tmp_path: Path
) -> None:
    async with fake_worker(etcd, prefix, tmp_path / "local", ttl=1):
        await client.enqueue(for_ray("a0"))
        action = await until(client, ROOT, Phase.WAITING_FOR_RESOURCES)
        assert any("--pool ray" in each.message for each in action.status.conditions)
        async with ray_worker(etcd, prefix, head, tmp_path / "ray"):
            await until(client, ROOT, Phase.RUNNING)


@pytest.mark.parametrize("pending", first_everyday([True, False]))
async def test_the_next_worker_follows_the_jobs_of_one_that_ended(
    etcd: Etcd,
    prefix: bytes,
    client: ActionsClient,
    head: RayHead,
    tmp_path: Path,
    pending: bool,
) -> None:
    """The job goes on without a worker, and its end is read without the first one's directory."""
    head.first_status = "PENDING" if pending else "RUNNING"
    phase = Phase.INITIALIZING if pending else Phase.RUNNING
    async with ray_worker(etcd, prefix, head, tmp_path / "a") as first:
        await client.enqueue(for_ray("a0"))
        await until(client, ROOT, phase)
        await eventually(lambda: bool(head.submitted))
        await first.executor.handover.drain(30.0)
    assert head.stopped == []
    write(head.submitted[0], "outputs.pb", b"")
    head.set("SUCCEEDED", driver_exit_code=0)
    async with ray_worker(etcd, prefix, head, tmp_path / "b"):
        action = await until(client, ROOT)
    assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 1)
    assert len(head.submitted) == 1


async def test_what_ray_does_not_know_any_more_is_followed_by_the_next_attempt(
    etcd: Etcd, prefix: bytes, client: ActionsClient, head: RayHead, tmp_path: Path
) -> None:
    """A process of the lost attempt may still write: the same one is never started again."""
    async with ray_worker(etcd, prefix, head, tmp_path / "a"):
        await client.enqueue(for_ray("a0"))
        await until(client, ROOT, Phase.RUNNING)
    head.jobs.clear()
    async with ray_worker(etcd, prefix, head, tmp_path / "b"):
        await eventually(lambda: len(head.submitted) == 2)
        action = await until(client, ROOT, Phase.RUNNING)
    first, second = (each["submission_id"] for each in head.submitted)
    assert (first[-2:], second[-2:]) == ("-1", "-2")
    assert [each.code for each in earlier_attempts(action)] == [WORKER_LOST]


async def test_while_the_head_does_not_answer_an_action_stays_queued_or_running(
    etcd: Etcd, prefix: bytes, client: ActionsClient, head: RayHead, tmp_path: Path
) -> None:
    is_away = False

    async def lose(request: HttpRequest) -> bytes | None:
        return answer(b"", "503 Service Unavailable") if is_away else None

    head.fault = lose
    async with ray_worker(etcd, prefix, head, tmp_path / "a"):
        await client.enqueue(for_ray("a0"))
        await until(client, ROOT, Phase.RUNNING)
    is_away = True
    async with ray_worker(etcd, prefix, head, tmp_path / "b") as worker:
        await client.enqueue(for_ray("c1", "a0"))
        await until(client, named("c1"), Phase.QUEUED)

        def parked() -> set[str]:
            found = worker.client.containment.parked
            return {each.identity for each in found if each.kind == "action"}

        await eventually(lambda: parked() == {"flyte/r1-a0", "flyte/r1-c1"})
        assert (await client.get_task_action(ROOT)).phase is Phase.RUNNING
        assert (await client.get_task_action(named("c1"))).phase is Phase.QUEUED
        is_away = False
        await until(client, named("c1"), Phase.RUNNING)
        assert len(head.submitted) == 2
