"""What is unexpected in a call ends that call, and its client is told INTERNAL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId, ActionsClient
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.rate_limit import RateLimit
from etcd_actions.server.service import ActionsService
from etcd_actions.web import HttpLimits
from tests._internal.test_containment import UNEXPECTED
from tests.server.clients import SENTINEL, ConnectClient, Failed, GrpcClient, Reading
from tests.server.conftest import LOOPBACK
from tests.support import flyte
from tests.support.waiting import eventually
from tests.web.listeners import connect, h2_client, rest

pytestmark = pytest.mark.memory(jumps=False)

ROOT = ActionId("p", "d", "r1", "a0", "o")
KINDS = (GrpcClient, ConnectClient)
Kind = Callable[[str], GrpcClient | ConnectClient]
WATCH = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(ROOT))
ENQUEUE = pb.EnqueueRequest(action=flyte.task(ROOT))


async def enqueue(asker: GrpcClient | ConnectClient) -> None:
    await trio.to_thread.run_sync(asker.call, "Enqueue", ENQUEUE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", UNEXPECTED)
async def test_an_exception_in_a_call_ends_it_alone(
    client: ActionsClient,
    server: ActionsServer,
    kind: Kind,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    asker = kind(str(server.address))
    async with trio.open_nursery() as nursery:
        reading = Reading(await trio.to_thread.run_sync(asker.stream, WATCH))
        nursery.start_soon(reading.run)
        await reading.until(lambda state: state == SENTINEL)
        with monkeypatch.context() as patch:
            patch.setattr(client, "enqueue", fail)
            with pytest.raises(Failed) as caught:
                await enqueue(asker)
        assert caught.value.code == "internal"
        await enqueue(asker)
        # The stream beside it, on the same channel, goes on.
        await reading.until(lambda state: state.name == "a0")
        reading.close()
        nursery.cancel_scope.cancel()
    assert client.containment.failures == {"request": 1}
    asker.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", UNEXPECTED)
async def test_an_exception_in_a_stream_ends_it_alone(
    client: ActionsClient,
    server: ActionsServer,
    kind: Kind,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> AsyncIterator[Any]:
        raise error
        yield

    monkeypatch.setattr(ActionsService, "watch_for_updates", fail)
    async with open_actions_server(client, ServerSettings(bind=LOOPBACK)) as other:
        asker = kind(str(other.address))
        reading = Reading(await trio.to_thread.run_sync(asker.stream, WATCH))
        await reading.run()
        assert isinstance(reading.error, Failed)
        assert reading.error.code == "internal"
        await enqueue(asker)
        asker.close()
    assert client.containment.failures == {"request": 1}
    assert server.statistics().open_streams == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", UNEXPECTED)
async def test_an_exception_at_the_admission_ends_its_call_alone(
    client: ActionsClient,
    server: ActionsServer,
    kind: Kind,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    asker = kind(str(server.address))
    with monkeypatch.context() as patch:
        patch.setattr(RateLimit, "take", fail)
        with pytest.raises(Failed) as caught:
            await enqueue(asker)
    assert caught.value.code == "internal"
    await enqueue(asker)
    assert client.containment.failures == {"request": 1}
    asker.close()


@pytest.mark.slow
async def test_more_streams_of_one_channel_than_a_priority_tree_has_room_for(
    client: ActionsClient, server: ActionsServer
) -> None:
    many = 1_100
    with grpc.insecure_channel(str(server.address)) as channel:
        watch = channel.unary_stream(
            "/flyteidl2.actions.ActionsService/WatchForUpdates",
            request_serializer=pb.WatchForUpdatesRequest.SerializeToString,
            response_deserializer=pb.WatchForUpdatesResponse.FromString,
        )
        calls = await trio.to_thread.run_sync(lambda: [watch(WATCH) for _ in range(many)])
        await eventually(lambda: server.statistics().open_streams == many)
        first = await trio.to_thread.run_sync(lambda: [next(call) for call in calls])
        assert len(first) == many
        await enqueue(GrpcClient(str(server.address)))
        for call in calls:
            call.cancel()
        await eventually(lambda: server.statistics().open_streams == 0)
    assert client.containment.failures == {}


async def test_a_stream_of_a_client_that_gives_no_window_is_given_up(
    client: ActionsClient,
) -> None:
    """Signs of life alone do not fill what is buffered for it."""
    settings = ServerSettings(bind=LOOPBACK, keepalive=0.1, http=HttpLimits(stall_timeout=0.4))
    async with open_actions_server(client, settings) as server:
        address = (server.address.host, server.address.port)
        async with h2_client(address, window=0) as asker:
            body = WATCH.SerializeToString()
            number = await asker.ask(
                "/flyteidl2.actions.ActionsService/WatchForUpdates",
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                method="POST",
                end=False,
            )
            asker.connection.send_data(
                number, b"\0" + len(body).to_bytes(4, "big") + body, end_stream=True
            )
            await asker.flush()
            await eventually(lambda: server.statistics().open_streams == 1)
            await asker.until(lambda: number in asker.resets)
            await eventually(lambda: server.statistics().open_streams == 0)
    assert client.containment.failures == {}


BAD = {
    "header": ((b"x-a: \xff\xfe",), b"400"),
    "token": ((b"authorization: Bearer \xff",), b"400"),
    "encoding": ((b"accept-encoding: \xff",), b"400"),
    "grpc over http/1.1": ((b"content-type: application/grpc", b"te: trailers"), b"505"),
    "grpc with a codec": ((b"content-type: Application/gRPC+proto; a=b",), b"505"),
    "time-out": ((b"content-type: application/proto", b"connect-timeout-ms: x"), b"400"),
    "no length of a message": ((b"content-type: application/connect+proto",), b"415"),
}


@pytest.mark.parametrize(("headers", "status"), BAD.values(), ids=BAD)
async def test_what_a_client_gets_wrong_is_no_failure_of_ours(
    client: ActionsClient, server: ActionsServer, headers: tuple[bytes, ...], status: bytes
) -> None:
    async with await connect((server.address.host, server.address.port)) as stream:
        lines = [
            b"POST /flyteidl2.actions.ActionsService/Enqueue HTTP/1.1",
            b"host: localhost",
            b"connection: close",
            b"content-length: 0",
            *headers,
            b"",
            b"",
        ]
        await stream.send_all(b"\r\n".join(lines))
        assert (await rest(stream)).startswith(b"HTTP/1.1 " + status)
    assert client.containment.failures == {}
