"""A client of the services that `run` serves, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio
from flyteidl2.actions import actions_service_pb2 as pb
from google.protobuf.message import DecodeError as BadMessage
from google.protobuf.message import Message

from etcd_actions import errors
from etcd_actions.actions.abort import AbortResult
from etcd_actions.cli.calls import ACTIONS, OPERATIONS, MessageT
from etcd_actions.cli.names import NameLookup
from etcd_actions.cli.service_names import ServiceNameLookup
from etcd_actions.config.settings import SERVICE_CACERT, SERVICE_TOKEN_FILE
from etcd_actions.etcd.bearer_token import read_bearer_token
from etcd_actions.etcd.connection_settings import Tls
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.tls import client_context, explained, ssl_context
from etcd_actions.http2 import (
    CallFailed,
    Channel,
    ChannelSettings,
    Code,
    Exchange,
    Metadata,
    Target,
    open_channel,
)
from etcd_actions.model import ErrorState, Phase
from etcd_actions.server._pb import etcd_actions_operations_pb2 as operations

_NO_ERRORS: Final = (
    "--error-code, --error-message and --message: Flyte's own method has no field for them, and "
    "the service has no other"
)
# Seconds of a unary call: the service itself ends a call after 30.
_DEADLINE = 35.0
_SETTINGS: Final = ChannelSettings(largest_answer=4 * 1024 * 1024)
# Parts of the messages about a response that is too large: of etcd_actions.http2, and of other
# gRPC implementations and proxies.
_TOO_LARGE: Final = ("an answer of more than", "above the largest", "larger than max")

_ERRORS: Final[dict[Code, type[errors.EtcdActionsError]]] = {
    Code.ALREADY_EXISTS: errors.AlreadyExists,
    Code.NOT_FOUND: errors.NotFound,
    Code.FAILED_PRECONDITION: errors.FailedPrecondition,
    Code.ABORTED: errors.Aborted,
    Code.UNAVAILABLE: errors.ServiceUnavailable,
    Code.DEADLINE_EXCEEDED: errors.ServiceUnavailable,
    Code.CANCELLED: errors.ServiceUnavailable,
    Code.RESOURCE_EXHAUSTED: errors.ServiceUnavailable,
}


class Unimplemented(errors.ServiceRefused):
    """The service does not have a method."""


@asynccontextmanager
async def open_service_client(
    target: Endpoint, *, cacert: Path | None = None, token_file: Path | None = None
) -> AsyncIterator[ServiceClient]:
    """Open a client of a service; it connects at the first call.

    Args:
        target: The address of the service.
        cacert: The authorities that may sign its certificate; switches TLS on.
        token_file: The file with its token.

    Raises:
        ConfigError: A file cannot be read, or has other contents; the message names its flag.
    """
    metadata: Metadata = ()
    if token_file is not None:
        metadata = (("authorization", f"Bearer {read_token(token_file)}"),)
    tls = None
    if target.encrypted or cacert is not None:
        if cacert is not None:
            _check_authorities(cacert)
        tls = partial(client_context, Tls(ca=cacert))
    server = Target(host=target.host, port=target.port, tls=tls)
    async with open_channel(server, _SETTINGS) as channel:
        yield ServiceClient(channel, metadata)


class ServiceClient:
    """A client of the service; created by :func:`open_service_client`.

    Attributes:
        names: The names of runs and actions.
    """

    def __init__(self, channel: Channel, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata
        self.names: NameLookup = ServiceNameLookup(self)

    async def enqueue(self, request: pb.EnqueueRequest, /) -> bool | None:
        """See :class:`~etcd_actions.cli.backends.Backend`."""
        outcome = await self.unary(ACTIONS, "Enqueue", request, operations.EnqueueOutcome)
        created: dict[int, bool] = {
            operations.EnqueueOutcome.CREATED: True,
            operations.EnqueueOutcome.EXISTED: False,
        }
        return created.get(outcome.result)

    async def abort(self, request: pb.AbortRequest, /) -> AbortResult | None:
        """See :class:`~etcd_actions.cli.backends.Backend`."""
        outcome = await self.unary(ACTIONS, "Abort", request, operations.AbortOutcome)
        if not outcome.known:
            return None
        return AbortResult(tuple(outcome.aborted), Phase(outcome.ended) if outcome.ended else None)

    async def signal(self, request: pb.SignalRequest, /) -> None:
        """See :class:`~etcd_actions.cli.backends.Backend`."""
        await self.unary(ACTIONS, "Signal", request, pb.SignalResponse)

    async def update(
        self, request: pb.UpdateRequest, /, error: ErrorState | None = None, message: str = ""
    ) -> None:
        """See :class:`~etcd_actions.cli.backends.Backend`."""
        if error is None and not message:
            await self.unary(ACTIONS, "Update", request, pb.UpdateResponse)
            return
        named, run = request.action_id, request.action_id.run
        complete = operations.PutStatusRequest(
            action=operations.ActionName(
                project=run.project, domain=run.domain, run=run.name, name=named.name, org=run.org
            ),
            attempt=request.attempt,
            phase=request.status.phase,
            message=message,
        )
        if error is not None:
            complete.error.code, complete.error.kind = error.code, error.kind
            complete.error.message = error.message
        await self.call_own_method("PutStatus", complete, operations.PutStatusResponse, _NO_ERRORS)

    async def call_own_method(
        self, method: str, request: Message, kind: type[MessageT], consequence: str
    ) -> MessageT:
        """Call a method that the service of this package has in addition to Flyte's.

        Args:
            method: The method.
            request: The request.
            kind: The type of the response.
            consequence: What is not possible without the method, for the error.

        Raises:
            ConfigError: The service does not have the method.
            EtcdActionsError: The call failed.
        """
        try:
            return await self.unary(OPERATIONS, method, request, kind)
        except Unimplemented:
            raise errors.ConfigError(
                f"{consequence}: this service is Flyte's, or an earlier version of etcd-actions: "
                "leave out --service, and name its etcd with --endpoints"
            ) from None

    @asynccontextmanager
    async def stream(
        self, service: str, method: str, request: Message, kind: type[MessageT], /
    ) -> AsyncIterator[AsyncIterator[MessageT]]:
        """Open a server-streaming call; its responses are of the type ``kind``.

        Args:
            service: The full name of the gRPC service.
            method: The method.
            request: The request.
            kind: The type of the responses.

        Raises:
            ServiceError: There is no connection; or, in the body, the stream ended with an error.
        """
        try:
            exchange = await self._channel.open_stream(
                f"/{service}/{method}", metadata=self._metadata
            )
        except CallFailed as failure:
            raise _translated(failure) from None
        try:
            exchange.send(request.SerializeToString())
            exchange.end()
            async with aclosing(_responses(exchange, service, kind)) as responses:
                yield responses
        finally:
            exchange.close()

    async def unary(
        self, service: str, method: str, request: Message, kind: type[MessageT], /
    ) -> MessageT:
        """Do a unary call within 35 s; the arguments are those of :meth:`stream`.

        After a cancellation or ServiceUnavailable the service may have done it.

        Raises:
            Unimplemented: The service does not have the method.
            ServiceError: There is no connection, or the service rejects the call.
            ActionError: The request is impossible; the class has the reason.
        """
        try:
            response = await self._channel.unary(
                f"/{service}/{method}",
                request.SerializeToString(),
                within=_DEADLINE,
                metadata=self._metadata,
            )
        except CallFailed as failure:
            if failure.code is Code.UNIMPLEMENTED:
                raise Unimplemented(f"the service has no {service}/{method}") from None
            raise _translated(failure) from None
        return _parsed(response, service, kind)


async def _responses(
    exchange: Exchange, service: str, kind: type[MessageT]
) -> AsyncGenerator[MessageT]:
    """The messages of a stream; raises ServiceError if it ends with an error."""
    while True:
        try:
            received = await exchange.receive()
        except trio.EndOfChannel:
            return
        except CallFailed as failure:
            raise _translated(failure) from None
        for each in received:
            yield _parsed(each, service, kind)


def _parsed(response: bytes, service: str, kind: type[MessageT]) -> MessageT:
    try:
        return kind.FromString(response)
    except BadMessage:
        raise errors.ServiceRefused(
            f"the service: its response is not a {kind.DESCRIPTOR.name}: is it Flyte's "
            f"{service.rpartition('.')[2]}?"
        ) from None


def _translated(failure: CallFailed) -> errors.EtcdActionsError:
    """The error of this package for the code and message of a failed call."""
    code, message = failure.code, explained(failure.details) or failure.code.name
    if code is Code.RESOURCE_EXHAUSTED and any(text in message for text in _TOO_LARGE):
        # A retry has the same result.
        return errors.ServiceRefused(f"the service: {message}")
    if code is Code.INVALID_ARGUMENT:
        field, _, reason = message.partition(": ")
        return errors.InvalidArgument(field, reason) if reason else errors.ActionError(message)
    return _ERRORS.get(code, errors.ServiceRefused)(f"the service: {message}")


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        ConfigError: It cannot be read, or has no token; the message names the flag.
    """
    return read_bearer_token(path, SERVICE_TOKEN_FILE.flag, pipes=True)


def _check_authorities(path: Path) -> None:
    try:
        # Checked here, since the first call would report an unreachable server.
        ssl_context(Tls(ca=path))
    except errors.ConfigError as error:
        raise errors.ConfigError(f"{SERVICE_CACERT.flag}: {error}") from None
