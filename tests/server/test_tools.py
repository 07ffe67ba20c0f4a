"""What grpcurl and load balancers ask: reflection and health; and gRPC-Web."""

from __future__ import annotations

import http.client
import struct
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc
import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from etcd_actions import ActionId, ActionsClient
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from tests.server.conftest import LOOPBACK
from tests.support import flyte

pytestmark = pytest.mark.memory(jumps=False)

ROOT = ActionId("p", "d", "r1", "a0", "o")
T = TypeVar("T")


async def over_grpc(server: ActionsServer, function: Callable[[grpc.Channel], T]) -> T:
    def run() -> T:
        with grpc.insecure_channel(str(server.address)) as channel:
            return function(channel)

    return await trio.to_thread.run_sync(run)


_OF_GRPC = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_the_service(server: ActionsServer, version: str) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services="*"),
        reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="flyteidl2.actions.ActionsService"
        ),
        reflection_pb2.ServerReflectionRequest(
            file_by_filename="flyteidl2/actions/actions_service.proto"
        ),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Thing"),
        *(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
            for service in _OF_GRPC
        ),
    ]

    def ask(channel: grpc.Channel) -> list[reflection_pb2.ServerReflectionResponse]:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        return list(call(iter(requests), timeout=20))

    listed, by_symbol, by_name, missing, *ours = await over_grpc(server, ask)
    assert [each.name for each in listed.list_services_response.service] == [
        "flyteidl2.actions.ActionsService",
        "etcd_actions.operations.Operations",
        *_OF_GRPC,
        "flyteidl2.auth.AuthMetadataService",
    ]
    files = by_symbol.file_descriptor_response.file_descriptor_proto
    assert list(files) == list(by_name.file_descriptor_response.file_descriptor_proto)
    first = descriptor_pb2.FileDescriptorProto.FromString(files[0])
    assert [method.name for method in first.service[0].method] == [
        "Enqueue",
        "WatchForUpdates",
        "Update",
        "Abort",
        "Signal",
    ]
    names = {descriptor_pb2.FileDescriptorProto.FromString(each).name for each in files}
    assert set(first.dependency) <= names
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    for service, answer in zip(_OF_GRPC, ours, strict=True):
        (data,) = answer.file_descriptor_response.file_descriptor_proto
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        assert f"{file.package}.{file.service[0].name}" == service


async def test_health_is_told_and_watched(client: ActionsClient) -> None:
    serving = True
    settings = ServerSettings(bind=LOOPBACK)
    async with open_actions_server(client, settings, is_serving=lambda: serving) as server:

        def check(channel: grpc.Channel) -> tuple[int, int, grpc.StatusCode]:
            stub = health_pb2_grpc.HealthStub(channel)
            whole = stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
            named = stub.Check(
                health_pb2.HealthCheckRequest(service="flyteidl2.actions.ActionsService"),
                timeout=20,
            )
            try:
                stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=20)
            except grpc.RpcError as error:
                return whole.status, named.status, error.code()
            raise AssertionError("another service is served, too")

        assert await over_grpc(server, check) == (1, 1, grpc.StatusCode.NOT_FOUND)
        serving = False
        assert (await over_grpc(server, check))[:2] == (2, 2)

        def watch(channel: grpc.Channel) -> Iterator[int]:
            stub = health_pb2_grpc.HealthStub(channel)
            for answer in stub.Watch(health_pb2.HealthCheckRequest(), timeout=20):
                yield answer.status

        first: int = await over_grpc(server, lambda channel: next(watch(channel)))
        assert first == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_grpc_web(server: ActionsServer, client: ActionsClient) -> None:
    """A frame for the answer, a frame for what are trailers elsewhere."""

    def ask() -> bytes:
        body = pb.EnqueueRequest(action=flyte.task(ROOT)).SerializeToString()
        connection = http.client.HTTPConnection(str(server.address), timeout=20)
        connection.request(
            "POST",
            "/flyteidl2.actions.ActionsService/Enqueue",
            struct.pack(">BI", 0, len(body)) + body,
            {"content-type": "application/grpc-web+proto"},
        )
        response = connection.getresponse()
        assert response.status == 200
        data = response.read()
        connection.close()
        return data

    data = await trio.to_thread.run_sync(ask)
    assert data[0] == 0
    (size,) = struct.unpack(">I", data[1:5])
    assert data[5 + size] & 0x80
    assert b"grpc-status: 0" in data[10 + size :].lower().replace(
        b"grpc-status:0", b"grpc-status: 0"
    )
    assert (await client.get_task_action(ROOT)).action_id.name == "a0"


async def test_other_paths_are_not_found(server: ActionsServer) -> None:
    def ask() -> int:
        connection = http.client.HTTPConnection(str(server.address), timeout=20)
        connection.request("GET", "/")
        status = connection.getresponse().status
        connection.close()
        return status

    assert await trio.to_thread.run_sync(ask) == 404
