"""Two clients of the service from outside: grpcio, and Connect over HTTP/1.1, in threads."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import grpc
import trio
from flyteidl2.actions import actions_service_pb2 as pb
from google.protobuf.message import Message

SERVICE = "flyteidl2.actions.ActionsService"
DEADLINE = 20.0

REPLIES: dict[str, type[Message]] = {
    "Enqueue": pb.EnqueueResponse,
    "WatchForUpdates": pb.WatchForUpdatesResponse,
    "Update": pb.UpdateResponse,
    "Abort": pb.AbortResponse,
    "Signal": pb.SignalResponse,
}


class Failed(Exception):
    """What the service answered, by the name of its code in Connect."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class Client(Protocol):
    """One way to ask."""

    def call(self, method: str, request: Message) -> Message:
        """Do a call that is no stream."""
        ...

    def stream(self, request: Message) -> Any:
        """Open a stream: iterate over it, and close it."""
        ...


class GrpcClient:
    """By grpcio."""

    def __init__(self, address: str, token: str = "", *, deadline: float = DEADLINE) -> None:
        self._deadline = deadline
        self._channel = grpc.insecure_channel(address)
        self._metadata = [("authorization", f"Bearer {token}")] if token else []

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: Message) -> Message:
        stub = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=_serialize,
            response_deserializer=REPLIES[method].FromString,
        )
        try:
            reply: Message = stub(request, timeout=self._deadline, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _of_grpc(error) from None
        return reply

    def stream(self, request: Message) -> GrpcStream:
        stub = self._channel.unary_stream(
            f"/{SERVICE}/WatchForUpdates",
            request_serializer=_serialize,
            response_deserializer=pb.WatchForUpdatesResponse.FromString,
        )
        return GrpcStream(stub(request, timeout=self._deadline, metadata=self._metadata))


class GrpcStream:
    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[pb.WatchForUpdatesResponse]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise _of_grpc(error) from None

    def close(self) -> None:
        self._call.cancel()


class ConnectClient:
    """By Connect, over HTTP/1.1, with the standard library."""

    def __init__(
        self,
        address: str,
        token: str = "",
        *,
        codec: str = "proto",
        compress: bool = False,
        tls: ssl.SSLContext | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        self._deadline = deadline
        self._address = address
        self._tls = tls
        self._codec = codec
        self._compress = compress
        self._headers = {"connect-protocol-version": "1"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def call(
        self, method: str, request: Message, headers: Mapping[str, str] | None = None
    ) -> Message:
        body = _encode(request, self._codec)
        headers = {**self._headers, **(headers or {}), "content-type": f"application/{self._codec}"}
        if self._compress:
            body = gzip.compress(body)
            headers |= {"content-encoding": "gzip", "accept-encoding": "gzip"}
        connection = self._connect()
        try:
            connection.request("POST", f"/{SERVICE}/{method}", body, headers)
            response = connection.getresponse()
            data = response.read()
            if response.getheader("content-encoding") == "gzip":
                data = gzip.decompress(data)
        finally:
            connection.close()
        if response.status != 200:
            raise _of_connect(data, response.status)
        decoded: Message = _decode(REPLIES[method], data, self._codec)
        return decoded

    def stream(self, request: Message) -> ConnectStream:
        body = _encode(request, self._codec)
        headers = {**self._headers, "content-type": f"application/connect+{self._codec}"}
        connection = self._connect()
        connection.request(
            "POST", f"/{SERVICE}/WatchForUpdates", struct.pack(">BI", 0, len(body)) + body, headers
        )
        return ConnectStream(connection, self._codec)

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(
                self._address, timeout=self._deadline, context=self._tls
            )
        return http.client.HTTPConnection(self._address, timeout=self._deadline)


class ConnectStream:
    def __init__(self, connection: http.client.HTTPConnection, codec: str) -> None:
        self._connection = connection
        self._codec = codec

    def __iter__(self) -> Iterator[pb.WatchForUpdatesResponse]:
        response = self._connection.getresponse()
        if response.status != 200:
            raise _of_connect(response.read(), response.status)
        while True:
            head = response.read(5)
            if len(head) < 5:
                raise Failed("cut", "the stream ended without an end")
            flags, size = struct.unpack(">BI", head)
            data = response.read(size)
            if flags & 1:
                data = gzip.decompress(data)
            if flags & 2:
                end = json.loads(data)
                if "error" in end:
                    raise Failed(end["error"]["code"], end["error"].get("message", ""))
                return
            yield _decode(pb.WatchForUpdatesResponse, data, self._codec)

    def close(self) -> None:
        # The response has the socket, too: closing the connection alone leaves it open.
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class State(NamedTuple):
    """What a stream tells of an action, shortly."""

    name: str
    phase: int


SENTINEL = State("sentinel", -1)


def short(message: pb.WatchForUpdatesResponse) -> State:
    if message.WhichOneof("message") == "control_message":
        assert message.control_message.sentinel
        return SENTINEL
    update = message.action_update
    return State(update.action_id.name, update.phase)


class Reading:
    """A stream that is read by a thread, into a channel."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._send, self._receive = trio.open_memory_channel[Any](1000)
        self._done = trio.Event()
        self.error: BaseException | None = None

    async def run(self) -> None:
        """Read to the end."""

        def read() -> None:
            try:
                for message in self._stream:
                    trio.from_thread.run_sync(self._send.send_nowait, message)
            except Failed as error:
                self.error = error
            except (OSError, ValueError, http.client.HTTPException, AttributeError) as error:
                # Closed under its hands.
                self.error = error
            finally:
                self._stream.close()

        with self._send:
            await trio.to_thread.run_sync(read, abandon_on_cancel=True)
        self._done.set()

    async def next(self) -> pb.WatchForUpdatesResponse:
        with trio.fail_after(DEADLINE):
            message: pb.WatchForUpdatesResponse = await self._receive.receive()
            return message

    async def until(self, wanted: Callable[[State], bool]) -> list[State]:
        """All up to the first that fits."""
        found: list[State] = []
        while not found or not wanted(found[-1]):
            found.append(short(await self.next()))
        return found

    async def ended(self) -> None:
        with trio.fail_after(DEADLINE):
            await self._done.wait()

    def close(self) -> None:
        self._stream.close()


def _serialize(request: Message) -> bytes:
    return request.SerializeToString()


def _of_grpc(error: grpc.RpcError) -> Failed:
    return Failed(error.code().name.lower(), error.details() or "")


def _of_connect(data: bytes, status: int) -> Failed:
    try:
        error = json.loads(data)
    except ValueError:
        return Failed(f"http {status}", data.decode(errors="replace"))
    return Failed(error["code"], error.get("message", ""))


def _encode(message: Message, codec: str) -> bytes:
    if codec == "proto":
        return message.SerializeToString()
    from google.protobuf.json_format import MessageToJson  # noqa: PLC0415

    return MessageToJson(message).encode()


def _decode(kind: type[Message], data: bytes, codec: str) -> Any:
    if codec == "proto":
        return kind.FromString(data)
    from google.protobuf.json_format import Parse  # noqa: PLC0415

    return Parse(data, kind())
