"""Asks Flyte's ActionsService, over gRPC."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import trio
from flyteidl2.actions import actions_service_pb2 as pb
from google.protobuf.message import DecodeError as BadMessage
from google.protobuf.message import Message

from etcd_actions import errors
from etcd_actions.config.settings import SERVICE_CACERT, SERVICE_TOKEN_FILE
from etcd_actions.etcd.connection import Tls
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.tls import read_pem_file, ssl_context
from etcd_actions.grpc_bridge import Bell, finished
from etcd_actions.named_files import read_named_file, text_of

_PREFIX: Final = "/flyteidl2.actions.ActionsService/"
_DEADLINE = 35.0
_OPTIONS: Final = (("grpc.enable_http_proxy", 0),)
_MOST_TOKEN_BYTES = 64 * 1024

_ERRORS: Final[dict[grpc.StatusCode, type[errors.EtcdActionsError]]] = {
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.ABORTED: errors.Aborted,
    grpc.StatusCode.UNAVAILABLE: errors.ServiceUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.ServiceUnavailable,
    grpc.StatusCode.CANCELLED: errors.ServiceUnavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ServiceUnavailable,
}


@asynccontextmanager
async def open_service_client(
    target: Endpoint, *, cacert: Path | None = None, token_file: Path | None = None
) -> AsyncIterator[ServiceClient]:
    """Connect to a service; it is reached when it is asked.

    Args:
        target: Where it listens.
        cacert: The authorities that may vouch for its certificate; asks for TLS.
        token_file: Where the token is that it wants.

    Raises:
        ConfigError: A file cannot be read, or holds something else; the message names both.
    """
    metadata: tuple[tuple[str, str], ...] = ()
    if token_file is not None:
        metadata = (("authorization", f"Bearer {_token(token_file)}"),)
    if target.encrypted or cacert is not None:
        authorities = None if cacert is None else _authorities(cacert)
        credentials = grpc.ssl_channel_credentials(authorities)
        channel = grpc.secure_channel(str(target), credentials, options=_OPTIONS)
    else:
        channel = grpc.insecure_channel(str(target), options=_OPTIONS)
    try:
        yield ServiceClient(channel, metadata)
    finally:
        channel.close()


class ServiceClient:
    """Made by :func:`open_service_client`."""

    def __init__(self, channel: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata
        self._bell = Bell()

    async def enqueue(self, request: pb.EnqueueRequest) -> None:
        """See :meth:`etcd_actions.client.ActionsClient.enqueue`."""
        await self._call("Enqueue", request, pb.EnqueueResponse)

    async def abort(self, request: pb.AbortRequest) -> None:
        """See :meth:`etcd_actions.client.ActionsClient.abort_action`."""
        await self._call("Abort", request, pb.AbortResponse)

    async def signal(self, request: pb.SignalRequest) -> None:
        """See :meth:`etcd_actions.client.ActionsClient.signal`."""
        await self._call("Signal", request, pb.SignalResponse)

    async def update(self, request: pb.UpdateRequest) -> None:
        """See :meth:`etcd_actions.client.ActionsClient.put_status`."""
        await self._call("Update", request, pb.UpdateResponse)

    @asynccontextmanager
    async def watch(
        self, request: pb.WatchForUpdatesRequest
    ) -> AsyncIterator[trio.MemoryReceiveChannel[pb.WatchForUpdatesResponse]]:
        """What becomes of an action and its children; the channel ends when the stream does.

        Raises:
            ServiceError: In the body, when the stream ended with an error.
        """
        method = self._channel.unary_stream(
            f"{_PREFIX}WatchForUpdates",
            request_serializer=pb.WatchForUpdatesRequest.SerializeToString,
        )
        call = method(request, metadata=self._metadata)
        send, receive = trio.open_memory_channel[pb.WatchForUpdatesResponse](math.inf)
        failure: list[Exception] = []

        def read() -> None:
            try:
                for answer in call:
                    message = _parsed(answer, pb.WatchForUpdatesResponse)
                    trio.from_thread.run_sync(send.send_nowait, message)
            except grpc.RpcError as error:
                failure.append(_translated(error.code(), error.details()))
            except errors.ServiceError as error:
                failure.append(error)
            except trio.RunFinishedError:
                return

        async def run() -> None:
            with send:
                await trio.to_thread.run_sync(read, limiter=trio.CapacityLimiter(1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            try:
                yield receive
                if failure:
                    raise failure[0]
            finally:
                call.cancel()

    async def _call(self, method: str, request: Message, response: type[Message]) -> None:
        stub = self._channel.unary_unary(
            _PREFIX + method,
            request_serializer=type(request).SerializeToString,
        )
        future = stub.future(request, timeout=_DEADLINE, metadata=self._metadata)
        await finished(future, self._bell)
        if future.code() is not grpc.StatusCode.OK:
            raise _translated(future.code(), future.details())
        _parsed(future.result(), response)


MessageT = TypeVar("MessageT", bound=Message)


def _parsed(answer: bytes, kind: type[MessageT]) -> MessageT:
    """The message of an answer; gRPC itself would log what is none with a traceback."""
    try:
        return kind.FromString(answer)
    except BadMessage:
        raise errors.ServiceRefused(
            f"the service: its answer is no {kind.DESCRIPTOR.name}: is it Flyte's ActionsService?"
        ) from None


def _translated(code: grpc.StatusCode, details: str | None) -> errors.EtcdActionsError:
    message = details or code.name
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        # gRPC itself says so of an answer; another try gives the same.
        return errors.ServiceRefused(f"the service: {message}")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        field, _, reason = message.partition(": ")
        return errors.InvalidArgument(field, reason) if reason else errors.ActionError(message)
    return _ERRORS.get(code, errors.ServiceRefused)(f"the service: {message}")


def _token(path: Path) -> str:
    flag = SERVICE_TOKEN_FILE.flag
    try:
        words = text_of(read_named_file(path, _MOST_TOKEN_BYTES, pipes=True)).split()
    except OSError as error:
        raise errors.ConfigError(f"{flag}: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise errors.ConfigError(f"{flag}: {path}: {error}") from None
    if not words:
        raise errors.ConfigError(f"{flag}: {path} is empty: put the token into it")
    if not re.fullmatch("[!-~]{1,8192}", words[0]):
        raise errors.ConfigError(
            f"{flag}: {path}: no token: one has at most 8192 characters, and of ASCII only"
        )
    return words[0]


def _authorities(path: Path) -> bytes:
    try:
        # gRPC would tell of what is no certificate at the first call only, and not clearly.
        ssl_context(Tls(ca=path))
        return read_pem_file(path)
    except errors.ConfigError as error:
        raise errors.ConfigError(f"{SERVICE_CACERT.flag}: {error}") from None
