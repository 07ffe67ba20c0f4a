"""Over the wire: a namespace for each project and domain, by gRPC and by Connect alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb
from google.protobuf.message import Message

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from tests.server.clients import SENTINEL, Client, ConnectClient, Failed, GrpcClient, Reading, State
from tests.server.conftest import LOOPBACK
from tests.support import flyte

pytestmark = pytest.mark.memory(jumps=False)

ONE = ActionId("one", "d", "r1", "a0", "o")
TWO = ActionId("two", "d", "r1", "a0", "o")

CLIENTS: dict[str, Callable[[str], GrpcClient | ConnectClient]] = {
    "grpc": GrpcClient,
    "connect": ConnectClient,
}


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(
        etcd, prefix=prefix, namespace_template="{project}-{domain}"
    ) as client:
        await client.start_watching()
        yield client


@pytest.fixture
async def server(client: ActionsClient) -> AsyncIterator[ActionsServer]:
    async with open_actions_server(client, ServerSettings(bind=LOOPBACK)) as server:
        yield server


@pytest.fixture(params=CLIENTS)
async def asker(request: pytest.FixtureRequest, server: ActionsServer) -> AsyncIterator[Client]:
    client = CLIENTS[request.param](str(server.address))
    yield client
    client.close()


async def ask(asker: Client, method: str, request: Message) -> Message:
    return await trio.to_thread.run_sync(asker.call, method, request)


async def test_two_projects_have_runs_of_one_name(asker: Client, client: ActionsClient) -> None:
    """Each stream tells of its own run, and each method changes its own."""
    for root in (ONE, TWO):
        await ask(asker, "Enqueue", pb.EnqueueRequest(action=flyte.task(root)))
        child = flyte.task(ActionId(root.project, "d", "r1", f"c-{root.project}", "o"), "a0")
        await ask(asker, "Enqueue", pb.EnqueueRequest(action=child))
    request = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(TWO))
    async with trio.open_nursery() as nursery:
        reading = Reading(await trio.to_thread.run_sync(asker.stream, request))
        nursery.start_soon(reading.run)
        snapshot = await reading.until(lambda state: state == SENTINEL)
        assert snapshot == [State("a0", 0), State("c-two", 0), SENTINEL]
        for root, phase in ((ONE, Phase.RUNNING), (TWO, Phase.SUCCEEDED)):
            update = pb.UpdateRequest(
                action_id=flyte.identifier(root), attempt=1, status=flyte.status(phase)
            )
            await ask(asker, "Update", update)
        assert (await reading.until(lambda state: state.name == "a0"))[-1].phase == Phase.SUCCEEDED
        reading.close()
        nursery.cancel_scope.cancel()
    await ask(asker, "Abort", pb.AbortRequest(action_id=flyte.identifier(ONE)))
    assert (await client.get_task_action(ONE)).phase is Phase.ABORTED
    other = await client.get_task_action(ActionId("two", "d", "r1", "c-two", "o"))
    assert other.phase is Phase.UNSPECIFIED


async def test_a_project_without_a_namespace_is_an_invalid_argument(
    asker: Client, client: ActionsClient
) -> None:
    bad = ActionId("Not_one", "d", "r1", "a0", "o")
    for method, request in (
        ("Enqueue", pb.EnqueueRequest(action=flyte.task(bad))),
        ("Abort", pb.AbortRequest(action_id=flyte.identifier(bad))),
    ):
        with pytest.raises(Failed) as caught:
            await ask(asker, method, request)
        assert caught.value.code == "invalid_argument"
        assert "action_id.run.project" in caught.value.message
    await client.enqueue(flyte.task(ONE))
    await client.put_status(ONE, 1, ActionStatus(Phase.RUNNING))
