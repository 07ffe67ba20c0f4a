"""Every method and every code, asked by grpcio and by Connect over HTTP/1.1 alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb
from google.protobuf.message import Message

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase
from etcd_actions.model import ErrorState
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from tests.server.clients import (
    SENTINEL,
    Client,
    ConnectClient,
    Failed,
    GrpcClient,
    Reading,
    State,
    short,
)
from tests.server.conftest import LOOPBACK
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually

ROOT = ActionId("p", "d", "r1", "a0", "o")
CHILD = ActionId("p", "d", "r1", "c1", "o")
OTHER = ActionId("p", "d", "r1", "c2", "o")


MakeClient = Callable[[str], "GrpcClient | ConnectClient"]
CLIENTS: dict[str, MakeClient] = {
    "grpc": GrpcClient,
    "connect": ConnectClient,
    "connect-json": partial(ConnectClient, codec="json"),
    "connect-gzip": partial(ConnectClient, compress=True),
}


@pytest.fixture(params=first_everyday(CLIENTS, 2))
def asker(request: pytest.FixtureRequest, server: ActionsServer) -> Iterator[Client]:
    client = CLIENTS[request.param](str(server.address))
    yield client
    client.close()


async def ask(asker: Client, method: str, request: Message) -> Message:
    return await trio.to_thread.run_sync(asker.call, method, request)


def enqueue(action: pb.Action) -> pb.EnqueueRequest:
    return pb.EnqueueRequest(action=action)


async def test_each_method_does_its_work(asker: Client, client: ActionsClient) -> None:
    root, child = flyte.identifier(ROOT), flyte.identifier(CHILD)
    for _ in range(2):
        await ask(asker, "Enqueue", enqueue(flyte.task(ROOT)))
    await ask(asker, "Enqueue", enqueue(flyte.condition(CHILD, "a0")))
    await ask(
        asker,
        "Update",
        pb.UpdateRequest(action_id=root, attempt=1, status=flyte.status(Phase.RUNNING)),
    )
    await ask(
        asker,
        "Signal",
        pb.SignalRequest(action_id=child, parent_action_name="a0", value=flyte.boolean(True)),
    )
    assert (await client.get_task_action(ROOT)).phase is Phase.RUNNING
    assert (await client.get_task_action(CHILD)).phase is Phase.SUCCEEDED
    await ask(asker, "Abort", pb.AbortRequest(action_id=root, reason="enough"))
    ended = await client.get_task_action(ROOT)
    assert ended.phase is Phase.ABORTED


def _bad_type() -> pb.Action:
    action = flyte.condition(CHILD, "a0")
    action.condition.type.simple = 9
    return action


def _unset() -> pb.Action:
    action = flyte.task(CHILD, "a0")
    action.ClearField("task")
    return action


_NOBODY = flyte.identifier(ActionId("p", "d", "r1", "none", "o"))
REFUSALS: dict[str, tuple[str, Message, str, str]] = {
    "no-action": ("Enqueue", pb.EnqueueRequest(), "invalid_argument", "action"),
    "no-spec": ("Enqueue", enqueue(_unset()), "invalid_argument", "spec"),
    "bad-type": ("Enqueue", enqueue(_bad_type()), "invalid_argument", "type"),
    "too-long": (
        "Enqueue",
        enqueue(flyte.task(ActionId("p", "d", "r1", "x" * 31, "o"), "a0")),
        "invalid_argument",
        "name",
    ),
    "other-content": (
        "Enqueue",
        enqueue(flyte.task(OTHER, "a0", name="g")),
        "already_exists",
        "r1-c2",
    ),
    "another-projects": (
        "Enqueue",
        enqueue(flyte.task(ActionId("q", "d", "r1", "a0", "o"))),
        "failed_precondition",
        "holds task a0 of run p/d/r1",
    ),
    "no-parent": ("Enqueue", enqueue(flyte.task(CHILD, "none")), "aborted", "parent"),
    "update-nothing": ("Update", pb.UpdateRequest(), "invalid_argument", "action_id"),
    "update-no-status": (
        "Update",
        pb.UpdateRequest(action_id=flyte.identifier(ROOT), attempt=1),
        "invalid_argument",
        "status",
    ),
    "update-nobody": (
        "Update",
        pb.UpdateRequest(action_id=_NOBODY, attempt=1, status=flyte.status(Phase.RUNNING)),
        "not_found",
        "none",
    ),
    "update-no-attempt": (
        "Update",
        pb.UpdateRequest(
            action_id=flyte.identifier(ROOT), status=flyte.status(Phase.RUNNING, attempts=0)
        ),
        "invalid_argument",
        "attempt",
    ),
    "abort-nothing": ("Abort", pb.AbortRequest(), "invalid_argument", "action_id"),
    "abort-nobody": ("Abort", pb.AbortRequest(action_id=_NOBODY), "not_found", "none"),
    "signal-nobody": (
        "Signal",
        pb.SignalRequest(action_id=_NOBODY, value=flyte.boolean(True)),
        "not_found",
        "none",
    ),
    "signal-no-value": (
        "Signal",
        pb.SignalRequest(action_id=flyte.identifier(OTHER)),
        "invalid_argument",
        "value",
    ),
    "signal-a-task": (
        "Signal",
        pb.SignalRequest(action_id=flyte.identifier(OTHER), value=flyte.boolean(True)),
        "failed_precondition",
        "condition",
    ),
}


async def test_refusals_have_the_code_that_is_meant(
    asker: Client, client: ActionsClient, subtests: pytest.Subtests
) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.task(OTHER, "a0"))
    for case, (method, request, code, word) in REFUSALS.items():
        with subtests.test(case):
            with pytest.raises(Failed) as caught:
                await ask(asker, method, request)
            assert caught.value.code == code
            assert word in caught.value.message


async def test_an_update_of_what_is_over_is_refused(asker: Client, client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.put_status(ROOT, 1, ActionStatus(Phase.SUCCEEDED))
    late = pb.UpdateRequest(
        action_id=flyte.identifier(ROOT), attempt=1, status=flyte.status(Phase.RUNNING)
    )
    with pytest.raises(Failed) as caught:
        await ask(asker, "Update", late)
    assert caught.value.code == "failed_precondition"


async def test_an_enqueue_below_an_abort_is_aborted(asker: Client, client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.abort_action(ROOT)
    with pytest.raises(Failed) as caught:
        await ask(asker, "Enqueue", enqueue(flyte.task(CHILD, "a0")))
    assert caught.value.code == "aborted"


async def test_a_stream_begins_with_a_snapshot_and_goes_on(
    asker: Client, client: ActionsClient
) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.task(CHILD, "a0"))
    await client.enqueue(flyte.condition(OTHER, "a0"))
    request = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(ROOT))
    async with trio.open_nursery() as nursery:
        reading = Reading(await trio.to_thread.run_sync(asker.stream, request))
        nursery.start_soon(reading.run)
        snapshot = await reading.until(lambda state: state == SENTINEL)
        # The open condition is not told.
        assert snapshot == [State("a0", 0), State("c1", 0), SENTINEL]
        await client.put_status(
            CHILD,
            1,
            ActionStatus(Phase.FAILED),
            error=ErrorState(code="ValueError", kind="USER", message="no"),
        )
        update = (await reading.next()).action_update
        assert (update.action_id, update.phase) == (flyte.identifier(CHILD), Phase.FAILED)
        assert (update.error.code, update.error.message, update.error.kind) == (
            "ValueError",
            "no",
            1,
        )
        await client.signal(OTHER, flyte.boolean(True))
        ended = await reading.until(lambda state: state.name == "c2")
        assert ended[-1].phase == Phase.SUCCEEDED
        await client.put_status(ROOT, 1, ActionStatus(Phase.RUNNING))
        assert (await reading.until(lambda state: state.name == "a0"))[-1].phase == Phase.RUNNING
        reading.close()
        nursery.cancel_scope.cancel()


async def test_an_unnamed_parent_is_an_invalid_argument(asker: Client) -> None:
    for request in (
        pb.WatchForUpdatesRequest(),
        pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(ROOT)),
    ):
        if request.HasField("parent_action_id"):
            request.parent_action_id.run.ClearField("project")
        reading = Reading(await trio.to_thread.run_sync(asker.stream, request))
        await reading.run()
        assert isinstance(reading.error, Failed)
        assert reading.error.code == "invalid_argument"
        assert "action_id" in reading.error.message


async def test_a_client_that_leaves_ends_its_stream_at_once(
    asker: Client, client: ActionsClient, server: ActionsServer
) -> None:
    await client.enqueue(flyte.task(ROOT))
    request = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(ROOT))
    async with trio.open_nursery() as nursery:
        reading = Reading(await trio.to_thread.run_sync(asker.stream, request))
        nursery.start_soon(reading.run)
        await reading.until(lambda state: state == SENTINEL)
        assert server.statistics().open_streams == 1
        reading.close()
        await eventually(lambda: server.statistics().open_streams == 0)
        assert client.statistics().subscriptions == 0
        nursery.cancel_scope.cancel()


async def crash() -> None:
    raise RuntimeError("a sibling")


@pytest.mark.parametrize("how", ["left", "crash", "cancelled"])
@pytest.mark.parametrize("kind", first_everyday(["grpc", "connect"]))
async def test_streams_end_without_an_error_however_the_service_ends(
    client: ActionsClient, how: str, kind: str
) -> None:
    """With the code CANCELED Flyte's SDK would wait for ever."""
    await client.enqueue(flyte.task(ROOT))
    request = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(ROOT))
    async with trio.open_nursery() as readers:
        reading: Reading | None = None
        try:
            async with (
                trio.open_nursery() as nursery,
                open_actions_server(client, ServerSettings(bind=LOOPBACK)) as server,
            ):
                asker = CLIENTS[kind](str(server.address))
                reading = Reading(await trio.to_thread.run_sync(asker.stream, request))
                readers.start_soon(reading.run)
                await reading.until(lambda state: state == SENTINEL)
                if how == "crash":
                    nursery.start_soon(crash)
                    await trio.sleep_forever()
                if how == "cancelled":
                    nursery.cancel_scope.cancel()
                    await trio.sleep_forever()
        except* RuntimeError:
            assert how == "crash"
        assert reading is not None
        await reading.ended()
        assert reading.error is None


async def test_a_silent_stream_gets_signs_of_life(client: ActionsClient) -> None:
    settings = ServerSettings(bind=LOOPBACK, keepalive=0.05)
    async with open_actions_server(client, settings) as server:
        asker = ConnectClient(str(server.address))
        request = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(ROOT))
        async with trio.open_nursery() as nursery:
            reading = Reading(await trio.to_thread.run_sync(asker.stream, request))
            nursery.start_soon(reading.run)
            assert [short(await reading.next()) for _ in range(4)] == [SENTINEL] * 4
            reading.close()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["grpc", "connect"])
async def test_a_call_that_outlasts_the_grace_is_told_to_try_again(
    client: ActionsClient, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = trio.Event()

    async def hang(*_: object, **__: object) -> None:
        begun.set()
        await trio.sleep_forever()

    monkeypatch.setattr(client, "abort_action", hang)
    request = pb.AbortRequest(action_id=flyte.identifier(ROOT))
    caught: list[Failed] = []
    async with trio.open_nursery() as nursery:

        async def call(asker: Client) -> None:
            try:
                await ask(asker, "Abort", request)
            except Failed as error:
                caught.append(error)

        settings = ServerSettings(bind=LOOPBACK, grace=1.0)
        async with open_actions_server(client, settings) as server:
            nursery.start_soon(call, CLIENTS[kind](str(server.address)))
            await begun.wait()
    assert [error.code for error in caught] == ["unavailable"]


@pytest.mark.parametrize("kind", first_everyday(CLIENTS))
async def test_a_call_that_takes_too_long_is_told_so(
    client: ActionsClient, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(client, "abort_action", hang)
    settings = ServerSettings(bind=LOOPBACK, request_timeout=0.1)
    async with open_actions_server(client, settings) as server:
        asker = CLIENTS[kind](str(server.address))
        with pytest.raises(Failed) as caught:
            await ask(asker, "Abort", pb.AbortRequest(action_id=flyte.identifier(ROOT)))
        asker.close()
    assert caught.value.code == "unavailable"


async def test_a_failure_of_ours_is_internal_and_says_nothing(
    asker: Client, client: ActionsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(client, "abort_action", fail)
    with pytest.raises(Failed) as caught:
        await ask(asker, "Abort", pb.AbortRequest(action_id=flyte.identifier(ROOT)))
    assert caught.value.code == "internal"
    assert "secret" not in caught.value.message
