"""Lists of runs over the wire, from an index that a real etcd feeds."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from datetime import timedelta

import msgspec
import pytest
import trio
from flyteidl2.auth import identity_pb2
from flyteidl2.common import identifier_pb2 as names_pb
from flyteidl2.common.list_pb2 import Filter, ListRequest, Sort
from flyteidl2.task.task_definition_pb2 import TaskIdentifier, TaskName
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions import ActionId, ActionsClient, RunId
from etcd_actions.etcd.api import Etcd
from etcd_actions.runs.run_entry import Tasks, read_entry
from etcd_actions.runs.run_record import RunStatus, encode
from etcd_actions.server import ActionsServer
from etcd_actions.server.front import action_views, run_views
from etcd_actions.server.front.run_lists import paused_runs
from etcd_actions.server.front.run_messages import RunMessages
from tests.pipeline.sharding import RUNS as SHARDED_RUNS
from tests.pipeline.sharding import sharing, until_owned
from tests.server.clients import Failed
from tests.server.front.calling import Caller, Reading
from tests.server.front.conftest import Lists
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.flyte_services import IDENTITY, RUNS
from tests.support.runs import BEGIN, key_of, record, status
from tests.support.waiting import eventually_holds

pytestmark = pytest.mark.memory(jumps=False)

PROJECT = names_pb.ProjectIdentifier(organization="any", name="p", domain="d")


async def listed(
    caller: Caller, request: pb.ListRunsRequest | None = None, **more: object
) -> list[str]:
    if request is None:
        request = pb.ListRunsRequest(project_id=PROJECT, request=ListRequest(**more))
    answer = await caller.call(RUNS, "ListRuns", request, pb.ListRunsResponse)
    return [run.action.id.run.name for run in answer.runs]


async def test_a_run_has_all_that_lists_show(caller: Caller, lists: Lists) -> None:
    ended = status(6, ended=90, attempts=3)
    await lists.put(record("a", at=30, status=ended, creator="me", labels={"team": "ml"}))
    request = pb.ListRunsRequest(project_id=PROJECT)
    (run,) = (await caller.call(RUNS, "ListRuns", request, pb.ListRunsResponse)).runs
    assert dict(run.labels) == {"team": "ml"}
    action = run.action
    assert (action.id.name, action.id.run.org, action.id.run.project) == ("a0", "o", "p")
    task = action.metadata.task
    assert (task.id.name, task.id.version, task.short_name) == ("env.main", "v1", "main")
    assert (task.task_type, action.metadata.environment_name) == ("python", "env")
    assert action.metadata.executed_by.user.id.subject == "me"
    assert (action.status.phase, action.status.attempts) == (6, 3)
    # From its creation, as everywhere: its duration includes the queue.
    assert action.status.start_time.ToDatetime(BEGIN.tzinfo) == BEGIN + timedelta(seconds=30)
    assert action.status.duration_ms == 60_000


def test_a_run_is_shown_by_one_message() -> None:
    """Lists and details of an expired run, which both have the record only."""
    recorded = status(6, ended=90, attempts=3)
    for each in (record("a", creator="me"), record("b", status=recorded, labels={"team": "ml"})):
        run = msgspec.structs.replace(each, recovered_from="earlier", short_name="")
        root = ActionId(run.project, run.domain, run.name, "a0")
        shown = action_views.run_message(None, run, root, run.org)
        assert shown == run_views.run_message(run)
        assert shown.action.status.attempts >= 1


async def test_a_run_of_which_nothing_was_recorded_is_queued(caller: Caller, lists: Lists) -> None:
    await lists.put(record("a"), record("b", status=RunStatus()))
    queued = Filter(function=Filter.EQUAL, field="phase", values=["QUEUED"])
    assert await listed(caller, filters=[queued]) == ["b", "a"]


async def test_runs_without_a_creator_are_those_of_who_showed_no_token(
    caller: Caller, lists: Lists
) -> None:
    await lists.put(record("a", at=1), record("b", at=2, creator="me"))
    answer = await caller.call(
        IDENTITY, "UserInfo", identity_pb2.UserInfoRequest(), identity_pb2.UserInfoResponse
    )
    for field in ("created_by", "creator"):
        mine = Filter(function=Filter.EQUAL, field=field, values=[answer.subject])
        assert await listed(caller, filters=[mine]) == ["a"]


async def test_scopes(caller: Caller, lists: Lists) -> None:
    await lists.put(
        record("a", at=1),
        record("b", at=2, version="v2"),
        record("c", at=3, task="env.other"),
        record("d", at=4, project="q"),
    )
    name = TaskName(project="p", domain="d", name="env.main")
    version = TaskIdentifier(project="p", domain="d", name="env.main", version="v2")
    assert await listed(caller) == ["c", "b", "a"]
    assert await listed(caller, pb.ListRunsRequest(org="any")) == ["d", "c", "b", "a"]
    assert await listed(caller, pb.ListRunsRequest(task_name=name)) == ["b", "a"]
    assert await listed(caller, pb.ListRunsRequest(task_id=version)) == ["b"]
    trigger = names_pb.TriggerName(project="p", domain="d", name="t", task_name="env.main")
    assert await listed(caller, pb.ListRunsRequest(trigger_name=trigger)) == []


async def test_paused_runs_are_those_with_a_condition_that_waits(
    caller: Caller, lists: Lists
) -> None:
    waiting = record("waiting", at=1, status=status(4))
    await lists.put(waiting, record("root", at=2, status=status(9)), record("on", status=status(4)))
    lists.paused.add(key_of(lists.keys, waiting))
    request = pb.ListRunsRequest(project_id=PROJECT, paused_actions_only=True)
    assert await listed(caller, request) == ["root", "waiting"]


async def test_a_condition_pauses_its_run_until_it_has_its_value(
    client: ActionsClient, lists: Lists
) -> None:
    run = record("r1")
    paused = paused_runs(client, lists.keys)
    root, condition = ActionId("p", "d", "r1", "a0", "o"), ActionId("p", "d", "r1", "c1", "o")
    await client.enqueue(flyte.task(root))

    async def waits() -> bool:
        return await paused(()) == {key_of(lists.keys, run)}

    async def goes_on() -> bool:
        return not await paused(())

    assert await goes_on()
    await client.enqueue(flyte.condition(condition, "a0"))
    await eventually_holds(waits)
    await client.signal(condition, flyte.boolean(True))
    await eventually_holds(goes_on)


async def test_each_process_with_shards_finds_all_paused_runs(
    etcd: Etcd, prefix: bytes, lists: Lists
) -> None:
    """It reads the open runs of the shards of others; those that ended are not read.

    Records that another client wrote, with projects that no run can have, harm no other.
    """
    await lists.put(record("rodd1", project=""), record("rodd2", project="a/b"))
    await lists.put(
        *(record(run) for run in SHARDED_RUNS), record("ended", status=status(5, ended=9))
    )
    entries = [entry for each in lists.index.portions(None, descending=True) for entry in each]
    async with sharing(etcd, prefix) as one, sharing(etcd, prefix) as other:
        await until_owned(4, one, other)
        for run in SHARDED_RUNS:
            await one.enqueue(flyte.task(ActionId("p", "d", run, "a0")))
        for run in SHARDED_RUNS[1:]:
            await one.enqueue(flyte.condition(ActionId("p", "d", run, "c1"), "a0"))
        await one.signal(ActionId("p", "d", SHARDED_RUNS[1], "c1"), flyte.boolean(True))
        expected = {key_of(lists.keys, record(run)) for run in SHARDED_RUNS[2:]}

        async def all_find_all() -> bool:
            found = [await paused_runs(each, lists.keys)(entries) for each in (one, other)]
            return found == [expected, expected]

        await eventually_holds(all_find_all)
        watched = [
            {run for run in SHARDED_RUNS if each.watches(RunId("p", "d", run))}
            for each in (one, other)
        ]
        assert all(watched)
        assert not set.intersection(*watched)


@pytest.mark.parametrize("key", first_everyday(["created_at", "task_name", "ended_at"]))
@pytest.mark.parametrize("direction", [Sort.ASCENDING, Sort.DESCENDING])
async def test_pages_follow_each_other(
    caller: Caller, lists: Lists, key: str, direction: Sort.Direction
) -> None:
    runs = [record(f"r{at}", at=at, status=status(5, ended=at // 2)) for at in range(7)]
    await lists.put(*runs)
    request = ListRequest(limit=3, sort_by=Sort(key=key, direction=direction))
    found: list[str] = []
    pages = 0
    while True:
        asked = pb.ListRunsRequest(project_id=PROJECT, request=request)
        answer = await caller.call(RUNS, "ListRuns", asked, pb.ListRunsResponse)
        pages += 1
        found += [run.action.id.run.name for run in answer.runs]
        if not answer.token:
            break
        request.token = answer.token
    expected = [run.name for run in runs]
    assert found == (expected if direction == Sort.ASCENDING else expected[::-1])
    assert pages == 3


UNUSABLE = {
    "scope_by: it is missing": pb.ListRunsRequest(),
    "project_id.domain: it is missing": pb.ListRunsRequest(
        project_id=names_pb.ProjectIdentifier(name="p")
    ),
    "task_id.version: it is missing": pb.ListRunsRequest(
        task_id=TaskIdentifier(project="p", domain="d", name="n")
    ),
    "request.filters[0].field: there is no field 'state'": pb.ListRunsRequest(
        project_id=PROJECT, request=ListRequest(filters=[Filter(field="state", values=["x"])])
    ),
    "request.token: it is not of this list": pb.ListRunsRequest(
        project_id=PROJECT, request=ListRequest(token="50")
    ),
}


@pytest.mark.parametrize(("said", "request_"), first_everyday(UNUSABLE.items(), 2), ids=UNUSABLE)
async def test_what_is_unusable_is_named(
    caller: Caller, said: str, request_: pb.ListRunsRequest
) -> None:
    with pytest.raises(Failed) as caught:
        await listed(caller, request_)
    assert caught.value.code == "invalid_argument"
    assert caught.value.message.startswith(said)


async def news(reading: Reading[pb.WatchRunsResponse]) -> list[tuple[str, int]]:
    """The next runs that a stream has."""
    while True:
        message = await reading.next()
        assert message is not None
        if message.runs:
            return [(run.action.id.run.name, run.action.status.phase) for run in message.runs]


async def test_a_watch_sends_what_is_there_and_then_each_change(
    caller: Caller, lists: Lists
) -> None:
    await lists.put(record("a", at=1), record("b", at=2), record("c", project="q"))
    request = pb.WatchRunsRequest(project_id=PROJECT)
    with caller.stream(RUNS, "WatchRuns", request, pb.WatchRunsResponse) as reading:
        assert await news(reading) == [("b", 1), ("a", 1)]
        await lists.put(record("a", at=1, status=status(5)))
        assert await news(reading) == [("a", 5)]
        await lists.put(record("other", project="q"), record("new"))
        assert await news(reading) == [("new", 1)]
        # Of silence it is told, too.
        message = await reading.next()
        assert message == pb.WatchRunsResponse()


async def test_a_run_is_encoded_once_a_state_for_all_lists_and_streams(
    caller: Caller, lists: Lists
) -> None:
    await lists.put(record("a", at=1), record("b", at=2))
    request = pb.WatchRunsRequest(project_id=PROJECT)
    with ExitStack() as stack:
        readings = [
            stack.enter_context(caller.stream(RUNS, "WatchRuns", request, pb.WatchRunsResponse))
            for _ in range(5)
        ]
        for reading in readings:
            assert await news(reading) == [("b", 1), ("a", 1)]
        assert await listed(caller) == ["b", "a"]
        assert lists.messages.encoded == 2
        await lists.put(record("a", at=1, status=status(5)))
        for reading in readings:
            assert await news(reading) == [("a", 5)]
        assert await listed(caller) == ["b", "a"]
        assert lists.messages.encoded == 3


def test_what_is_kept_of_encoded_runs_is_bounded() -> None:
    messages = RunMessages(most_bytes=5_000)
    tasks = Tasks()
    entries = [
        read_entry(name.encode(), encode(record(name)), 1, tasks)
        for name in (f"r{number}" for number in range(20))
    ]
    page = messages.listed(entries, "more")
    assert [run.action.id.run.name for run in page.runs] == [each.name for each in entries]
    assert page.token == "more"
    assert 3_000 < messages.kept_bytes <= 5_000
    # The newest are kept, the others are encoded again.
    messages.watched(entries[-2:])
    assert messages.encoded == 20
    assert messages.watched(entries[:1]).runs[0].action.id.run.name == "r0"
    assert messages.encoded == 21


async def test_a_watch_of_a_version_leaves_others_out(caller: Caller, lists: Lists) -> None:
    version = TaskIdentifier(project="p", domain="d", name="env.main", version="v2")
    request = pb.WatchRunsRequest(task_id=version)
    await lists.put(record("a", version="v2"))
    with caller.stream(RUNS, "WatchRuns", request, pb.WatchRunsResponse) as reading:
        assert await news(reading) == [("a", 1)]
        await lists.put(record("b"), record("c", version="v2"))
        assert await news(reading) == [("c", 1)]


async def test_a_watch_is_not_silent_while_only_runs_change_that_it_leaves_out(
    caller: Caller, lists: Lists
) -> None:
    version = TaskIdentifier(project="p", domain="d", name="env.main", version="v2")
    request = pb.WatchRunsRequest(task_id=version)
    await lists.put(record("a", version="v2"))

    async def change_another() -> None:
        for attempts in itertools.count(1):
            await lists.put(record("b", status=status(4, attempts=attempts)))

    with caller.stream(RUNS, "WatchRuns", request, pb.WatchRunsResponse) as reading:
        assert await news(reading) == [("a", 1)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change_another)
            for _ in range(3):
                assert await reading.next() == pb.WatchRunsResponse()
            nursery.cancel_scope.cancel()


async def test_a_watch_ends_without_an_error_when_the_service_ends(
    caller: Caller, lists: Lists, front_server: ActionsServer
) -> None:
    await lists.put(record("a"))
    request = pb.WatchRunsRequest(project_id=PROJECT)
    with caller.stream(RUNS, "WatchRuns", request, pb.WatchRunsResponse) as reading:
        assert await news(reading) == [("a", 1)]
        front_server.drain()
        while (message := await reading.next()) is not None:
            assert not message.runs


async def test_groups_are_clearly_not_served(caller: Caller) -> None:
    request = pb.WatchGroupsRequest(project_id=PROJECT)
    with (
        caller.stream(RUNS, "WatchGroups", request, pb.WatchGroupsResponse) as reading,
        pytest.raises(Failed, match=r"RunService\.WatchGroups: .* use ListRuns") as caught,
    ):
        await reading.next()
    assert caught.value.code == "unimplemented"
