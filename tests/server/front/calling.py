"""Any method of the port, asked by grpcio in threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import grpc
import trio
from google.protobuf.message import Message

from tests.server.clients import DEADLINE, Failed

_Reply = TypeVar("_Reply", bound=Message)


class Caller:
    """A client of one address."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)

    def close(self) -> None:
        self._channel.close()

    async def call(
        self, service: str, method: str, request: Message, reply: type[_Reply]
    ) -> _Reply:
        stub = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )

        def ask() -> _Reply:
            try:
                answer: _Reply = stub(request, timeout=DEADLINE)
            except grpc.RpcError as error:
                raise failed(error) from None
            return answer

        return await trio.to_thread.run_sync(ask)

    @contextmanager
    def stream(
        self, service: str, method: str, request: Message, reply: type[_Reply]
    ) -> Iterator[Reading[_Reply]]:
        stub = self._channel.unary_stream(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        call = stub(request, timeout=DEADLINE)
        try:
            yield Reading(call)
        finally:
            call.cancel()


class Reading(Generic[_Reply]):
    """An open stream."""

    def __init__(self, call: Iterator[_Reply]) -> None:
        self._call = call

    async def next(self) -> _Reply | None:
        """The next message; None when the stream has ended."""

        def read() -> _Reply | None:
            try:
                return next(self._call, None)
            except grpc.RpcError as error:
                raise failed(error) from None

        return await trio.to_thread.run_sync(read)


def failed(error: grpc.RpcError) -> Failed:
    return Failed(error.code().name.lower(), error.details())
