"""What a call costs the event loop and etcd, and how one without a client ends."""

from __future__ import annotations

import socket
import struct

import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId, ActionsClient
from etcd_actions.server import ActionsServer
from tests.support import flyte
from tests.support.waiting import eventually
from tests.web.listeners import connect, h2_client, request
from tests.web.test_cost import Counting

pytestmark = pytest.mark.memory(jumps=False)

ENQUEUE = "/flyteidl2.actions.ActionsService/Enqueue"
CHECK = "/grpc.health.v1.Health/Check"
PROTO = "content-type: application/proto"


async def test_a_call_has_one_task_and_few_steps(server: ActionsServer) -> None:
    empty = request(CHECK, PROTO, "content-length: 0", method="POST")
    calls = 20
    async with await connect((server.address.host, server.address.port)) as stream:
        await stream.send_all(empty)
        await stream.receive_some()
        counting = Counting()
        trio.lowlevel.add_instrument(counting)
        for _ in range(calls):
            await stream.send_all(empty)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        trio.lowlevel.remove_instrument(counting)
    assert counting.tasks == calls
    assert counting.steps <= 2 * calls + 5


async def test_calls_that_arrive_together_are_written_together(
    client: ActionsClient, server: ActionsServer
) -> None:
    together = 32
    before = client.group_commit_statistics()
    async with h2_client((server.address.host, server.address.port)) as asker:
        await asker.until(lambda: asker.connection.outbound_flow_control_window > 2**16)
        for number in range(together):
            action = flyte.task(ActionId("p", "d", f"r{number}", "a0", "o"))
            message = pb.EnqueueRequest(action=action).SerializeToString()
            stream = asker.connection.get_next_available_stream_id()
            head = [
                (":method", "POST"),
                (":path", ENQUEUE),
                (":scheme", "http"),
                (":authority", "localhost"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ]
            asker.connection.send_headers(stream, head)
            framed = b"\0" + len(message).to_bytes(4, "big") + message
            asker.connection.send_data(stream, framed, end_stream=True)
        await asker.flush()
        await asker.until(lambda: len(asker.ended) == together)
    after = client.group_commit_statistics()
    assert after.members - before.members >= together
    assert after.groups - before.groups <= 4


async def test_a_call_whose_client_leaves_is_ended(
    client: ActionsClient, server: ActionsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = trio.Event(), trio.Event()

    async def wait(*_: object, **__: object) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    monkeypatch.setattr(client, "enqueue", wait)
    body = pb.EnqueueRequest(action=flyte.task(ActionId("p", "d", "r", "a0", "o")))
    sent = body.SerializeToString()
    head = request(ENQUEUE, PROTO, f"content-length: {len(sent)}", method="POST")
    stream = await connect((server.address.host, server.address.port))
    await stream.send_all(head + sent)
    with trio.fail_after(20):
        await begun.wait()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(stream)
        await ended.wait()
    await eventually(lambda: server.connections().open_connections == 0)
    assert server.statistics().calls == {("Enqueue", "unavailable"): 1}
    assert client.containment.failures == {}
