"""A client of RunService by Connect over HTTP/1.1, and what a run is asked for with."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio
from flyteidl2.common.identifier_pb2 import ActionIdentifier, ProjectIdentifier, RunIdentifier
from flyteidl2.common.run_pb2 import OffloadedInputData
from flyteidl2.core.identifier_pb2 import Identifier
from flyteidl2.core.tasks_pb2 import Container, TaskTemplate
from flyteidl2.task.task_definition_pb2 import TaskSpec
from flyteidl2.workflow import run_service_pb2 as pb
from google.protobuf.message import Message

from etcd_actions import ActionsClient
from etcd_actions.blobs import open_blob_store
from etcd_actions.registry.registry import Registry
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from tests.server.clients import DEADLINE, Failed, Reading
from tests.server.conftest import LOOPBACK
from tests.support.flyte_services import RUNS

_METHODS = pb.DESCRIPTOR.services_by_name["RunService"].methods_by_name


class RunsAsker:
    """Asks one server."""

    def __init__(self, server: ActionsServer) -> None:
        self._address = str(server.address)

    async def __call__(self, method: str, request: Message) -> Any:
        """One answer; raises what the service refuses with."""
        return await trio.to_thread.run_sync(self._call, method, request)

    @asynccontextmanager
    async def stream(self, method: str, request: Message) -> AsyncIterator[Reading]:
        """Read a stream in the background for as long as the context lasts."""
        reading = Reading(_Stream(self._address, method, request))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading.run)
            try:
                yield reading
            finally:
                reading.close()
                nursery.cancel_scope.cancel()

    def unread(self, method: str, request: Message) -> _Stream:
        """A stream that nobody reads yet."""
        return _Stream(self._address, method, request)

    def _call(self, method: str, request: Message) -> Message:
        connection = http.client.HTTPConnection(self._address, timeout=DEADLINE)
        headers = {"connect-protocol-version": "1", "content-type": "application/proto"}
        try:
            connection.request("POST", f"/{RUNS}/{method}", request.SerializeToString(), headers)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise _failed(data, response.status)
        return _reply(method, data)


class _Stream:
    def __init__(self, address: str, method: str, request: Message) -> None:
        self._method = method
        self._connection = http.client.HTTPConnection(address, timeout=DEADLINE)
        body = request.SerializeToString()
        headers = {"connect-protocol-version": "1", "content-type": "application/connect+proto"}
        self._connection.request(
            "POST", f"/{RUNS}/{method}", struct.pack(">BI", 0, len(body)) + body, headers
        )

    def __iter__(self) -> Iterator[Message]:
        response = self._connection.getresponse()
        if response.status != 200:
            raise _failed(response.read(), response.status)
        while True:
            head = response.read(5)
            if len(head) < 5:
                raise Failed("cut", "the stream ended without an end")
            flags, size = struct.unpack(">BI", head)
            data = response.read(size)
            if flags & 2:
                end = json.loads(data)
                if "error" in end:
                    raise Failed(end["error"]["code"], end["error"].get("message", ""))
                return
            yield _reply(self._method, data)

    def close(self) -> None:
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _reply(method: str, data: bytes) -> Message:
    kind: type[Message] = getattr(pb, _METHODS[method].output_type.name)
    return kind.FromString(data)


def _failed(data: bytes, status: int) -> Failed:
    try:
        error = json.loads(data)
    except ValueError:
        return Failed(f"http {status}", data.decode(errors="replace"))
    return Failed(error["code"], error.get("message", ""))


@asynccontextmanager
async def serve_runs(
    client: ActionsClient,
    folder: Path | None,
    registry: Registry | None = None,
    *,
    keepalive: float = 60.0,
) -> AsyncIterator[tuple[RunsAsker, ActionsServer]]:
    """Serve RunService, and a client of it."""
    blobs = None if folder is None else open_blob_store(folder)
    front = FrontDoor(client=client, keepalive=keepalive, blobs=blobs, registry=registry)
    async with open_actions_server(client, ServerSettings(bind=LOOPBACK), front=front) as server:
        yield RunsAsker(server), server


def run_id(name: str, *, project: str = "p", org: str = "127") -> RunIdentifier:
    return RunIdentifier(org=org, project=project, domain="d", name=name)


def action_id(run: str, name: str = "a0", *, project: str = "p", org: str = "127") -> Any:
    return ActionIdentifier(run=run_id(run, project=project, org=org), name=name)


def task_spec(name: str = "envs.greet") -> TaskSpec:
    """What the SDK sends of a Python task."""
    spec = TaskSpec(
        task_template=TaskTemplate(
            id=Identifier(org="127", project="p", domain="d", name=name, version="v1"),
            type="python",
            container=Container(args=["a0", "--inputs", "{{.input}}"]),
        ),
        short_name=name.rpartition(".")[2],
    )
    spec.environment.name = name.partition(".")[0]
    return spec


def create(name: str = "", *, project: str = "p", org: str = "127") -> pb.CreateRunRequest:
    """A request with offloaded inputs; without a name for a project."""
    request = pb.CreateRunRequest(
        task_spec=task_spec(),
        offloaded_input_data=OffloadedInputData(uri="/in/inputs.pb", inputs_hash="h1"),
    )
    if name:
        request.run_id.CopyFrom(run_id(name, project=project, org=org))
    else:
        request.project_id.CopyFrom(ProjectIdentifier(organization=org, name=project, domain="d"))
    return request
