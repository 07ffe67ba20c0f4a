"""A server with a store of blobs, and clients of its plain HTTP and of its data proxy."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import pytest
import trio
from flyteidl2.dataproxy import dataproxy_service_pb2 as pb
from google.protobuf.message import Message

from etcd_actions import ActionsClient
from etcd_actions.blobs import BlobStore, UrlSigner, open_blob_store
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.web import Bind, HttpLimits

MOST = 10_000_000
SERVICE = "flyteidl2.dataproxy.DataProxyService"

M = TypeVar("M", bound=Message)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Refused(Exception):
    """What the service answered, by the name of its code in Connect."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class Door:
    """The server under test, and how to ask it."""

    def __init__(
        self, server: ActionsServer, front: FrontDoor, blobs: BlobStore, folder: Path, clock: Clock
    ) -> None:
        self.server = server
        self.front = front
        self.blobs = blobs
        self.folder = folder
        self.clock = clock
        self.address = (server.address.host, server.address.port)

    async def http(
        self, method: str, url: str, body: bytes | None = None, **headers: str
    ) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await trio.to_thread.run_sync(self._http, method, url, body, named)

    async def call(self, name: str, request: Message, kind: type[M], service: str = SERVICE) -> M:
        found = await self.http(
            "POST",
            f"/{service}/{name}",
            request.SerializeToString(),
            content_type="application/proto",
        )
        if found.status != 200:
            error = json.loads(found.body)
            raise Refused(error["code"], error.get("message", ""))
        return kind.FromString(found.body)

    async def location(
        self, data: bytes = b"hello", /, **fields: object
    ) -> pb.CreateUploadLocationResponse:
        asked = {
            "project": "p",
            "domain": "d",
            "filename": "code.tar.gz",
            "content_md5": hashlib.md5(data).digest(),
        } | fields
        request = pb.CreateUploadLocationRequest(**asked)
        return await self.call("CreateUploadLocation", request, pb.CreateUploadLocationResponse)

    def stored(self) -> list[str]:
        """The files below the folder, those that are not whole among them."""
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if not path.is_dir()
        )

    def _http(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        split = urlsplit(url)
        target = split.path + (f"?{split.query}" if split.query else "")
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def door(client: ActionsClient, tmp_path: Path, clock: Clock) -> AsyncIterator[Door]:
    folder = tmp_path / "blobs"
    blobs = open_blob_store(folder)
    front = FrontDoor(
        client=client,
        keepalive=30.0,
        blobs=blobs,
        signer=UrlSigner(client.store, client.keys, clock),
        reads_local_files=True,
        max_upload_bytes=MOST,
    )
    settings = ServerSettings(bind=Bind("127.0.0.1", 0), http=HttpLimits(body_timeout=0.5))
    async with open_actions_server(client, settings, front=front) as server:
        yield Door(server, front, blobs, folder, clock)
