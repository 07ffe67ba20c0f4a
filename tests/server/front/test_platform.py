"""The services that say where, who and what: clusters, projects, users, images, triggers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from flyteidl2.app import app_payload_pb2
from flyteidl2.artifact import artifact_service_pb2
from flyteidl2.auth import auth_service_pb2, identity_pb2
from flyteidl2.cluster import payload_pb2
from flyteidl2.common import list_pb2
from flyteidl2.imagebuilder import definition_pb2
from flyteidl2.imagebuilder import payload_pb2 as images
from flyteidl2.project import project_service_pb2 as projects
from flyteidl2.secret import payload_pb2 as secrets
from flyteidl2.trigger import trigger_service_pb2 as triggers
from flyteidl2.workflow import run_logs_service_pb2 as logs
from flyteidl2.workflow import tracked_run_service_pb2 as tracked
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from etcd_actions import ActionsClient
from etcd_actions.images import Executing, ImageBuilds, StoredImage
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.project_service import ProjectSettings
from tests.server.clients import Failed
from tests.server.conftest import LOOPBACK
from tests.server.front.asking import Asker

pytestmark = pytest.mark.memory(jumps=False)

PROJECT = "flyteidl2.project.ProjectService"
CLUSTER = "flyteidl2.cluster.ClusterService"
IMAGE = "flyteidl2.imagebuilder.ImageService"
TRIGGER = "flyteidl2.trigger.TriggerService"
AUTH = "flyteidl2.auth.AuthMetadataService"
SECRET = "flyteidl2.secret.SecretService"


@asynccontextmanager
async def asker(client: ActionsClient, front: FrontDoor | None = None) -> AsyncIterator[Asker]:
    front = front or FrontDoor(client=client, keepalive=30)
    settings = ServerSettings(bind=LOOPBACK)
    async with open_actions_server(client, settings, front=front) as server:
        yield Asker(server.address)


async def listed(asker: Asker, request: projects.ListProjectsRequest) -> tuple[list[str], str]:
    answer = await asker.ask(PROJECT, "ListProjects", request, projects.ListProjectsResponse)
    return [each.id for each in answer.projects.projects], answer.projects.token


async def test_every_client_is_sent_back_here(client: ActionsClient) -> None:
    async with asker(client) as ask:
        request = payload_pb2.SelectClusterRequest(
            operation=payload_pb2.SelectClusterRequest.OPERATION_TAIL_LOGS
        )
        reply = payload_pb2.SelectClusterResponse
        assert await ask.ask(CLUSTER, "SelectCluster", request, reply) == reply()
        request.operation = payload_pb2.SelectClusterRequest.OPERATION_UPLOAD_TRIGGER
        with pytest.raises(Failed) as caught:
            await ask.ask(CLUSTER, "SelectCluster", request, reply)
        assert caught.value.code == "unimplemented"


async def test_every_project_exists_unless_settings_name_them(client: ActionsClient) -> None:
    get, got = projects.GetProjectRequest, projects.GetProjectResponse
    front = FrontDoor(client=client, keepalive=30, projects_with_runs=lambda: ["b", "a"])
    async with asker(client, front) as ask:
        answer = await ask.ask(PROJECT, "GetProject", get(id="new", org="127"), got)
        assert (answer.project.id, answer.project.org) == ("new", "127")
        domains = [each.id for each in answer.project.domains]
        assert domains == ["development", "staging", "production"]
        assert await listed(ask, projects.ListProjectsRequest()) == (["a", "b"], "")
        with pytest.raises(Failed, match="id: ") as caught:
            await ask.ask(PROJECT, "GetProject", get(), got)
        assert caught.value.code == "invalid_argument"
    settings = ProjectSettings(projects=("one", "two"), domains=("here",))
    front = FrontDoor(
        client=client, keepalive=30, projects=settings, projects_with_runs=lambda: ["b"]
    )
    async with asker(client, front) as ask:
        with pytest.raises(Failed, match=r"'new'.*one, two") as caught:
            await ask.ask(PROJECT, "GetProject", get(id="new"), got)
        assert caught.value.code == "not_found"
        answer = await ask.ask(PROJECT, "GetProject", get(id="two"), got)
        assert [each.id for each in answer.project.domains] == ["here"]
        assert await listed(ask, projects.ListProjectsRequest()) == (["one", "two"], "")


async def test_projects_are_filtered_sorted_and_paged(client: ActionsClient) -> None:
    names = [f"p{number}" for number in range(7)]
    front = FrontDoor(client=client, keepalive=30, projects_with_runs=lambda: names)
    ask_for = projects.ListProjectsRequest
    async with asker(client, front) as ask:
        down = list_pb2.Sort(key="created_at", direction=list_pb2.Sort.DESCENDING)
        up = list_pb2.Sort(key="created_at", direction=list_pb2.Sort.ASCENDING)
        for sort, wanted in ((up, names), (down, names[::-1]), (None, names)):
            found: list[str] = []
            token = ""
            while True:
                page, token = await listed(ask, ask_for(limit=3, token=token, sort_by=sort))
                assert len(page) <= 3
                found += page
                if not token:
                    break
            assert found == wanted
        for filters, wanted in (
            ("eq(state, 0)", names),
            ("eq(state, 1)", []),
            ("eq(id, p3)+eq(state, 0)", ["p3"]),
            ("value_in(name, p1;p2;q)", ["p1", "p2"]),
            ("contains(name,6)", ["p6"]),
            ("ne(name,p0)+ne(name,p1)", names[2:]),
        ):
            assert (await listed(ask, ask_for(filters=filters)))[0] == wanted
        for request, field in (
            (ask_for(filters="like(id, a)"), "filters"),
            (ask_for(filters="eq(color, a)"), "filters"),
            (ask_for(sort_by=list_pb2.Sort(key="color")), "sort_by.key"),
        ):
            with pytest.raises(Failed, match=f"{field}: ") as caught:
                await listed(ask, request)
            assert caught.value.code == "invalid_argument"


async def test_without_tokens_everybody_is_anonymous(client: ActionsClient) -> None:
    async with asker(client) as ask:
        answer = await ask.ask(
            "flyteidl2.auth.IdentityService",
            "UserInfo",
            identity_pb2.UserInfoRequest(),
            identity_pb2.UserInfoResponse,
        )
        assert answer.subject == "anonymous"
        assert "projects" not in answer.additional_claims


async def test_images_are_there_unless_somebody_knows_better(client: ActionsClient) -> None:
    def request(name: str) -> images.GetImageRequest:
        return images.GetImageRequest(id=definition_pb2.ImageIdentifier(name=name))

    async def nothing(uri: str, most: int) -> bytes:
        raise AssertionError(uri)

    async def never(uri: str) -> bool:
        raise AssertionError(uri)

    builds = ImageBuilds(client.images, nothing, never, Executing("3.11", has_uv=False))
    spec = definition_pb2.ImageSpec(base_image="python:3.11").SerializeToString()
    built = await client.images.put(StoredImage(name="built:1", spec=spec))
    with capture_logs() as lines:
        async with asker(client) as ask:
            for name in ("x:1", "y:1"):
                answer = await ask.ask(IMAGE, "GetImage", request(name), images.GetImageResponse)
                assert answer.image.fqin == name
    # A task whose packages are missing fails at their import: the log has the reason, once.
    (line,) = (each for each in lines if each["event"] == "images_not_built")
    assert "--executor local or ray" in line["remedy"]
    async with asker(client, FrontDoor(client=client, keepalive=30, builds=builds)) as ask:
        answer = await ask.ask(IMAGE, "GetImage", request("built:1"), images.GetImageResponse)
        assert answer.image.fqin == str(built)
        for name, code in (("x:1", "not_found"), ("", "invalid_argument")):
            with pytest.raises(Failed) as caught:
                await ask.ask(IMAGE, "GetImage", request(name), images.GetImageResponse)
            assert caught.value.code == code


async def test_there_are_no_triggers_and_no_apps(client: ActionsClient) -> None:
    async with asker(client) as ask:
        request, reply = triggers.ListTriggersRequest(), triggers.ListTriggersResponse
        assert await ask.ask(TRIGGER, "ListTriggers", request, reply) == reply()
        apps, none = app_payload_pb2.ListRequest(), app_payload_pb2.ListResponse
        assert await ask.ask("flyteidl2.app.AppService", "List", apps, none) == none()
        with pytest.raises(Failed, match=r"scheduler.*deployed-task") as caught:
            await ask.ask(
                TRIGGER,
                "DeployTrigger",
                triggers.DeployTriggerRequest(),
                triggers.DeployTriggerResponse,
            )
        assert caught.value.code == "unimplemented"


async def test_what_is_not_served_says_what_to_use(client: ActionsClient) -> None:
    async with asker(client) as ask:
        for service, method, request, word in (
            (SECRET, "ListSecrets", secrets.ListSecretsRequest(), "local executor"),
            (
                "flyteidl2.artifact.ArtifactService",
                "ListArtifacts",
                artifact_service_pb2.ListArtifactsRequest(),
                "outputs",
            ),
            (
                "flyteidl2.workflow.TrackedRunService",
                "CreateRun",
                tracked.CreateTrackedRunRequest(),
                "local_tracked",
            ),
            (AUTH, "GetOAuth2Metadata", auth_service_pb2.GetOAuth2MetadataRequest(), "External"),
        ):
            with pytest.raises(Failed, match=word) as caught:
                await ask.ask(service, method, request, type(request))
            assert caught.value.code == "unimplemented"
        with pytest.raises(Failed, match=r"RunLogsService\.TailLogs: .*no logs") as caught:
            await ask.first(
                "flyteidl2.workflow.RunLogsService",
                "TailLogs",
                logs.TailLogsRequest(),
                logs.TailLogsResponse,
            )
        assert caught.value.code == "unimplemented"


async def test_a_service_that_only_refuses_is_not_served(client: ActionsClient) -> None:
    async with asker(client) as ask:
        for service, served in ((SECRET, False), (PROJECT, True)):
            request = health_pb2.HealthCheckRequest(service=service)
            check = ("grpc.health.v1.Health", "Check", request, health_pb2.HealthCheckResponse)
            if served:
                assert (await ask.ask(*check)).status == health_pb2.HealthCheckResponse.SERVING
            else:
                with pytest.raises(Failed, match="not served"):
                    await ask.ask(*check)
