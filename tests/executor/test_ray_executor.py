"""The executor with a Ray head whose jobs the test runs: actions, from their objects to the end."""

from __future__ import annotations

import secrets
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument
from flyteidl2.core.tasks_pb2 import Resources
from flyteidl2.imagebuilder.definition_pb2 import (
    Env,
    ImageSpec,
    Layer,
    PipOptions,
    PipPackages,
    Requirements,
)

from etcd_actions import ActionsClient, Phase
from etcd_actions.executor import ExecutorSettings, RaySettings, open_executor
from etcd_actions.images import StoredImage
from tests.executor.tasks import ROOT, named, until
from tests.support import flyte
from tests.support.http_server import HttpRequest, answer
from tests.support.ray_head import RayHead
from tests.support.waiting import eventually


@pytest.fixture
def base() -> str:
    """Where outputs are: no directory of this machine."""
    return f"memory://bucket/{secrets.token_hex(4)}"


@asynccontextmanager
async def executing(client: ActionsClient, head: RayHead, directory: Path) -> AsyncIterator[None]:
    settings = ExecutorSettings(
        python=Path(sys.executable),
        service="10.0.0.5:8092",
        state_dir=directory / "state",
        claim_ttl=5,
        ray=RaySettings(address=head.address),
    )
    with trio.fail_after(60):
        async with open_executor(client, settings):
            yield


def task(
    name: str, base: str, change: Callable[[Action], None] = lambda action: None, parent: str = ""
) -> Action:
    """A task of the SDK."""
    action = flyte.task(named(name), parent)
    action.run_output_base = base
    template = action.task.spec.task_template
    template.container.args[:] = ["a0", "--outputs-path", "{{.outputPrefix}}"]
    template.metadata.retries.retries = 1
    change(action)
    return action


def write(job: dict[str, Any], name: str, data: bytes) -> None:
    """Write a file where the job's command has its outputs."""
    place = shlex.split(job["entrypoint"])[-1]
    assert place.startswith("memory://bucket/")
    fsspec.filesystem("memory").pipe_file(f"{place}/{name}", data)


async def test_an_action_becomes_a_job_and_its_files_the_outcome(
    client: ActionsClient, head: RayHead, base: str, tmp_path: Path
) -> None:
    def request(action: Action) -> None:
        resources = action.task.spec.task_template.container.resources
        resources.requests.add(name=Resources.CPU, value="500m")
        resources.limits.add(name=Resources.MEMORY, value="1Gi")

    async with executing(client, head, tmp_path):
        await client.enqueue(task("a0", base, request))
        await eventually(lambda: bool(head.jobs))
        [job] = head.submitted
        variables = job["runtime_env"]["env_vars"]
        # Nothing of this machine, and the service as the nodes reach it.
        assert "HOME" not in variables
        assert "PATH" not in variables
        assert variables["_U_EP_OVERRIDE"] == "10.0.0.5:8092"
        assert (job["entrypoint_num_cpus"], job["entrypoint_memory"]) == (0.5, 1024**3)
        await until(client, ROOT, Phase.RUNNING)
        error = ContainerError(code="Odd", message="no", kind=ContainerError.RECOVERABLE)
        write(job, "error.pb", ErrorDocument(error=error).SerializeToString())
        head.set("SUCCEEDED", driver_exit_code=0)
        await eventually(lambda: len(head.submitted) == 2)
        second = head.submitted[1]
        assert second["submission_id"] == job["submission_id"][:-1] + "2"
        write(second, "outputs.pb", b"")
        head.set("SUCCEEDED", driver_exit_code=0)
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED


async def test_a_job_that_waits_in_ray_is_queued_and_can_be_aborted(
    client: ActionsClient, head: RayHead, base: str, tmp_path: Path
) -> None:
    head.first_status = "PENDING"
    async with executing(client, head, tmp_path):
        await client.enqueue(task("a0", base))
        await eventually(lambda: bool(head.jobs))
        await until(client, ROOT, Phase.QUEUED)
        await client.abort_action(ROOT, "enough")
        await eventually(lambda: head.stopped == list(head.jobs))
        assert (await client.get_task_action(ROOT)).phase is Phase.ABORTED


async def test_a_job_that_vanished_is_an_attempt_that_failed(
    client: ActionsClient, head: RayHead, base: str, tmp_path: Path
) -> None:
    async with executing(client, head, tmp_path):
        await client.enqueue(task("a0", base))
        for number in (1, 2):
            await eventually(lambda: len(head.submitted) == number)  # noqa: B023
            head.jobs.clear()
        root = await until(client, ROOT)
    assert root.phase is Phase.FAILED
    assert root.status.error_state is not None
    assert root.status.error_state.kind == "SYSTEM"
    assert root.status.error_state.message.startswith("Ray does not know the job any more")


async def test_packages_of_images_are_rays_and_the_rest_is_refused(
    client: ActionsClient, head: RayHead, base: str, tmp_path: Path
) -> None:
    options = PipOptions(index_url="https://index.example/simple", pre=True)
    layers = (
        Layer(pip_packages=PipPackages(packages=["pandas>=2", "rich"], options=options)),
        Layer(env=Env(env_variables={"COLOUR": "red"})),
    )
    refused = (Layer(requirements=Requirements(file="requirements.txt")),)
    references = [
        await client.images.put(
            StoredImage(name=name, spec=ImageSpec(layers=layers).SerializeToString())
        )
        for name, layers in (("good:1", layers), ("bad:1", refused))
    ]

    def use(number: int) -> Callable[[Action], None]:
        def change(action: Action) -> None:
            action.task.spec.task_template.container.image = str(references[number])

        return change

    async with executing(client, head, tmp_path):
        await client.enqueue(task("a0", base, use(0)))
        await eventually(lambda: bool(head.jobs))
        await client.enqueue(task("c1", base, use(1), parent="a0"))
        bad = await until(client, named("c1"))
    [job] = head.submitted
    assert job["runtime_env"]["pip"] == [
        "--index-url https://index.example/simple",
        "--pre",
        "pandas>=2",
        "rich",
    ]
    assert job["runtime_env"]["env_vars"]["COLOUR"] == "red"
    assert bad.status.error_state is not None
    assert bad.status.error_state.code == "ImageNotAvailable"
    assert "with_pip_packages() alone" in bad.status.error_state.message


async def test_an_abort_stops_a_job_whose_submission_was_not_answered(
    client: ActionsClient, head: RayHead, base: str, tmp_path: Path
) -> None:
    is_away = True

    async def lose(request: HttpRequest) -> bytes | None:
        if not is_away or (request.method == "GET" and not head.jobs):
            return None
        if request.method == "POST" and not head.jobs:
            head.answer(request)
            return b""
        return answer(b"", "503 Service Unavailable")

    head.fault = lose
    async with executing(client, head, tmp_path):
        await client.enqueue(task("a0", base))
        await eventually(lambda: bool(head.jobs))
        parked = client.containment
        await eventually(lambda: {each.kind for each in parked.parked} == {"action", "ray"})
        await client.abort_action(ROOT, "enough")
        await eventually(lambda: {each.kind for each in parked.parked} == {"ray"})
        is_away = False
        await eventually(lambda: head.stopped == list(head.jobs))
    assert len(head.submitted) == 1


async def test_another_executor_leaves_the_outputs_of_a_job_that_has_ended(
    client: ActionsClient, head: RayHead, base: str, tmp_path: Path
) -> None:
    """It has another state directory, so it finds the job by its name alone."""
    async with executing(client, head, tmp_path / "a"):
        await client.enqueue(task("a0", base))
        await until(client, ROOT, Phase.RUNNING)
    [job] = head.submitted
    write(job, "outputs.pb", b"")
    head.set("SUCCEEDED", driver_exit_code=0)
    async with executing(client, head, tmp_path / "b"):
        root = await until(client, ROOT)
    assert (root.phase, root.status.attempts) == (Phase.SUCCEEDED, 1)
    assert len(head.submitted) == 1
