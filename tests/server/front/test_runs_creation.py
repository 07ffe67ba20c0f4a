"""CreateRun: what it writes, what it refuses, and that nothing is created twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from flyteidl2.common.run_pb2 import RELATION_TYPE_RECOVER
from flyteidl2.task.common_pb2 import Inputs
from flyteidl2.task.task_definition_pb2 import TaskIdentifier
from flyteidl2.workflow import run_definition_pb2 as definitions
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions import ActionId, ActionsClient, Phase
from etcd_actions.errors import AlreadyExists, OutcomeUnknown
from etcd_actions.etcd.api import Delete, Etcd, KeyRange, Put, Txn, TxnResult
from etcd_actions.registry.registry import open_registry, task_id_of
from etcd_actions.runs.creation import RunCreator
from etcd_actions.runs.run_record import RunRecord, decode_record
from etcd_actions.storage.store import Store
from tests.server.clients import Failed
from tests.server.front.run_calls import RunsAsker, action_id, create, run_id, serve_runs, task_spec
from tests.support import flyte

pytestmark = pytest.mark.memory(jumps=False)

ROOT = ActionId("p", "d", "r1", "a0")


async def record_of(client: ActionsClient, root: ActionId = ROOT) -> RunRecord:
    kv = await client.store.get(client.keys.run_record(root))
    assert kv is not None
    return decode_record(kv.value)


async def details(asker: RunsAsker, name: str = "r1") -> definitions.RunDetails:
    response = await asker("GetRunDetails", pb.GetRunDetailsRequest(run_id=run_id(name)))
    found: definitions.RunDetails = response.details
    return found


async def test_root_and_record_are_one_transaction(asker: RunsAsker, client: ActionsClient) -> None:
    created = await asker("CreateRun", create("r1"))
    assert created.run.action.id.run == run_id("r1")
    assert created.run.action.id.name == "a0"
    root = await client.get_task_action(ROOT)
    record = await client.store.get(client.keys.run_record(ROOT))
    task = await client.store.get(client.keys.run_task(ROOT))
    assert record is not None
    assert task is not None
    assert root.revision == record.mod_revision == task.mod_revision
    assert root.spec.input_uri == "/in/inputs.pb"


async def test_what_was_asked_for_is_kept_whole(asker: RunsAsker, client: ActionsClient) -> None:
    request = create("r1")
    spec = request.run_spec
    spec.labels.values["team"] = "blue"
    spec.annotations.values["example.org/note"] = "kept"
    spec.envs.values.add(key="LEVEL", value="3")
    spec.interruptible.value = True
    spec.overwrite_cache = True
    spec.cache_config.overwrite_cache = True
    spec.max_action_concurrency = 7
    spec.queue = "fast"
    spec.raw_data_storage.raw_data_prefix = "s3://b/raw"
    request.source = definitions.RUN_SOURCE_CLI
    created = await asker("CreateRun", request)
    assert dict(created.run.labels) == {"team": "blue"}
    root = await client.get_task_action(ROOT)
    assert root.metadata.labels["team"] == "blue"
    assert root.metadata.annotations["example.org/note"] == "kept"
    assert root.spec.env_vars == {"LEVEL": "3"}
    assert root.spec.interruptible is True
    told = await details(asker)
    assert told.run_spec == spec
    assert told.action.task == request.task_spec
    assert told.action.metadata.source == definitions.RUN_SOURCE_CLI
    assert told.action.metadata.environment_name == "envs"


async def test_a_project_gets_a_new_name_each_time(asker: RunsAsker) -> None:
    names = [(await asker("CreateRun", create())).run.action.id.run.name for _ in range(2)]
    assert len(set(names)) == 2
    for name in names:
        assert re.fullmatch("r[a-z0-9]{19}", name)
        await details(asker, name)


async def test_a_bad_name_is_an_invalid_argument(asker: RunsAsker) -> None:
    for name in ("x" * 31, "Upper", "-r1", "a/b", "a b", "ä"):
        with pytest.raises(Failed, match=r"run_id\.name") as caught:
            await asker("CreateRun", create(name))
        assert caught.value.code == "invalid_argument", name


def no_id(request: pb.CreateRunRequest) -> None:
    request.ClearField("run_id")


def no_task(request: pb.CreateRunRequest) -> None:
    request.ClearField("task_spec")


def no_uri(request: pb.CreateRunRequest) -> None:
    request.offloaded_input_data.uri = ""


def reserved_label(request: pb.CreateRunRequest) -> None:
    request.run_spec.labels.values["flyte.org/terminal-status-recorded"] = "true"


def too_large(request: pb.CreateRunRequest) -> None:
    request.task_spec.task_template.container.args.append("x" * 1_500_000)


async def test_a_bad_request_names_its_field(asker: RunsAsker, client: ActionsClient) -> None:
    for spoil, field in (
        (no_id, "run_id"),
        (no_task, "task_spec.task_template"),
        (no_uri, "offloaded_input_data.uri"),
        (reserved_label, "run_spec.labels"),
        (too_large, "task_spec"),
    ):
        request = create("r1")
        spoil(request)
        with pytest.raises(Failed) as caught:
            await asker("CreateRun", request)
        assert caught.value.code == "invalid_argument"
        assert caught.value.message.startswith(field)
    assert await client.store.get(client.keys.run_record(ROOT)) is None


async def test_a_taken_name_already_exists(asker: RunsAsker, client: ActionsClient) -> None:
    await asker("CreateRun", create("r1"))
    other = create("r1")
    other.run_spec.envs.values.add(key="A", value="1")
    for request in (other, create("r1", project="q")):
        with pytest.raises(Failed) as caught:
            await asker("CreateRun", request)
        assert caught.value.code == "already_exists"
        assert "p/d" not in caught.value.message
    await client.enqueue(flyte.task(ActionId("p", "d", "r2", "a0")))
    with pytest.raises(Failed) as caught:
        await asker("CreateRun", create("r2"))
    assert caught.value.code == "already_exists"


async def test_the_same_request_again_is_answered_as_before(
    asker: RunsAsker, client: ActionsClient
) -> None:
    first = await asker("CreateRun", create("r1"))
    before = await client.get_task_action(ROOT)
    assert await asker("CreateRun", create("r1")) == first
    elsewhere = await asker("CreateRun", create("r1", org="localhost"))
    assert elsewhere.run.action.id.run == run_id("r1", org="localhost")
    assert (await client.get_task_action(ROOT)).revision == before.revision


async def test_a_run_that_has_expired_is_not_created_again(
    asker: RunsAsker, client: ActionsClient
) -> None:
    await asker("CreateRun", create("r1"))
    key = client.keys.task_action(ROOT)
    await client.store.txn(Txn((), (Delete(KeyRange.of_key(key)),)))
    again = await asker("CreateRun", create("r1"))
    assert again.run.action.metadata.task.id.name == "envs.greet"
    other = create("r1")
    other.offloaded_input_data.uri = "/in/other.pb"
    with pytest.raises(Failed) as caught:
        await asker("CreateRun", other)
    assert caught.value.code == "already_exists"
    assert await client.store.get(key) is None


async def test_of_many_at_once_one_creates(asker: RunsAsker, client: ActionsClient) -> None:
    """The same request eight times, and eight that differ."""
    same: list[pb.CreateRunResponse] = []
    taken: list[str] = []

    async def ask(request: pb.CreateRunRequest) -> None:
        try:
            same.append(await asker("CreateRun", request))
        except Failed as error:
            taken.append(error.code)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(ask, create("r1"))
    assert len(same) == 8
    assert taken == []
    assert (await client.get_task_action(ROOT)).revision == (
        await client.get_task_action(ROOT)
    ).create_revision
    same.clear()
    async with trio.open_nursery() as nursery:
        for number in range(8):
            request = create("r2")
            request.offloaded_input_data.uri = f"/in/{number}"
            nursery.start_soon(ask, request)
    assert len(same) == 1
    assert taken == ["already_exists"] * 7


@contextmanager
def losing_answers(client: ActionsClient, etcd: Etcd) -> Iterator[list[bool]]:
    """Apply the client's enqueues, and lose the answers of those that wrote something."""
    lost: list[bool] = []

    async def txn(asked: Txn) -> TxnResult:
        result = await etcd.txn(asked)
        if asked.compare and result.succeeded:
            lost.append(True)
            raise OutcomeUnknown("the answer was lost")
        return result

    enqueuer = client._enqueuer
    before, enqueuer._store = enqueuer._store, Store(etcd, txn)
    try:
        yield lost
    finally:
        enqueuer._store = before


async def test_an_answer_that_is_lost_creates_once(client: ActionsClient, etcd: Etcd) -> None:
    creator = RunCreator(client, None, None)
    request = create("r1")
    request.run_spec.run_base_dir = "/out"
    with losing_answers(client, etcd) as lost:
        first = await creator.create(request)
    assert lost == [True]
    assert first.created
    again = await creator.create(request)
    assert not again.created
    assert again.record == await record_of(client)
    request.offloaded_input_data.uri = "/in/other"
    with pytest.raises(AlreadyExists):
        await creator.create(request)


async def test_a_key_beside_that_appears_in_between_stops_all(
    client: ActionsClient, etcd: Etcd
) -> None:
    """Also one that was not there when the enqueue looked."""
    key = client.keys.run_record(ROOT)

    async def txn(asked: Txn) -> TxnResult:
        if asked.compare:
            await etcd.put(key, b"somebody else's")
        return await etcd.txn(asked)

    client._enqueuer._store = Store(etcd, txn)
    with pytest.raises(AlreadyExists, match="exists already"):
        await client.enqueue(flyte.task(ROOT), companions=[Put(key, b"mine")])
    kv = await client.store.get(key)
    assert kv is not None
    assert kv.value == b"somebody else's"
    assert await client.store.get(client.keys.task_action(ROOT)) is None


async def test_a_deployed_task_is_run_by_its_name(
    client: ActionsClient, etcd: Etcd, tmp_path: Path
) -> None:
    request = create("r1")
    request.task_id.MergeFrom(
        TaskIdentifier(project="p", domain="d", name="envs.deployed", version="v1")
    )
    async with (
        open_registry(etcd, client.store, client.keys) as registry,
        serve_runs(client, tmp_path, registry) as (asker, _),
    ):
        await registry.deploy(task_id_of(request.task_id), task_spec("envs.deployed"))
        await asker("CreateRun", request)
        assert (await details(asker)).action.metadata.task.id.name == "envs.deployed"
        request.task_id.name = "envs.unknown"
        request.run_id.name = "r2"
        with pytest.raises(Failed) as caught:
            await asker("CreateRun", request)
        assert caught.value.code == "not_found"


def by_trigger(request: pb.CreateRunRequest) -> None:
    request.trigger_name.name = "nightly"


def by_task(request: pb.CreateRunRequest) -> None:
    request.task_id.name = "envs.deployed"


def inline(request: pb.CreateRunRequest) -> None:
    request.inputs.CopyFrom(Inputs())


async def test_what_is_not_served_says_so(client: ActionsClient) -> None:
    async with serve_runs(client, None) as (asker, _):
        for change, word in (
            (by_trigger, "trigger_name"),
            (by_task, "task_id"),
            (inline, "run_base_dir"),
        ):
            request = create("r1")
            change(request)
            with pytest.raises(Failed, match=word) as caught:
                await asker("CreateRun", request)
            assert caught.value.code == "unimplemented"


async def test_inline_inputs_are_written_by_their_content(
    asker: RunsAsker, client: ActionsClient
) -> None:
    """Who asks for a name that is taken writes nothing over the inputs of its run."""
    request = create("r1")
    request.inputs.literals.add(name="n").value.scalar.primitive.integer = 1
    await asker("CreateRun", request)
    uri = (await client.get_task_action(ROOT)).spec.input_uri
    assert Inputs.FromString(Path(uri).read_bytes()) == request.inputs
    record = await record_of(client)
    assert record.input_uri == uri
    assert record.inputs_hash
    other = create("r1")
    other.inputs.literals.add(name="n").value.scalar.primitive.integer = 2
    with pytest.raises(Failed):
        await asker("CreateRun", other)
    assert Inputs.FromString(Path(uri).read_bytes()) == request.inputs


async def test_where_outputs_go(asker: RunsAsker, client: ActionsClient, tmp_path: Path) -> None:
    own, raw = create("r2"), create("r3")
    own.run_spec.run_base_dir = "s3://b/base/"
    own.run_spec.raw_data_storage.raw_data_prefix = "s3://b/raw"
    raw.run_spec.raw_data_storage.raw_data_prefix = "s3://b/raw"
    for request, base in (
        (create("r1"), f"{tmp_path}/blobs/runs/p/d/r1"),
        (own, "s3://b/base/p/d/r2"),
        (raw, "s3://b/raw/p/d/r3"),
    ):
        await asker("CreateRun", request)
        root = ActionId("p", "d", request.run_id.name, "a0")
        assert (await client.get_task_action(root)).spec.run_output_base == base
        assert (await record_of(client, root)).output_base == base


def recovering(name: str, source: str) -> pb.CreateRunRequest:
    request = create(name)
    request.run_spec.relation.related_to.CopyFrom(run_id(source))
    request.run_spec.relation.relation_type = RELATION_TYPE_RECOVER
    return request


async def test_the_run_that_is_recovered_is_noted(asker: RunsAsker, client: ActionsClient) -> None:
    await asker("CreateRun", create("r0"))
    request = recovering("r1", "r0")
    await asker("CreateRun", request)
    assert (await record_of(client)).recovered_from == "r0"
    told = await details(asker)
    assert told.action.metadata.relation == request.run_spec.relation


async def test_of_a_recovered_action_its_source_is_told(
    asker: RunsAsker, client: ActionsClient
) -> None:
    await asker("CreateRun", create("r0"))
    for name in ("ok", "bad"):
        child = ActionId("p", "d", "r0", name)
        await client.enqueue(flyte.task(child, "a0"))
        phase = Phase.SUCCEEDED if name == "ok" else Phase.FAILED
        await client.put_status(child, 1, flyte.status(phase))
    await asker("CreateRun", recovering("r1", "r0"))
    for name in ("ok", "bad"):
        await client.enqueue(flyte.task(ActionId("p", "d", "r1", name), "a0"))
    listed = await asker("ListActions", pb.ListActionsRequest(run_id=run_id("r1")))
    by_name = {each.id.name: each for each in listed.actions}
    assert by_name["ok"].status.phase == Phase.RECOVERED
    assert by_name["ok"].metadata.recovered_from == action_id("r0", "ok")
    assert not by_name["bad"].metadata.HasField("recovered_from")
    found = await asker(
        "GetActionDetails", pb.GetActionDetailsRequest(action_id=action_id("r1", "ok"))
    )
    (attempt,) = found.details.attempts
    assert not attempt.logs_available
    there = await client.get_task_action(ActionId("p", "d", "r0", "ok"))
    assert attempt.outputs.output_uri == f"{there.output_uri}/outputs.pb"


async def test_a_run_that_nobody_knows_cannot_be_recovered(
    asker: RunsAsker, client: ActionsClient
) -> None:
    with pytest.raises(
        Failed, match=r"run_spec\.relation\.related_to: there is no run r0"
    ) as caught:
        await asker("CreateRun", recovering("r1", "r0"))
    assert caught.value.code == "not_found"
    assert await client.store.get(client.keys.run_record(ROOT)) is None
    await asker("CreateRun", create("r0", project="q"))
    with pytest.raises(Failed) as caught:
        await asker("CreateRun", recovering("r1", "r0"))
    assert caught.value.code == "not_found"
