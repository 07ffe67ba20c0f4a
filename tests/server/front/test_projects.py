"""Projects that clients create and change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from flyteidl2.common import list_pb2
from flyteidl2.project import project_service_pb2 as pb

from etcd_actions import ActionsClient
from etcd_actions.etcd.api import Etcd
from etcd_actions.registry import projects as stored_projects
from etcd_actions.registry.projects import Projects, project_key
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.project_service import ProjectSettings
from tests.server.clients import Failed
from tests.server.conftest import LOOPBACK
from tests.server.front.asking import Asker

pytestmark = pytest.mark.memory(jumps=False)

SERVICE = "flyteidl2.project.ProjectService"
ACTIVE, ARCHIVED = pb.PROJECT_STATE_ACTIVE, pb.PROJECT_STATE_ARCHIVED


class Door:
    """Asks for projects as the SDK does."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    async def create(self, project: pb.Project) -> None:
        request = pb.CreateProjectRequest(project=project)
        await self._asker.ask(SERVICE, "CreateProject", request, pb.CreateProjectResponse)

    async def update(self, project: pb.Project) -> None:
        request = pb.UpdateProjectRequest(project=project)
        await self._asker.ask(SERVICE, "UpdateProject", request, pb.UpdateProjectResponse)

    async def get(self, project: str) -> pb.Project:
        request = pb.GetProjectRequest(id=project)
        answer = await self._asker.ask(SERVICE, "GetProject", request, pb.GetProjectResponse)
        return answer.project

    async def ids(self, request: pb.ListProjectsRequest | None = None) -> list[str]:
        """All pages."""
        request = request or pb.ListProjectsRequest()
        found: list[str] = []
        while True:
            answer = await self._asker.ask(
                SERVICE, "ListProjects", request, pb.ListProjectsResponse
            )
            found += [each.id for each in answer.projects.projects]
            if not answer.projects.token:
                return found
            request.token = answer.projects.token


@asynccontextmanager
async def opened(client: ActionsClient, front: FrontDoor | None = None) -> AsyncIterator[Door]:
    front = front or FrontDoor(client=client, keepalive=30)
    async with open_actions_server(client, ServerSettings(bind=LOOPBACK), front=front) as server:
        yield Door(Asker(server.address))


def a_project(id_: str = "p", **fields: object) -> pb.Project:
    project = pb.Project(id=id_, **fields)
    project.labels.values["team"] = "vision"
    return project


async def refused(code: str, call: Coroutine[object, object, object], match: str = ".") -> None:
    with pytest.raises(Failed, match=match) as caught:
        await call
    assert caught.value.code == code


async def test_what_is_created_is_listed_and_changed(client: ActionsClient) -> None:
    front = FrontDoor(client=client, keepalive=30, projects_with_runs=lambda: ["used"])
    async with opened(client, front) as door:
        await door.create(a_project(name="A project", description="To try it"))
        found = await door.get("p")
        assert (found.name, found.description, found.state) == ("A project", "To try it", ACTIVE)
        assert dict(found.labels.values) == {"team": "vision"}
        assert [each.id for each in found.domains] == ["development", "staging", "production"]
        assert await door.ids() == ["p", "used"]
        await refused("already_exists", door.create(a_project()), "'p' exists")

        del found.domains[:]
        found.state = ARCHIVED
        await door.update(found)
        assert (await door.get("p")).description == "To try it"
        for state, ids in ((ACTIVE, ["used"]), (ARCHIVED, ["p"])):
            assert await door.ids(pb.ListProjectsRequest(filters=f"eq(state, {state})")) == ids
        assert await door.ids(pb.ListProjectsRequest(filters="contains(name, A p)")) == ["p"]
        # What has runs, or nothing at all, need not have been created.
        await door.update(pb.Project(id="used", description="It has runs"))
        used = await door.get("used")
        assert (used.name, used.description) == ("used", "It has runs")


async def test_projects_are_sorted_by_their_times(client: ActionsClient) -> None:
    front = FrontDoor(client=client, keepalive=30, projects_with_runs=lambda: ["never-created"])
    down, up = list_pb2.Sort.DESCENDING, list_pb2.Sort.ASCENDING
    async with opened(client, front) as door:
        for name, called in (("c", "x"), ("a", "z"), ("b", "y")):
            await door.create(pb.Project(id=name, name=called))
        await door.update(pb.Project(id="c", name="x"))
        for key, direction, wanted in (
            ("created_at", up, ["never-created", "c", "a", "b"]),
            ("created_at", down, ["b", "a", "c", "never-created"]),
            ("updated_at", down, ["c", "b", "a", "never-created"]),
            ("name", up, ["never-created", "c", "b", "a"]),
            ("id", down, ["never-created", "c", "b", "a"]),
        ):
            sort = list_pb2.Sort(key=key, direction=direction)
            for limit in (1, 3, 100):
                request = pb.ListProjectsRequest(limit=limit, sort_by=sort)
                assert await door.ids(request) == wanted


async def test_what_no_run_could_name_is_refused(client: ActionsClient) -> None:
    async with opened(client) as door:
        for name in ("", ".", "..", "a/b", "a\nb", "\0", "p" * 64):
            for call in (door.create, door.update):
                await refused("invalid_argument", call(pb.Project(id=name)), r"project\.id: ")
        large = pb.Project(id="p", description="d" * 20_000)
        await refused("invalid_argument", door.create(large), "project: .* at most 16384")
        system = pb.Project(id="p", state=pb.PROJECT_STATE_SYSTEM_GENERATED)
        await refused("invalid_argument", door.update(system), r"project\.state: ")
        await refused("invalid_argument", door.create(pb.Project(id="p", state=ARCHIVED)))
        assert await door.ids() == []
        await door.create(pb.Project(id="p%2F ä"))
        assert await door.ids() == ["p%2F ä"]


async def test_no_more_are_stored_than_a_list_can_show(
    client: ActionsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_projects, "MOST_PROJECTS", 2)
    async with opened(client) as door:
        for name in ("a", "b"):
            await door.create(pb.Project(id=name))
        await refused("failed_precondition", door.create(pb.Project(id="c")), "2 may be")
        await refused("failed_precondition", door.update(pb.Project(id="c")), "2 may be")
        await door.update(pb.Project(id="b", description="it is there"))
        assert await door.ids() == ["a", "b"]


async def test_what_cannot_be_read_is_not_replaced(client: ActionsClient, etcd: Etcd) -> None:
    async with opened(client) as door:
        await door.create(pb.Project(id="good"))
        for name, value in (
            ("bad", b"garbage"),
            ("later", b'{"form":2,"id":"later","created":"x","updated":"x"}'),
            (
                "other",
                b'{"form":1,"id":"o","created":"2026-01-01T00:00:00Z",'
                b'"updated":"2026-01-01T00:00:00Z"}',
            ),
        ):
            await etcd.put(project_key(client.keys.projects, name), value)
            await refused("data_loss", door.get(name))
            await refused("data_loss", door.update(pb.Project(id=name)))
            await refused("already_exists", door.create(pb.Project(id=name)))
        assert await door.ids() == ["good"]


async def test_changes_at_the_same_time_keep_when_it_was_created(client: ActionsClient) -> None:
    projects = Projects(client.store, client.keys)
    await projects.create("p", by="alice")
    created = await projects.get("p")
    assert created is not None
    async with trio.open_nursery() as nursery:
        for number in range(8):

            async def change(number: int = number) -> None:
                await projects.update(
                    "p", name=f"n{number}", description="", labels={}, is_archived=False, by="bob"
                )

            nursery.start_soon(change)
    found = await projects.get("p")
    assert found is not None
    assert (found.created, found.created_by) == (created.created, "alice")
    assert found.updated >= created.updated
    assert found.name.startswith("n")


async def test_a_token_creates_its_projects_alone(client: ActionsClient, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("of-a name=alice projects=a\neverything name=root\n")
    settings = ServerSettings(bind=LOOPBACK, token_file=tokens)
    front = FrontDoor(client=client, keepalive=30)
    async with open_actions_server(client, settings, front=front) as server:
        alice, root = (Door(Asker(server.address, each)) for each in ("of-a", "everything"))
        await alice.create(pb.Project(id="a"))
        await root.create(pb.Project(id="b"))
        await refused("permission_denied", alice.create(pb.Project(id="c")))
        await refused("permission_denied", alice.create(pb.Project()))
        await refused("permission_denied", alice.update(pb.Project(id="b")))
        await refused("permission_denied", alice.get("b"))
        assert (await alice.ids(), await root.ids()) == (["a"], ["a", "b"])
    stored = await Projects(client.store, client.keys).all()
    assert {name: each.created_by for name, each in stored.items()} == {"a": "alice", "b": "root"}


async def test_settings_say_which_projects_can_be_created(client: ActionsClient) -> None:
    front = FrontDoor(client=client, keepalive=30, projects=ProjectSettings(projects=("a", "b")))
    async with opened(client, front) as door:
        await door.create(pb.Project(id="a", description="told by a client"))
        await refused("not_found", door.create(pb.Project(id="c")), "no project 'c': .* a, b")
        await refused("not_found", door.update(pb.Project(id="c")))
        assert await door.ids() == ["a", "b"]
        assert (await door.get("a")).description == "told by a client"
