"""A token that is for one project reaches nothing of another, however it asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from flyteidl2.actions import actions_service_pb2 as actions
from flyteidl2.common.run_pb2 import OffloadedInputData
from flyteidl2.core.literals_pb2 import Literal, Primitive, Scalar
from flyteidl2.dataproxy import dataproxy_service_pb2 as data
from flyteidl2.task import task_service_pb2 as tasks
from flyteidl2.task.common_pb2 import Inputs, NamedLiteral
from flyteidl2.task.run_pb2 import CACHE_LOOKUP_SCOPE_GLOBAL, CACHE_LOOKUP_SCOPE_PROJECT_DOMAIN
from flyteidl2.task.task_definition_pb2 import TaskIdentifier, TaskName
from flyteidl2.workflow import run_service_pb2 as runs

from etcd_actions import ActionId, ActionsClient
from etcd_actions.blobs import open_blob_store
from etcd_actions.model import ANNOTATION_CACHE_SCOPE
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from tests.server.clients import Failed
from tests.server.conftest import LOOPBACK
from tests.server.front.asking import Asker
from tests.server.front.conftest import Lists
from tests.server.front.run_calls import action_id, create, run_id
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.runs import record
from tests.support.waiting import eventually_holds

pytestmark = pytest.mark.memory(jumps=False)

RUNS = "flyteidl2.workflow.RunService"
DATA = "flyteidl2.dataproxy.DataProxyService"
ACTIONS = "flyteidl2.actions.ActionsService"
TASKS = "flyteidl2.task.TaskService"
SECRET = "what only b knows"


class Apart:
    """Clients of one server, each with a token."""

    def __init__(self, address: object, folder: Path) -> None:
        self.all = Asker(address, "of-all")
        self.a = Asker(address, "of-a")
        self.b = Asker(address, "of-b")
        self.folder = folder

    async def create(self, by: Asker, request: runs.CreateRunRequest) -> runs.CreateRunResponse:
        return await by.ask(RUNS, "CreateRun", request, runs.CreateRunResponse)

    async def inputs(self, by: Asker, project: str, run: str) -> data.GetActionDataResponse:
        request = data.GetActionDataRequest(action_id=action_id(run, project=project))
        return await by.ask(DATA, "GetActionData", request, data.GetActionDataResponse)


@pytest.fixture
async def apart(client: ActionsClient, lists: Lists, tmp_path: Path) -> AsyncIterator[Apart]:
    tokens, folder = tmp_path / "tokens", tmp_path / "blobs"
    tokens.write_text("of-all name=root\nof-a name=alice projects=a\nof-b name=bob projects=b\n")
    front = FrontDoor(
        client=client,
        keepalive=0.05,
        blobs=open_blob_store(folder),
        reads_local_files=True,
        index=lists.index,
        registry=lists.registry,
    )
    settings = ServerSettings(bind=LOOPBACK, token_file=tokens)
    async with open_actions_server(client, settings, front=front) as server:
        yield Apart(server.address, folder)


def with_inputs(name: str, project: str) -> runs.CreateRunRequest:
    request = create(name, project=project)
    value = Literal(scalar=Scalar(primitive=Primitive(string_value=SECRET)))
    request.inputs.CopyFrom(Inputs(literals=[NamedLiteral(name="x", value=value)]))
    return request


async def secret_of_b(apart: Apart) -> str:
    """Where the inputs of a run of b are."""
    await apart.create(apart.b, with_inputs("victim", "b"))
    answer = await apart.inputs(apart.b, "b", "victim")
    assert answer.inputs.literals[0].value.scalar.primitive.string_value == SECRET
    return str(answer.inputs_uri)


PLACES: tuple[Callable[[str], str], ...] = (
    lambda uri: uri,
    lambda uri: f"file://{uri}",
    lambda uri: f"FILE://localhost{uri}",
    lambda uri: f"local://{uri}",
    lambda uri: f"simplecache::file://{uri}",
    lambda uri: uri.replace("/inputs/b", "//inputs/./b"),
    lambda uri: uri.replace("/inputs/b", "/inputs/a/../b"),
    lambda uri: uri.replace("/inputs/b", "/inputs/a/%2e%2e/b").join(("file://", "")),
    lambda _: "/etc/inputs.pb",
    lambda _: "inputs.pb",
    lambda _: "s3://bucket/../other",
    lambda _: "\0",
)


async def test_a_run_takes_no_inputs_of_another_project(apart: Apart) -> None:
    uri = await secret_of_b(apart)
    for place in PLACES:
        request = create("mine", project="a")
        request.offloaded_input_data.CopyFrom(OffloadedInputData(uri=place(uri), inputs_hash="h"))
        with pytest.raises(Failed, match=r"offloaded_input_data\.uri.*alice.*\(a\)") as caught:
            await apart.create(apart.a, request)
        assert caught.value.code == "permission_denied"
    # Those of its own project it takes, and a token for all projects takes any.
    mine = await apart.a.ask(
        DATA,
        "UploadInputs",
        data.UploadInputsRequest(run_id=run_id("x", project="a")),
        data.UploadInputsResponse,
    )
    request = create("mine", project="a")
    request.offloaded_input_data.CopyFrom(mine.offloaded_input_data)
    await apart.create(apart.a, request)
    request = create("any", project="a")
    request.offloaded_input_data.uri = uri
    await apart.create(apart.all, request)


@pytest.mark.parametrize(
    "base", first_everyday(["/etc", "file:///", "{blobs}/runs/b", "{blobs}", "{blobs}/runs"], 2)
)
async def test_a_run_writes_nothing_among_another_projects_data(apart: Apart, base: str) -> None:
    base = base.format(blobs=apart.folder)
    request = with_inputs("mine", "a")
    request.run_spec.run_base_dir = base
    with pytest.raises(Failed, match=r"run_spec\.run_base_dir"):
        await apart.create(apart.a, request)
    request.run_spec.run_base_dir = ""
    request.run_spec.raw_data_storage.raw_data_prefix = base
    with pytest.raises(Failed, match=r"run_spec\.raw_data_storage\.raw_data_prefix"):
        await apart.create(apart.a, request)
    for own in (f"{apart.folder}/runs/a/", "s3://our-bucket/a"):
        request = with_inputs(f"r{len(own)}", "a")
        request.run_spec.run_base_dir = own
        await apart.create(apart.a, request)


async def test_an_action_reads_nothing_of_another_project(apart: Apart) -> None:
    uri = await secret_of_b(apart)
    request = actions.EnqueueRequest()
    request.action.action_id.CopyFrom(action_id("mine", project="a"))
    request.action.task.spec.CopyFrom(create("x").task_spec)
    request.action.task.id.CopyFrom(TaskIdentifier(project="a", domain="d", name="t", version="v"))
    for field in ("input_uri", "run_output_base"):
        asked = actions.EnqueueRequest()
        asked.CopyFrom(request)
        setattr(asked.action, field, uri)
        with pytest.raises(Failed, match=rf"action\.{field}") as caught:
            await apart.a.ask(ACTIONS, "Enqueue", asked, actions.EnqueueResponse)
        assert caught.value.code == "permission_denied"


async def test_what_an_action_says_of_its_data_opens_nothing(apart: Apart, tmp_path: Path) -> None:
    """Somebody with a token for all projects made a run of a that names data elsewhere."""
    uri = await secret_of_b(apart)
    bundle = tmp_path / "code.tar.gz"
    bundle.write_bytes(b"x")
    request = create("shared", project="a")
    request.offloaded_input_data.uri = uri
    request.task_spec.task_template.container.args[:] = ["--tgz", str(bundle), "x"]
    await apart.create(apart.all, request)
    assert (await apart.inputs(apart.all, "a", "shared")).inputs.literals
    with pytest.raises(Failed, match="not among the data of the projects") as caught:
        await apart.inputs(apart.a, "a", "shared")
    assert caught.value.code == "permission_denied"
    link = data.CreateDownloadLinkRequest(artifact_type=data.ARTIFACT_TYPE_CODE_BUNDLE)
    link.action_attempt_id.action_id.CopyFrom(action_id("shared", project="a"))
    with pytest.raises(Failed, match="not among the data of the projects"):
        await apart.a.ask(DATA, "CreateDownloadLink", link, data.CreateDownloadLinkResponse)


async def test_nobody_is_told_whose_a_name_is(apart: Apart) -> None:
    await secret_of_b(apart)
    with pytest.raises(Failed) as read:
        await apart.inputs(apart.a, "a", "victim")
    request = actions.EnqueueRequest(action=flyte.task(ActionId("a", "d", "victim", "a0")))
    request.action.input_uri = request.action.run_output_base = ""
    with pytest.raises(Failed) as taken:
        await apart.a.ask(ACTIONS, "Enqueue", request, actions.EnqueueResponse)
    assert [each.value.code for each in (read, taken)] == ["not_found", "failed_precondition"]
    for each in (read, taken):
        assert "b/d" not in str(each.value), each.value
    with pytest.raises(Failed, match="b/d/victim"):
        await apart.inputs(apart.all, "a", "victim")


@pytest.mark.parametrize("project", [".", ".."])
async def test_a_project_that_is_a_directory_is_refused_by_its_field(
    apart: Apart, project: str
) -> None:
    with pytest.raises(Failed, match=r"run_id\.project: .*not a valid name") as caught:
        await apart.create(apart.all, with_inputs("x", project))
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize("who", ["a", "all"])
async def test_cached_results_of_all_projects_are_not_for_a_token_of_one(
    apart: Apart, client: ActionsClient, who: str
) -> None:
    request = with_inputs("mine", "a")
    request.run_spec.cache_config.cache_lookup_scope = CACHE_LOOKUP_SCOPE_GLOBAL
    await apart.create(getattr(apart, who), request)
    root = await client.get_task_action(ActionId("a", "d", "mine", "a0"))
    details = await apart.a.ask(
        RUNS,
        "GetRunDetails",
        runs.GetRunDetailsRequest(run_id=request.run_id),
        runs.GetRunDetailsResponse,
    )
    scope = details.details.run_spec.cache_config.cache_lookup_scope
    if who == "a":
        assert ANNOTATION_CACHE_SCOPE not in root.metadata.annotations
        assert scope == CACHE_LOOKUP_SCOPE_PROJECT_DOMAIN
    else:
        assert root.metadata.annotations[ANNOTATION_CACHE_SCOPE] == "global"
        assert scope == CACHE_LOOKUP_SCOPE_GLOBAL
    # The same request again is the same run.
    await apart.create(getattr(apart, who), request)


async def test_a_run_that_names_another_projects_task_is_not_listed_there(
    apart: Apart, lists: Lists
) -> None:
    request = with_inputs("spoof", "a")
    request.task_spec.task_template.id.project = "b"
    await apart.create(apart.a, request)
    deploy = tasks.DeployTaskRequest(
        task_id=TaskIdentifier(project="b", domain="d", name="envs.greet", version="v1"),
        spec=request.task_spec,
    )
    await apart.b.ask(TASKS, "DeployTask", deploy, tasks.DeployTaskResponse)
    name = TaskName(project="b", domain="d", name="envs.greet")

    async def listed(asker: Asker) -> list[str]:
        answer = await asker.ask(
            RUNS, "ListRuns", runs.ListRunsRequest(task_name=name), runs.ListRunsResponse
        )
        return [run.action.id.run.name for run in answer.runs]

    async def is_indexed() -> bool:
        return await listed(apart.all) == ["spoof"]

    await eventually_holds(is_indexed)
    assert await listed(apart.b) == []
    for asker, seen in ((apart.b, False), (apart.all, True)):
        found = await asker.ask(
            TASKS,
            "ListTasks",
            tasks.ListTasksRequest(project_id={"name": "b", "domain": "d"}),
            tasks.ListTasksResponse,
        )
        assert found.tasks[0].task_summary.HasField("latest_run") is seen
        assert found.tasks[0].metadata.deployed_by.user.id.subject == "bob"
        versions = await asker.ask(
            TASKS,
            "ListVersions",
            tasks.ListVersionsRequest(task_name=name),
            tasks.ListVersionsResponse,
        )
        assert versions.versions[0].HasField("latest_run") is seen


async def test_a_list_of_all_runs_has_those_of_its_projects_only(
    apart: Apart, lists: Lists
) -> None:
    runs_of = [record(f"{project}{n}", project=project) for n in range(3) for project in "ab"]
    await lists.put(*runs_of)
    request = runs.ListRunsRequest(org="o")
    request.request.limit = 2
    found: list[str] = []
    while True:
        page = await apart.a.ask(RUNS, "ListRuns", request, runs.ListRunsResponse)
        found += [each.action.id.run.name for each in page.runs]
        if not page.token:
            break
        request.request.token = page.token
    assert sorted(found) == ["a0", "a1", "a2"]
    request = runs.ListRunsRequest(org="o")
    request.request.filters.add(field="project", values=["b"])
    assert not (await apart.a.ask(RUNS, "ListRuns", request, runs.ListRunsResponse)).runs
    both = await apart.all.ask(
        RUNS, "ListRuns", runs.ListRunsRequest(org="o"), runs.ListRunsResponse
    )
    assert len(both.runs) == 6
