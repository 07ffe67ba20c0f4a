"""What a task of a worker without etcd's credentials gets for what needs more than actions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from flyteidl2.dataproxy import dataproxy_service_pb2 as data_pb
from flyteidl2.project import project_service_pb2 as project_pb
from flyteidl2.workflow import run_service_pb2 as run_pb
from google.protobuf.message import Message

from etcd_actions import open_actions_client
from etcd_actions.blobs import open_blob_store
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from tests.server.clients import Failed
from tests.server.conftest import LOOPBACK
from tests.server.front.asking import Asker
from tests.server.front.run_calls import create, run_id
from tests.server.workers.conftest import Site
from tests.support.flyte_services import RUNS

DATA = "flyteidl2.dataproxy.DataProxyService"
PROJECTS = "flyteidl2.project.ProjectService"


@pytest.fixture
async def task(site: Site, tmp_path: Path) -> AsyncIterator[Asker]:
    """A task of a worker, at the worker's own listener."""
    async with (
        site.connect(site.server) as etcd,
        open_actions_client(etcd, prefix=site.keys.prefix) as client,
    ):
        blobs = open_blob_store(tmp_path / "blobs")
        front = FrontDoor(client=client, keepalive=30, blobs=blobs, reads_local_files=True)
        served = ServerSettings(bind=LOOPBACK)
        async with open_actions_server(client, served, front=front) as server:
            yield Asker(server.address)


@pytest.mark.parametrize(
    ("service", "method", "request_", "reply"),
    [
        (RUNS, "CreateRun", create("r1"), run_pb.CreateRunResponse),
        (
            DATA,
            "CreateUploadLocation",
            data_pb.CreateUploadLocationRequest(project="p", domain="d", filename="f"),
            data_pb.CreateUploadLocationResponse,
        ),
        (
            DATA,
            "UploadInputs",
            data_pb.UploadInputsRequest(run_id=run_id("r1")),
            data_pb.UploadInputsResponse,
        ),
        (
            PROJECTS,
            "CreateProject",
            project_pb.CreateProjectRequest(project=project_pb.Project(id="p2")),
            project_pb.CreateProjectResponse,
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_it_is_refused_at_once_and_for_good(
    task: Asker,
    tmp_path: Path,
    service: str,
    method: str,
    request_: Message,
    reply: type[Message],
) -> None:
    """The SDK would repeat UNAVAILABLE for long."""
    with pytest.raises(Failed) as raised, trio.fail_after(10):
        await task.ask(service, method, request_, reply)
    assert raised.value.code == "permission_denied"
    assert "a worker may not" in raised.value.message
    assert "run the task on a worker with --endpoints" in raised.value.message
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


async def test_its_own_run_is_read(task: Asker, site: Site) -> None:
    request = run_pb.GetRunDetailsRequest(run_id=run_id("r1"))
    with pytest.raises(Failed) as raised:
        await task.ask(RUNS, "GetRunDetails", request, run_pb.GetRunDetailsResponse)
    assert raised.value.code == "not_found"
