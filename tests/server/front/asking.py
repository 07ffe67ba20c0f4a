"""Asks any method by Connect over HTTP/1.1, with the standard library, in a thread."""

from __future__ import annotations

import http.client
import json
import ssl
import struct
from typing import TypeVar

import trio
from google.protobuf.message import Message

from tests.server.clients import DEADLINE, Failed

Reply = TypeVar("Reply", bound=Message)


class Asker:
    """A client with a token, or with none."""

    def __init__(self, address: object, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._address = str(address)
        self._tls = tls
        self._headers = {"connect-protocol-version": "1"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"

    async def ask(self, service: str, method: str, request: Message, reply: type[Reply]) -> Reply:
        """One answer; raises what the service refuses with."""
        status, data = await trio.to_thread.run_sync(
            self._post, f"/{service}/{method}", "application/proto", request.SerializeToString()
        )
        if status != 200:
            raise _failed(status, data)
        return reply.FromString(data)

    async def first(
        self, service: str, method: str, request: Message, reply: type[Reply]
    ) -> Reply | None:
        """The first answer of a stream that ends; None for none."""
        body = request.SerializeToString()
        status, data = await trio.to_thread.run_sync(
            self._post,
            f"/{service}/{method}",
            "application/connect+proto",
            struct.pack(">BI", 0, len(body)) + body,
        )
        if status != 200:
            raise _failed(status, data)
        flags, size = struct.unpack(">BI", data[:5])
        if not flags & 2:
            return reply.FromString(data[5 : 5 + size])
        end = json.loads(data[5 : 5 + size])
        if "error" in end:
            raise Failed(end["error"]["code"], end["error"].get("message", ""))
        return None

    def _post(self, path: str, kind: str, body: bytes) -> tuple[int, bytes]:
        connection = (
            http.client.HTTPConnection(self._address, timeout=DEADLINE)
            if self._tls is None
            else http.client.HTTPSConnection(self._address, timeout=DEADLINE, context=self._tls)
        )
        try:
            connection.request("POST", path, body, {**self._headers, "content-type": kind})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _failed(status: int, data: bytes) -> Failed:
    try:
        error = json.loads(data)
    except ValueError:
        return Failed(f"http {status}", data.decode(errors="replace"))
    return Failed(error["code"], error.get("message", ""))
