"""What RunService tells of runs and actions, and that it is told to the right ones."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from flyteidl2.common import list_pb2
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.core.types_pb2 import SimpleType
from flyteidl2.workflow import run_definition_pb2 as definitions
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase
from etcd_actions.etcd.api import Delete, KeyRange, Put, Txn
from etcd_actions.model import ErrorState
from etcd_actions.runs.reading import RunReader
from etcd_actions.runs.run_record import (
    ActionHistory,
    Attempt,
    Failure,
    RunStatus,
    decode_record,
    encode,
)
from tests.server.clients import Failed
from tests.server.front.run_calls import RunsAsker, action_id, create, run_id
from tests.support import flyte

pytestmark = pytest.mark.memory(jumps=False)

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")

F = list_pb2.Filter


async def report(
    client: ActionsClient,
    phase: Phase,
    of: ActionId = ROOT,
    *,
    attempt: int = 1,
    error: ErrorState | None = None,
) -> None:
    await client.put_status(of, attempt, ActionStatus(phase=phase, attempts=attempt), error=error)


async def details(asker: RunsAsker, name: str = "a0") -> definitions.ActionDetails:
    request = pb.GetActionDetailsRequest(action_id=action_id("r1", name))
    found: definitions.ActionDetails = (await asker("GetActionDetails", request)).details
    return found


async def delete(client: ActionsClient, key: bytes) -> None:
    await client.store.txn(Txn((), (Delete(KeyRange.of_key(key)),)))


async def test_a_root_that_others_enqueued_is_told_from_its_object(
    asker: RunsAsker, client: ActionsClient
) -> None:
    await client.enqueue(flyte.task(ROOT, name="envs.hello"))
    response = await asker("GetRunDetails", pb.GetRunDetailsRequest(run_id=run_id("r1")))
    told = response.details
    assert told.action.id == action_id("r1")
    assert told.action.status.phase == ActionPhase.ACTION_PHASE_QUEUED
    assert told.action.status.attempts == 1
    assert told.action.metadata.task.id.name == "envs.hello"
    assert told.action.task.task_template.container.args == ["run", "envs.hello"]
    assert dict(told.run_spec.labels.values) == {}


READS: list[tuple[str, Any]] = [
    ("GetRunDetails", lambda of: pb.GetRunDetailsRequest(run_id=of.run)),
    ("GetActionDetails", lambda of: pb.GetActionDetailsRequest(action_id=of)),
    ("GetActionDataURIs", lambda of: pb.GetActionDataURIsRequest(action_id=of)),
    ("GetActionLogContext", lambda of: pb.GetActionLogContextRequest(action_id=of)),
    ("ListActions", lambda of: pb.ListActionsRequest(run_id=of.run)),
    ("AbortRun", lambda of: pb.AbortRunRequest(run_id=of.run)),
    ("AbortAction", lambda of: pb.AbortActionRequest(action_id=of)),
    (
        "SignalEvent",
        lambda of: pb.SignalEventRequest(action_id=of, payload=pb.EventPayload(bool_value=True)),
    ),
]


async def test_another_projects_run_is_not_found(asker: RunsAsker, client: ActionsClient) -> None:
    """Nor is it said whose the name is."""
    await asker("CreateRun", create("r1"))
    for method, request_for in READS:
        with pytest.raises(Failed) as caught:
            await asker(method, request_for(action_id("r1", project="q")))
        assert caught.value.code == "not_found", method
        assert "p/d" not in caught.value.message
    assert (await client.get_task_action(ROOT)).phase is Phase.UNSPECIFIED


@pytest.mark.parametrize("by", ["CreateRun", "others"])
async def test_any_organisation_finds_it(asker: RunsAsker, client: ActionsClient, by: str) -> None:
    """What a client calls this service is no part of a run, nor is what a task was told."""
    if by == "CreateRun":
        await asker("CreateRun", create("r1", org="localhost"))
        child = ActionId("p", "d", "r1", "c1", "local")
    else:
        await client.enqueue(flyte.task(ActionId("p", "d", "r1", "a0", "acme")))
        child = ActionId("p", "d", "r1", "c1", "acme")
    await client.enqueue(flyte.task(child, "a0"))
    for org in ("", "127", "flyte.example.org"):
        for name in ("a0", "c1"):
            wanted = action_id("r1", name, org=org)
            response = await asker("GetActionDetails", pb.GetActionDetailsRequest(action_id=wanted))
            assert response.details.id == wanted
        listed = await asker("ListActions", pb.ListActionsRequest(run_id=run_id("r1", org=org)))
        assert {each.id.run.org for each in listed.actions} == {org}
        assert len(listed.actions) == 2
    await asker("AbortRun", pb.AbortRunRequest(run_id=run_id("r1"), reason="enough"))
    assert (await client.get_task_action(CHILD)).phase is Phase.ABORTED


async def test_what_names_no_run_is_an_invalid_argument(asker: RunsAsker) -> None:
    for request in (
        pb.GetRunDetailsRequest(),
        pb.GetRunDetailsRequest(run_id=run_id("")),
        pb.GetRunDetailsRequest(run_id=run_id("a/b")),
    ):
        with pytest.raises(Failed, match="run_id") as caught:
            await asker("GetRunDetails", request)
        assert caught.value.code == "invalid_argument"


async def test_an_end_is_told_with_its_reason(asker: RunsAsker, client: ActionsClient) -> None:
    await asker("CreateRun", create("r1"))
    for name in ("ok", "bad", "gone", "wait"):
        child = ActionId("p", "d", "r1", name)
        made = flyte.condition(child, "a0") if name == "wait" else flyte.task(child, "a0")
        await client.enqueue(made)
    await report(client, Phase.SUCCEEDED, ActionId("p", "d", "r1", "ok"))
    boom = ErrorState(code="ValueError", kind="USER", message="boom")
    await report(client, Phase.FAILED, ActionId("p", "d", "r1", "bad"), error=boom)
    wanted = action_id("r1", "gone")
    await asker("AbortAction", pb.AbortActionRequest(action_id=wanted, reason="enough"))
    payload = pb.EventPayload(bool_value=True)
    await asker(
        "SignalEvent",
        pb.SignalEventRequest(
            action_id=action_id("r1", "wait"), parent_action_name="a0", payload=payload
        ),
    )
    ok, bad = await details(asker, "ok"), await details(asker, "bad")
    assert ok.status.phase == ActionPhase.ACTION_PHASE_SUCCEEDED
    assert ok.status.HasField("end_time")
    assert ok.WhichOneof("result") is None
    assert ok.attempts[0].outputs.output_uri.endswith("/ok/1/outputs.pb")
    assert bad.error_info == definitions.ErrorInfo(
        message="boom", kind=definitions.ErrorInfo.KIND_USER, code="ValueError"
    )
    assert bad.attempts[0].error_info == bad.error_info
    gone, wait = await details(asker, "gone"), await details(asker, "wait")
    assert gone.abort_info.reason == "enough"
    assert wait.signal_info.output == flyte.boolean(True)
    assert wait.condition.name == "wait"
    assert wait.metadata.condition.name == "wait"


async def test_attempts_and_their_phases(asker: RunsAsker, client: ActionsClient) -> None:
    await asker("CreateRun", create("r1"))
    for attempt in (1, 2):
        for phase in (Phase.QUEUED, Phase.RUNNING):
            await report(client, phase, attempt=attempt)
    root = await client.get_task_action(ROOT)
    failed = Attempt(number=1, phase=Phase.FAILED, failure=Failure("E", "USER", "first"))
    history = ActionHistory(create_revision=root.create_revision, attempts=(failed,))
    await client.store.txn(Txn((), (Put(client.keys.history(ROOT), encode(history)),)))
    told = await details(asker)
    assert told.status.attempts == 2
    assert [each.attempt for each in told.attempts] == [1, 2]
    first, second = told.attempts
    assert first.error_info.message == "first"
    phases = [each.phase for each in first.phase_transitions]
    assert phases == [Phase.QUEUED, Phase.RUNNING, Phase.FAILED]
    assert second.phase == ActionPhase.ACTION_PHASE_RUNNING
    assert [each.phase for each in second.phase_transitions] == [Phase.QUEUED, Phase.RUNNING]
    assert second.logs_available
    assert not second.phase_transitions[1].HasField("end_time")


async def test_a_run_that_has_the_name_of_an_expired_one_is_not_shown_with_its_record(
    asker: RunsAsker, client: ActionsClient
) -> None:
    """Until the leader, which there is none of here, has replaced the record."""
    request = create("r1")
    request.run_spec.envs.values.add(key="A", value="1")
    await asker("CreateRun", request)
    asked = pb.GetRunDetailsRequest(run_id=run_id("r1"))
    assert (await asker("GetRunDetails", asked)).details.run_spec.envs.values
    await delete(client, client.keys.task_action(ROOT))
    assert (await asker("GetRunDetails", asked)).details.run_spec.envs.values
    again = flyte.task(ROOT)
    again.task.spec.short_name = "another"
    await client.enqueue(again)
    child = flyte.task(ActionId("p", "d", "r1", "b"), "a0")
    await client.enqueue(child)
    details = (await asker("GetRunDetails", asked)).details
    assert not details.run_spec.envs.values
    assert details.action.metadata.task.short_name == "another"
    reader = RunReader(client)
    for name in ("a0", "b"):
        assert (await reader.action(ActionId("p", "d", "r1", name))).record is None
    assert await reader.record(ROOT) is None
    assert (await reader.actions(ROOT)).record is None
    # The same request again does not take the other run for its own.
    with pytest.raises(Failed, match="is taken") as caught:
        await asker("CreateRun", request)
    assert caught.value.code == "already_exists"


async def test_the_record_answers_when_the_objects_have_expired(
    asker: RunsAsker, client: ActionsClient
) -> None:
    request = create("r1")
    request.run_spec.envs.values.add(key="A", value="1")
    await asker("CreateRun", request)
    key = client.keys.run_record(ROOT)
    kv = await client.store.get(key)
    assert kv is not None
    record = decode_record(kv.value)
    status = RunStatus(
        phase=Phase.FAILED,
        attempts=2,
        started=record.created,
        ended=record.created,
        failure=Failure("E", "USER", "boom"),
    )
    await delete(client, client.keys.task_action(ROOT))

    async def told() -> definitions.RunDetails:
        response = await asker("GetRunDetails", pb.GetRunDetailsRequest(run_id=run_id("r1")))
        found: definitions.RunDetails = response.details
        return found

    unrecorded = await told()
    assert unrecorded.action.status.phase == ActionPhase.ACTION_PHASE_ABORTED
    assert "deleted before its end was recorded" in unrecorded.action.abort_info.reason
    changed = msgspec.structs.replace(record, status=status)
    await client.store.txn(Txn((), (Put(key, encode(changed)),)))
    found = await told()
    assert found.run_spec == request.run_spec
    assert found.action.task == request.task_spec
    assert found.action.status.phase == ActionPhase.ACTION_PHASE_FAILED
    assert found.action.status.attempts == 2
    assert found.action.error_info.message == "boom"
    assert found.action.attempts[-1].attempt == 2
    uris = await asker("GetActionDataURIs", pb.GetActionDataURIsRequest(action_id=action_id("r1")))
    assert uris.inputs_uri == "/in/inputs.pb"
    # Its end is not undone by who aborts it now.
    await asker("AbortRun", pb.AbortRunRequest(run_id=run_id("r1")))
    assert (await told()).action.status.phase == ActionPhase.ACTION_PHASE_FAILED


async def test_data_uris(asker: RunsAsker, client: ActionsClient) -> None:
    await asker("CreateRun", create("r1"))
    request = pb.GetActionDataURIsRequest(action_id=action_id("r1"))
    uris = await asker("GetActionDataURIs", request)
    assert (uris.inputs_uri, uris.outputs_uri) == ("/in/inputs.pb", "")
    await report(client, Phase.SUCCEEDED)
    outputs = (await client.get_task_action(ROOT)).output_uri
    uris = await asker("GetActionDataURIs", request)
    assert uris.outputs_uri == f"{outputs}/outputs.pb"
    await delete(client, client.keys.task_action(ROOT))
    key = client.keys.run_record(ROOT)
    kv = await client.store.get(key)
    assert kv is not None
    status = RunStatus(phase=Phase.SUCCEEDED, attempts=1)
    record = msgspec.structs.replace(decode_record(kv.value), status=status)
    await client.store.txn(Txn((), (Put(key, encode(record)),)))
    assert await asker("GetActionDataURIs", request) == uris


async def test_log_context_of_an_attempt(asker: RunsAsker, client: ActionsClient) -> None:
    await asker("CreateRun", create("r1"))
    await report(client, Phase.RUNNING)
    assert [each.phase for each in (await details(asker)).attempts[0].phase_transitions] == [
        Phase.QUEUED,
        Phase.RUNNING,
    ]
    wanted = action_id("r1")
    request = pb.GetActionLogContextRequest(action_id=wanted, attempt=1)
    assert (await asker("GetActionLogContext", request)).HasField("start_time")
    request.attempt = 2
    with pytest.raises(Failed, match="attempt 2") as caught:
        await asker("GetActionLogContext", request)
    assert caught.value.code == "not_found"


async def test_what_cannot_be_read_beside_the_object_counts_as_missing(
    asker: RunsAsker, client: ActionsClient
) -> None:
    await asker("CreateRun", create("r1"))
    keys = client.keys
    for key in (keys.run_record(ROOT), keys.run_task(ROOT), keys.history(ROOT)):
        await client.store.txn(Txn((), (Put(key, b"\xff nonsense"),)))
    told = await details(asker)
    assert told.metadata.task.id.name == "envs.greet"


async def test_a_signal_has_the_type_that_is_waited_for(
    asker: RunsAsker, client: ActionsClient
) -> None:
    await client.enqueue(flyte.task(ROOT))
    for number, (payload, declared, value) in enumerate(
        (
            (pb.EventPayload(int_value=2), SimpleType.FLOAT, "float_value"),
            (pb.EventPayload(int_value=2), SimpleType.INTEGER, "integer"),
            (pb.EventPayload(float_value=0.5), SimpleType.FLOAT, "float_value"),
            (pb.EventPayload(string_value="x"), SimpleType.STRING, "string_value"),
            (pb.EventPayload(bool_value=False), SimpleType.BOOLEAN, "boolean"),
        )
    ):
        condition = flyte.condition(ActionId("p", "d", "r1", f"w{number}"), "a0")
        condition.condition.type.simple = declared
        await client.enqueue(condition)
        wanted = action_id("r1", f"w{number}")
        await asker("SignalEvent", pb.SignalEventRequest(action_id=wanted, payload=payload))
        told = (await details(asker, f"w{number}")).signal_info.output
        assert told.scalar.primitive.WhichOneof("value") == value


async def test_a_signal_that_does_not_fit_is_refused(
    asker: RunsAsker, client: ActionsClient
) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.condition(CHILD, "a0"))
    yes = pb.EventPayload(bool_value=True)
    wanted = action_id("r1", "c1")
    for request, code in (
        (pb.SignalEventRequest(action_id=wanted), "invalid_argument"),
        (
            pb.SignalEventRequest(action_id=wanted, payload=pb.EventPayload(int_value=1)),
            "invalid_argument",
        ),
        (
            pb.SignalEventRequest(action_id=wanted, payload=yes, parent_action_name="c9"),
            "invalid_argument",
        ),
        (
            pb.SignalEventRequest(action_id=action_id("r1"), payload=yes),
            "failed_precondition",
        ),
    ):
        with pytest.raises(Failed) as caught:
            await asker("SignalEvent", request)
        assert caught.value.code == code
    assert (await client.get_task_action(CHILD)).phase is not Phase.SUCCEEDED


async def listed(asker: RunsAsker, **request: Any) -> list[str]:
    """The names of all pages."""
    found: list[str] = []
    token = ""
    while True:
        asked = list_pb2.ListRequest(**request, token=token)
        response = await asker(
            "ListActions", pb.ListActionsRequest(run_id=run_id("r1"), request=asked)
        )
        found += [each.id.name for each in response.actions]
        token = response.token
        if not token:
            return found


async def tree(client: ActionsClient) -> None:
    """A root with a condition, a trace, and three tasks, two of which have ended."""
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.condition(ActionId("p", "d", "r1", "w1"), "a0"))
    await client.enqueue(flyte.trace(ActionId("p", "d", "r1", "t1"), "a0"))
    for name, parent in (("c1", "a0"), ("c2", "a0"), ("c3", "c1")):
        await client.enqueue(flyte.task(ActionId("p", "d", "r1", name), parent))
    await report(client, Phase.SUCCEEDED, ActionId("p", "d", "r1", "c2"))
    await report(client, Phase.RECOVERED, ActionId("p", "d", "r1", "c3"))


async def test_actions_are_filtered(asker: RunsAsker, client: ActionsClient) -> None:
    await tree(client)
    # As the SDK writes them: one phase is a list of its digits.
    for wanted, names in (
        (F(function=F.EQUAL, field="phase", values="5"), {"c2", "t1"}),
        (F(function=F.EQUAL, field="phase", values="10"), {"c3"}),
        (F(function=F.VALUE_IN, field="phase", values=["5", "10"]), {"c2", "c3", "t1"}),
        (F(function=F.EQUAL, field="parent_name", values=["c1"]), {"c3"}),
        (F(function=F.EQUAL, field="action_type", values=["3"]), {"w1"}),
        (F(function=F.EQUAL, field="name", values=["c1"]), {"c1"}),
        (
            F(
                function=F.GREATER_THAN_OR_EQUAL,
                field="created_at",
                values=["2026-11-24T00:00:00+00:00"],
            ),
            {"a0", "c1", "c2", "c3", "w1"},
        ),
    ):
        assert set(await listed(asker, filters=[wanted])) == names
    with pytest.raises(Failed, match="there is no field") as caught:
        await listed(asker, filters=[F(function=F.EQUAL, field="colour", values=["red"])])
    assert caught.value.code == "invalid_argument"


async def test_actions_come_sorted_and_in_pages(asker: RunsAsker, client: ActionsClient) -> None:
    await tree(client)
    ascending = list_pb2.Sort(key="name", direction=list_pb2.Sort.ASCENDING)
    names = ["a0", "c1", "c2", "c3", "t1", "w1"]
    for limit in (1, 2, 4, 100):
        assert await listed(asker, limit=limit, sort_by=ascending) == names
    descending = list_pb2.Sort(key="name", direction=list_pb2.Sort.DESCENDING)
    assert await listed(asker, limit=4, sort_by=descending) == names[::-1]


async def test_a_page_is_told_as_it_is_by_then(asker: RunsAsker, client: ActionsClient) -> None:
    await tree(client)
    sort_by = list_pb2.Sort(key="name", direction=list_pb2.Sort.ASCENDING)
    first = await asker(
        "ListActions",
        pb.ListActionsRequest(
            run_id=run_id("r1"), request=list_pb2.ListRequest(limit=1, sort_by=sort_by)
        ),
    )
    await report(client, Phase.RUNNING, CHILD)
    await delete(client, client.keys.task_action(ActionId("p", "d", "r1", "c2")))
    second = await asker(
        "ListActions",
        pb.ListActionsRequest(
            run_id=run_id("r1"),
            request=list_pb2.ListRequest(limit=10, sort_by=sort_by, token=first.token),
        ),
    )
    assert [each.id.name for each in second.actions] == ["c1", "c3", "t1", "w1"]
    assert second.actions[0].status.phase == ActionPhase.ACTION_PHASE_RUNNING
