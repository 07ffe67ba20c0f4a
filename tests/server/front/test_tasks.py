"""The registry of tasks over the wire, on a real etcd."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trio
from flyteidl2.common.identifier_pb2 import ProjectIdentifier
from flyteidl2.common.list_pb2 import Filter, ListRequest, Sort
from flyteidl2.task import task_definition_pb2 as definition
from flyteidl2.task import task_service_pb2 as pb
from structlog.testing import capture_logs

from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.registry.task_record import TaskId, task_key
from tests.server.clients import Failed
from tests.server.front.calling import Caller
from tests.server.front.conftest import Lists
from tests.support.everyday import first_everyday
from tests.support.flyte_services import TASKS
from tests.support.runs import record, status

pytestmark = pytest.mark.memory(jumps=False)

PROJECT = ProjectIdentifier(organization="any", name="p", domain="d")


def task_id(
    name: str = "env.main", version: str = "v1", project: str = "p"
) -> definition.TaskIdentifier:
    return definition.TaskIdentifier(
        org="o", project=project, domain="d", name=name, version=version
    )


def spec(short: str = "main", *, entrypoint: bool = False) -> definition.TaskSpec:
    made = definition.TaskSpec(short_name=short)
    made.environment.name = "env"
    made.documentation.short_description = "does it"
    made.task_template.type = "python"
    made.task_template.metadata.is_entrypoint = entrypoint
    return made


async def deploy(
    caller: Caller, task: definition.TaskIdentifier, what: definition.TaskSpec | None = None
) -> None:
    request = pb.DeployTaskRequest(task_id=task, spec=spec() if what is None else what)
    await caller.call(TASKS, "DeployTask", request, pb.DeployTaskResponse)


async def details(caller: Caller, task: definition.TaskIdentifier) -> definition.TaskDetails:
    request = pb.GetTaskDetailsRequest(task_id=task)
    answer = await caller.call(TASKS, "GetTaskDetails", request, pb.GetTaskDetailsResponse)
    return answer.details


async def tasks(caller: Caller, **asked: object) -> pb.ListTasksResponse:
    known = asked.pop("known_filters", [])
    request = pb.ListTasksRequest(
        project_id=PROJECT,
        request=ListRequest(**asked),
        known_filters=known,
    )
    return await caller.call(TASKS, "ListTasks", request, pb.ListTasksResponse)


def names(answer: pb.ListTasksResponse) -> list[tuple[str, str]]:
    return [(task.task_id.name, task.task_id.version) for task in answer.tasks]


async def test_a_deployed_task_can_be_read(caller: Caller, lists: Lists) -> None:
    before = datetime.now(UTC)
    await deploy(caller, task_id())
    found = await details(caller, task_id())
    assert (found.task_id, found.spec) == (task_id(), spec())
    metadata = found.metadata
    assert (metadata.short_name, metadata.environment_name) == ("main", "env")
    assert metadata.short_description == "does it"
    deployed = metadata.deployed_at.ToDatetime(UTC)
    assert before - timedelta(seconds=1) < deployed < datetime.now(UTC) + timedelta(seconds=1)
    read = await lists.registry.task_spec(TaskId("p", "d", "env.main", "v1"))
    assert read == spec()


async def test_the_same_again_exists_already_and_another_spec_replaces(caller: Caller) -> None:
    await deploy(caller, task_id())
    first = await details(caller, task_id())
    with pytest.raises(Failed, match=r"the same task is deployed already: 'env.main'") as caught:
        await deploy(caller, task_id())
    assert caught.value.code == "already_exists"
    with capture_logs() as logs:
        await deploy(caller, task_id(), spec("renamed"))
    assert [line["event"] for line in logs] == ["task_replaced"]
    second = await details(caller, task_id())
    assert second.spec == spec("renamed")
    assert second.metadata.deployed_at == first.metadata.deployed_at


async def test_without_a_version_the_latest_is_meant(caller: Caller) -> None:
    for version in ("v1", "v2"):
        await deploy(caller, task_id(version=version), spec(version))
    # Deployed once more it does not become the latest.
    await deploy(caller, task_id(version="v1"), spec("again"))
    assert (await details(caller, task_id(version=""))).task_id.version == "v2"
    assert names(await tasks(caller)) == [("env.main", "v2")]


@pytest.mark.parametrize("version", ["", "v9"])
async def test_an_unknown_task_is_not_found(caller: Caller, version: str) -> None:
    with pytest.raises(Failed, match="there is no deployed task 'nothing'") as caught:
        await details(caller, task_id("nothing", version))
    assert caught.value.code == "not_found"


async def test_hostile_names_are_names(caller: Caller) -> None:
    hostile = ["../../x", "a/b", "a", "nul\0", "%2F", "x" * 10_000, "ä\n"]
    for name in hostile:
        await deploy(caller, task_id(name, version=name), spec(name[:5]))
    for name in hostile:
        assert (await details(caller, task_id(name, version=name))).spec == spec(name[:5])
    answer = await tasks(caller)
    assert sorted(names(answer)) == sorted((name, name) for name in hostile)


async def test_lists_are_filtered_sorted_and_counted(caller: Caller, lists: Lists) -> None:
    await deploy(caller, task_id("env.a"), spec(entrypoint=True))
    await deploy(caller, task_id("env.b"))
    await deploy(caller, task_id("other.c"))
    await deploy(caller, task_id("env.z", project="q"))
    await lists.put(record("r1", task="env.a", at=1), record("r2", task="env.a", status=status(5)))
    by_name = Sort(key="name", direction=Sort.ASCENDING)
    env = Filter(function=Filter.CONTAINS, field="name", values=["env."])
    answer = await tasks(caller, filters=[env], sort_by=by_name, limit=1)
    assert names(answer) == [("env.a", "v1")]
    assert (answer.metadata.total, answer.metadata.filtered_total) == (3, 2)
    assert answer.tasks[0].task_summary.latest_run.run_id.name == "r1"
    rest = await tasks(caller, filters=[env], sort_by=by_name, limit=1, token=answer.token)
    assert (names(rest), rest.token) == ([("env.b", "v1")], "")
    assert not rest.tasks[0].HasField("task_summary")
    marked = pb.ListTasksRequest.KnownFilter(is_entrypoint=True)
    assert names(await tasks(caller, known_filters=[marked])) == [("env.a", "v1")]
    everyone = pb.ListTasksRequest(org="any")
    found = await caller.call(TASKS, "ListTasks", everyone, pb.ListTasksResponse)
    assert found.metadata.total == 4


async def test_versions_have_their_latest_runs(caller: Caller, lists: Lists) -> None:
    for version in ("v1", "v2", "v3"):
        await deploy(caller, task_id(version=version))
    await lists.put(
        record("r1", at=1), record("r2", at=2, status=status(5)), record("r3", at=3, version="v3")
    )
    name = definition.TaskName(project="p", domain="d", name="env.main")
    request = pb.ListVersionsRequest(task_name=name, request=ListRequest(limit=2))
    ask = partial(caller.call, TASKS, "ListVersions", request, pb.ListVersionsResponse)
    answer = await ask()
    assert [each.version for each in answer.versions] == ["v3", "v2"]
    assert answer.versions[0].latest_run.run_id.name == "r3"
    assert not answer.versions[1].HasField("latest_run")
    request.request.token = answer.token
    (last,) = (await ask()).versions
    assert (last.version, last.latest_run.run_id.name, last.latest_run.phase) == ("v1", "r2", 5)


async def test_triggers_are_refused_before_anything_is_written(
    caller: Caller, etcd: Etcd, lists: Lists
) -> None:
    trigger = definition.TaskTrigger(name="nightly")
    request = pb.DeployTaskRequest(task_id=task_id(), spec=spec(), triggers=[trigger])
    with pytest.raises(Failed, match="triggers are not served here") as caught:
        await caller.call(TASKS, "DeployTask", request, pb.DeployTaskResponse)
    assert caught.value.code == "unimplemented"
    assert (await etcd.range(KeyRange.of_prefix(lists.keys.tasks))).kvs == []


UNUSABLE = {
    "task_id: it is missing": pb.DeployTaskRequest(spec=spec()),
    "spec: it is missing": pb.DeployTaskRequest(task_id=task_id()),
    "task_id.version: it is missing": pb.DeployTaskRequest(
        task_id=task_id(version=""), spec=spec()
    ),
    "task_id.name: it has 20000 bytes": pb.DeployTaskRequest(
        task_id=task_id("x" * 20_000), spec=spec()
    ),
}


@pytest.mark.parametrize(("said", "request_"), first_everyday(UNUSABLE.items(), 2), ids=UNUSABLE)
async def test_what_is_unusable_is_named(
    caller: Caller, said: str, request_: pb.DeployTaskRequest
) -> None:
    with pytest.raises(Failed) as caught:
        await caller.call(TASKS, "DeployTask", request_, pb.DeployTaskResponse)
    assert caught.value.code == "invalid_argument"
    assert caught.value.message.startswith(said)


async def test_what_cannot_be_read_is_left_out_and_not_replaced(
    caller: Caller, etcd: Etcd, lists: Lists
) -> None:
    bad = task_key(lists.keys.tasks, TaskId("p", "d", "env.bad", "v1"))
    await etcd.put(bad, b'{"form":99}')
    revision = (await etcd.put(lists.keys.tasks + b"odd", b"{}")).revision
    assert await lists.registry.index.wait_for(revision)
    await deploy(caller, task_id())
    assert names(await tasks(caller)) == [("env.main", "v1")]
    assert lists.registry.index.statistics() == (1, 1, 2)
    with pytest.raises(Failed) as caught:
        await deploy(caller, task_id("env.bad"))
    assert caught.value.code == "data_loss"
    kv = (await etcd.range(KeyRange.of_key(bad))).kvs[0]
    assert kv.value == b'{"form":99}'


async def test_of_several_that_deploy_at_once_one_writes(caller: Caller) -> None:
    outcomes: list[str] = []

    async def one() -> None:
        try:
            await deploy(caller, task_id())
            outcomes.append("deployed")
        except Failed as error:
            outcomes.append(error.code)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert sorted(outcomes) == ["already_exists"] * 4 + ["deployed"]


async def test_a_task_that_is_built_in_counts_before_what_is_deployed(
    caller: Caller, lists: Lists
) -> None:
    own = spec("own")
    named = own.task_template.id
    named.project, named.domain, named.name, named.version = "p", "d", "built", "1"
    lists.registry.build_in(own)
    await deploy(caller, task_id("built", "1"), spec("other"))
    for version in ("", "1"):
        assert (await details(caller, task_id("built", version))).spec.short_name == "own"
    assert [each.metadata.short_name for each in (await tasks(caller)).tasks] == ["own"]
