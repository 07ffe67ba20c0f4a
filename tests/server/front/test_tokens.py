"""Whose a token is, and what it may use: over every method that is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from connectrpc.code import Code
from connectrpc.method import StreamType
from flyteidl2.actions import actions_service_pb2 as actions
from flyteidl2.auth import auth_service_pb2, identity_pb2
from flyteidl2.common import identifier_pb2
from flyteidl2.project import project_service_pb2 as projects
from flyteidl2.task import task_service_pb2 as tasks
from flyteidl2.trigger import trigger_service_pb2 as triggers
from flyteidl2.workflow import run_service_pb2 as runs
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from etcd_actions import ActionId, ActionsClient
from etcd_actions._internal.containment import Containment
from etcd_actions.blobs import open_blob_store
from etcd_actions.errors import ConfigError
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.caller import CALLER, Caller
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.attempt_logs import LogSources
from etcd_actions.server.front.project_service import ProjectSettings
from etcd_actions.server.methods import Methods, method_info
from etcd_actions.server.project_access import (
    WITHOUT_A_PROJECT,
    ProjectAccess,
    has_rule,
    named_projects,
)
from etcd_actions.server.tokens import Tokens
from etcd_actions.web import Bind
from tests.server.clients import Failed
from tests.server.conftest import LOOPBACK
from tests.server.front.asking import Asker
from tests.server.front.conftest import Lists
from tests.support import flyte

pytestmark = pytest.mark.memory(jumps=False)

IDENTITY = "flyteidl2.auth.IdentityService"
PROJECT = "flyteidl2.project.ProjectService"
ACTIONS = "flyteidl2.actions.ActionsService"
LINES = """\
# Who may use what.
everything
of-alice name=alice projects=a,b
of-bob   name=bob@example.org
of-a     projects=a
"""


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(LINES)
    return path


def leaves(descriptor: Descriptor, above: tuple[str, ...] = ()) -> Iterator[list[FieldDescriptor]]:
    """The ways to the fields of a request that are called project, or identify one."""
    if descriptor.full_name in above or descriptor.full_name.startswith(
        ("flyteidl2.core.", "google.", "flyteidl2.task.TaskSpec")
    ):
        return
    for field in descriptor.fields:
        if field.message_type is None:
            identifies = field.name == "name" and descriptor.name == "ProjectIdentifier"
            identifies |= field.name == "id" and descriptor.name in ("GetProjectRequest", "Project")
            if identifies or (field.name == "project" and field.type == field.TYPE_STRING):
                yield [field]
        elif not field.message_type.GetOptions().map_entry:
            for rest in leaves(field.message_type, (*above, descriptor.full_name)):
                yield [field, *rest]


def fill(message: Message, way: list[FieldDescriptor], project: str) -> None:
    *inner, last = way
    for field in inner:
        inside = getattr(message, field.name)
        message = inside.add() if field.is_repeated else inside
        message.SetInParent()
    setattr(message, last.name, project)


async def test_no_method_that_is_served_lets_a_token_at_another_project(
    client: ActionsClient, lists: Lists, tokens: Path, tmp_path: Path
) -> None:
    settings = ServerSettings(bind=LOOPBACK, token_file=tokens)
    tried = 0
    front = FrontDoor(
        client=client,
        keepalive=30,
        blobs=open_blob_store(tmp_path / "blobs"),
        index=lists.index,
        registry=lists.registry,
        logs=LogSources(client=client),
    )
    async with open_actions_server(client, settings, front=front) as server:
        ask = Asker(server.address, "of-alice")
        for path, method in server.methods.items():
            name = path.removeprefix("/")
            ways = list(leaves(method.input.DESCRIPTOR))
            assert has_rule(name, method.input.DESCRIPTOR)
            assert ways or name in WITHOUT_A_PROJECT, f"{name} has no rule"
            if method.stream_type is StreamType.BIDI_STREAM:
                continue
            go = ask.ask if method.stream_type is StreamType.UNARY else ask.first
            for way in ways:
                request = method.input()
                fill(request, way, "c")
                with pytest.raises(Failed, match="the token of alice may not use project 'c'") as e:
                    await go(method.service_name, method.name, request, method.output)
                assert e.value.code == "permission_denied", (name, way)
                tried += 1
            if name not in WITHOUT_A_PROJECT:
                with pytest.raises(Failed, match="names n") as e:
                    await go(method.service_name, method.name, method.input(), method.output)
                assert e.value.code == "permission_denied", name
    assert tried > 40


def test_a_method_without_a_rule_cannot_be_served() -> None:
    containment = Containment()
    methods = Methods(1, containment, ProjectAccess())

    async def answer(_: identity_pb2.UserInfoRequest) -> identity_pb2.UserInfoResponse:
        raise AssertionError("it is served")

    (described,) = identity_pb2.DESCRIPTOR.services_by_name["IdentityService"].methods
    methods.add_method(method_info(described), answer)
    with pytest.raises(ValueError, match=r"Other/UserInfo names no project"):
        methods.add_method(method_info(described, "Other"), answer)


def test_each_identifier_of_a_request_counts() -> None:
    run = identifier_pb2.RunIdentifier(project="b")
    request = runs.CreateRunRequest(run_id=identifier_pb2.RunIdentifier(project="a"))
    request.task_spec.task_template.id.project = "label"
    request.run_spec.related_to.CopyFrom(run)
    assert list(named_projects(request)) == [
        ("run_id.project", "a"),
        ("run_spec.related_to.project", "b"),
    ]
    names = [identifier_pb2.TriggerName(project="a"), identifier_pb2.TriggerName(name="x")]
    assert list(named_projects(triggers.DeleteTriggersRequest(names=names))) == [
        ("names[0].project", "a"),
        ("names[1].project", ""),
    ]


@pytest.mark.parametrize("known", [None, ("a",)])
def test_each_token_may_read_and_run_the_task_that_builds_images(
    known: tuple[str, ...] | None,
) -> None:
    access = ProjectAccess(known)
    own, shared = ({"project": each} for each in ("a", "system"))
    caller = CALLER.set(Caller("http://here", projects=frozenset("a")))
    try:
        for method, request in (
            ("task.TaskService/GetTaskDetails", tasks.GetTaskDetailsRequest(task_id=shared)),
            ("task.TaskService/ListTasks", tasks.ListTasksRequest(project_id={"name": "system"})),
            ("workflow.RunService/CreateRun", runs.CreateRunRequest(run_id=own, task_id=shared)),
        ):
            access.check(f"flyteidl2.{method}", request)
        for method, request in (
            ("task.TaskService/DeployTask", tasks.DeployTaskRequest(task_id=shared)),
            ("task.TaskService/ListTasks", tasks.ListTasksRequest(org="o")),
            ("task.TaskService/ListTasks", tasks.ListTasksRequest()),
            ("workflow.RunService/CreateRun", runs.CreateRunRequest(run_id=shared, task_id=own)),
            ("workflow.RunService/ListRuns", runs.ListRunsRequest(project_id={"name": "system"})),
        ):
            with pytest.raises(Refusal) as caught:
                access.check(f"flyteidl2.{method}", request)
            assert caught.value.code is Code.PERMISSION_DENIED
    finally:
        CALLER.reset(caller)


async def test_a_token_says_who_asks(client: ActionsClient, tokens: Path) -> None:
    who = (IDENTITY, "UserInfo", identity_pb2.UserInfoRequest(), identity_pb2.UserInfoResponse)
    lists = (PROJECT, "ListProjects", projects.ListProjectsRequest(), projects.ListProjectsResponse)
    front = FrontDoor(client=client, keepalive=30, projects_with_runs=lambda: ["b", "c"])
    settings = ServerSettings(bind=LOOPBACK, token_file=tokens)
    async with open_actions_server(client, settings, front=front) as server:
        for token, subject, shown in (
            ("everything", "anonymous", ["b", "c"]),
            ("of-alice", "alice", ["a", "b"]),
            ("of-bob", "bob@example.org", ["b", "c"]),
            ("of-a", "anonymous", ["a"]),
        ):
            ask = Asker(server.address, token)
            assert (await ask.ask(*who)).subject == subject
            answer = await ask.ask(*lists)
            assert [each.id for each in answer.projects.projects] == shown
        answer = await Asker(server.address, "of-alice").ask(*who)
        assert list(answer.additional_claims["projects"]) == ["a", "b"]


async def test_a_token_uses_its_projects(client: ActionsClient, tokens: Path) -> None:
    settings = ServerSettings(bind=LOOPBACK, token_file=tokens)
    async with open_actions_server(
        client, settings, front=FrontDoor(client=client, keepalive=30)
    ) as server:
        for token, project, code in (
            ("of-alice", "a", ""),
            ("of-alice", "c", "permission_denied"),
            ("of-bob", "c", ""),
            ("everything", "d", ""),
        ):
            root = ActionId(project, "d", f"r-{project}", "a0", "o")
            request = actions.EnqueueRequest(action=flyte.task(root))
            call = (ACTIONS, "Enqueue", request, actions.EnqueueResponse)
            if code:
                with pytest.raises(Failed) as caught:
                    await Asker(server.address, token).ask(*call)
                assert caught.value.code == code
            else:
                await Asker(server.address, token).ask(*call)


async def test_settings_name_the_projects_that_there_are(client: ActionsClient) -> None:
    settings = ServerSettings(bind=LOOPBACK, projects=("a", "b"))
    front = FrontDoor(client=client, keepalive=30, projects=ProjectSettings(projects=("a", "b")))
    async with open_actions_server(client, settings, front=front) as server:
        ask = Asker(server.address)
        for project in ("a", "typo"):
            root = ActionId(project, "d", f"r-{project}", "a0", "o")
            request = actions.EnqueueRequest(action=flyte.task(root))
            call = (ACTIONS, "Enqueue", request, actions.EnqueueResponse)
            if project == "a":
                await ask.ask(*call)
                continue
            with pytest.raises(
                Failed, match=r"run\.project: there is no project 'typo': .* a, b"
            ) as caught:
                await ask.ask(*call)
            assert caught.value.code == "not_found"


async def test_where_a_token_is_demanded_the_refusal_says_how(
    client: ActionsClient, tokens: Path
) -> None:
    settings = ServerSettings(bind=LOOPBACK, token_file=tokens)
    who = (IDENTITY, "UserInfo", identity_pb2.UserInfoRequest(), identity_pb2.UserInfoResponse)
    async with open_actions_server(
        client, settings, front=FrontDoor(client=client, keepalive=30)
    ) as server:
        with pytest.raises(Failed, match=r"insecure=True.*https://.*ExternalCommand") as caught:
            await Asker(server.address).ask(*who)
        assert caught.value.code == "unauthenticated"
        for token in ("name=alice", "of-alice name=alice projects=a,b", "of", " "):
            with pytest.raises(Failed, match="not accepted") as caught:
                await Asker(server.address, token).ask(*who)
            assert caught.value.code == "unauthenticated"
        # Before a client logs in it has no token.
        health = health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
        await Asker(server.address).ask("grpc.health.v1.Health", "Check", *health)
        with pytest.raises(Failed, match="ExternalCommand") as caught:
            await Asker(server.address).ask(
                "flyteidl2.auth.AuthMetadataService",
                "GetPublicClientConfig",
                auth_service_pb2.GetPublicClientConfigRequest(),
                auth_service_pb2.GetPublicClientConfigResponse,
            )
        assert caught.value.code == "unimplemented"


async def test_tokens_in_clear_are_warned_of(client: ActionsClient, tokens: Path) -> None:
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        settings = ServerSettings(bind=Bind(host, 0), token_file=tokens)
        with capture_logs() as logs:
            async with open_actions_server(client, settings):
                pass
        events = [each["event"] for each in logs]
        assert ("tokens_in_clear" in events) is warned
        assert "anybody_may_enqueue" not in events


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("secret name=", "name= needs"),
        ("secret projects=", "projects= needs names"),
        ("secret projects=a,,b", "projects= needs names"),
        ("secret project=a", "project= is unknown"),
        ("secret name=a name=b", "name= is there twice"),
        ("secret alice projects=a", "'alice' is neither name=..."),
    ],
)
def test_an_unusable_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# tokens\n\nfine\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        Tokens(path)
    assert f"{path}, line 4: " in str(caught.value)
    assert why in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_token_in_two_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("secret name=a\nsecret name=b\n")
    with pytest.raises(ConfigError, match="two lines") as caught:
        Tokens(path)
    assert "secret" not in str(caught.value)


def test_an_unusable_change_leaves_those_that_were_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("one name=a projects=a\nwith spaces in it\n")
    tokens = Tokens(path)
    found = tokens.find("one")
    assert found is not None
    assert (found.subject, found.projects) == ("a", frozenset({"a"}))
    assert tokens.find("with spaces in it") is not None
    path.write_text("one name=a projects=\n")
    with capture_logs() as logs:
        assert tokens.find("one") == found
    assert [each["event"] for each in logs] == ["tokens_unreadable"]
    path.write_text("two name=b\n")
    assert tokens.find("one") is None
