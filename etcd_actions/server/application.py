"""The ASGI application: which path is which method, and what all of them have in common."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import trio
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_codecs
from connectrpc.interceptor import MetadataInterceptor
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from flyteidl2.actions import actions_service_pb2 as pb
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from etcd_actions.containment import Containment
from etcd_actions.server.admission import RateLimit, Tokens
from etcd_actions.server.boundaries import guarded, guarded_stream
from etcd_actions.server.codes import Refusal, told
from etcd_actions.server.health import Health
from etcd_actions.server.reflection import Reflection
from etcd_actions.server.service import ActionsService
from etcd_actions.server.streams import CONNECTION, Connection
from etcd_actions.serving import Message, Receive, Send
from etcd_actions.tracing import CallSpan

ACTIONS: Final = "flyteidl2.actions.ActionsService"
HEALTH: Final = "grpc.health.v1.Health"
REFLECTION: Final = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
SERVICES: Final = (ACTIONS, HEALTH, *REFLECTION)
"""All services that are served, by their full names."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class _Begun(NamedTuple):
    """A call that goes on."""

    at: float
    span: CallSpan


class Calls:
    """What was asked, and how it went; done for each call before its body is read.

    Attributes:
        ended: Number of calls by method and code, ``ok`` for those without an error.
        seconds: Their time, by method; of streams, too.
    """

    def __init__(self, tokens: Tokens | None, rate: RateLimit, containment: Containment) -> None:
        self._tokens = tokens
        self._rate = rate
        self.containment = containment
        self.ended: Counter[tuple[str, str]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    async def on_start(self, ctx: RequestContext[Any, Any]) -> _Begun:
        """Let a call in.

        Raises:
            Refusal: Its client may not ask, or not so often.
        """
        return await guarded(self.containment, ctx.method.name, self._start(ctx))

    async def _start(self, ctx: RequestContext[Any, Any]) -> _Begun:
        try:
            self._admit(ctx)
        except Refusal as refusal:
            # Its end is told to nobody who was not told of its beginning.
            self.ended[ctx.method.name, refusal.code.value] += 1
            raise
        await trio.lowlevel.checkpoint()
        method = ctx.method
        span = CallSpan(
            f"{method.service_name}/{method.name}",
            ctx.request_headers,
            {
                "rpc.system": "connect_rpc",
                "rpc.service": method.service_name,
                "rpc.method": method.name,
            },
        )
        return _Begun(trio.current_time(), span)

    def _admit(self, ctx: RequestContext[Any, Any]) -> None:
        client = (ctx.client_address or "").rpartition(":")[0]
        if self._tokens is not None and ctx.method.service_name != HEALTH:
            client = f"token {self._tokens.number_of(ctx.request_headers.get('authorization'))}"
        self._rate.take(client)

    async def on_end(
        self, token: _Begun, ctx: RequestContext[Any, Any], error: Exception | None
    ) -> None:
        """Note how it ended, and give an error the code that its client understands."""
        method = ctx.method.name
        self.seconds[method] += trio.current_time() - token.at
        if error is None:
            self.ended[method, "ok"] += 1
            token.span.end("ok")
            return
        meant = told(error, method, self.containment)
        self.ended[method, meant.code.value] += 1
        token.span.end(meant.code.value)
        if meant is not error:
            raise meant from error


class Application(ConnectASGIApplication[ActionsService]):
    """All that is served on the port, over Connect, gRPC and gRPC-Web.

    Args:
        service: Flyte's ActionsService.
        health: How it is.
        calls: What all calls go through.
        message_bytes: The size of a request, at most.
        request_timeout: Seconds that a call may take that is no stream.
    """

    def __init__(
        self,
        service: ActionsService,
        health: Health,
        calls: Calls,
        *,
        message_bytes: int,
        request_timeout: float,
    ) -> None:
        interceptors: Iterable[MetadataInterceptor[_Begun]] = (calls,)
        self._unary = Unary(request_timeout, calls.containment)
        reflection = Reflection(SERVICES)
        super().__init__(
            service=service,
            endpoints=lambda service: _endpoints(service, health, reflection, self._unary),
            interceptors=interceptors,
            read_max_bytes=message_bytes,
            codecs=google_protobuf_codecs(),
        )

    @property
    def path(self) -> str:
        """Where it would be mounted beside others."""
        return f"/{ACTIONS}"

    def cut_off(self) -> None:
        """Answer the calls that still go on with an error that asks for another try."""
        self._unary.cut_off()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request; its streams learn at once when the client is gone."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if (unusable := _unusable(scope)) is not None:
            await _refuse(send, *unusable)
            return
        connection = Connection()
        CONNECTION.set(connection)

        async def receive_and_notice() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                connection.lost()
            return message

        await super().__call__(scope, receive_and_notice, send)


def _unusable(scope: Message) -> tuple[int, str] | None:
    """Why connectrpc would fail on a request, by a status; None if it would not."""
    for name, value in scope["headers"]:
        if not value.isascii():
            try:
                value.decode()
            except UnicodeDecodeError:
                return 400, f"header {name.decode(errors='backslashreplace')}: it is not UTF-8"
        if name == b"content-type" and scope["http_version"].startswith("1"):
            kind = value.partition(b";")[0].partition(b"+")[0].strip().lower()
            if kind == b"application/grpc":
                return 505, "gRPC needs HTTP/2: over HTTP/1.1 there are gRPC-Web and Connect"
    return None


async def _refuse(send: Send, status: int, why: str) -> None:
    body = f"{why}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Unary:
    """Bounds calls that are no stream."""

    def __init__(self, timeout: float, containment: Containment) -> None:
        self._timeout = timeout
        self.containment = containment
        self._open: set[trio.CancelScope] = set()
        self._cut_off = False

    def cut_off(self) -> None:
        """End those that are under way."""
        self._cut_off = True
        for scope in self._open:
            scope.cancel("the service ends")

    def bounded(
        self, name: str, function: Callable[[_Request], Awaitable[_Response]]
    ) -> Callable[[_Request, RequestContext[_Request, _Response]], Awaitable[_Response]]:
        """The function as an endpoint has it, that raises in time what its client can bear."""

        async def call(request: _Request, _: RequestContext[_Request, _Response]) -> _Response:
            with trio.move_on_after(self._timeout) as scope:
                self._open.add(scope)
                try:
                    return await guarded(self.containment, name, function(request))
                finally:
                    self._open.discard(scope)
            # It may have been done: the same again is safe.
            why = "the service is ending" if self._cut_off else "it took too long"
            raise Refusal(Code.UNAVAILABLE, why)

        return call


def _endpoints(
    service: ActionsService, health: Health, reflection: Reflection, unary: Unary
) -> Mapping[str, Any]:
    # The library names the class of an endpoint in its public interface, and no kind of it.
    table: list[Any] = []

    def add_unary(
        name: str,
        request: type[_Request],
        response: type[_Response],
        function: Callable[[_Request], Awaitable[_Response]],
        of: str = ACTIONS,
    ) -> None:
        method = _method(of, name, request, response, StreamType.UNARY)
        table.append(Endpoint.unary(method, unary.bounded(name, function)))

    def add_stream(
        name: str,
        request: type[_Request],
        response: type[_Response],
        function: Callable[[_Request], AsyncIterator[_Response]],
        of: str = ACTIONS,
    ) -> None:
        method = _method(of, name, request, response, StreamType.SERVER_STREAM)

        def call(
            request: _Request, _: RequestContext[_Request, _Response]
        ) -> AsyncIterator[_Response]:
            return guarded_stream(unary.containment, name, function(request))

        table.append(Endpoint.server_stream(method, call))

    add_unary("Enqueue", pb.EnqueueRequest, pb.EnqueueResponse, service.enqueue)
    add_unary("Update", pb.UpdateRequest, pb.UpdateResponse, service.update)
    add_unary("Abort", pb.AbortRequest, pb.AbortResponse, service.abort)
    add_unary("Signal", pb.SignalRequest, pb.SignalResponse, service.signal)
    add_stream(
        "WatchForUpdates",
        pb.WatchForUpdatesRequest,
        pb.WatchForUpdatesResponse,
        service.watch_for_updates,
    )
    add_unary(
        "Check",
        health_pb2.HealthCheckRequest,
        health_pb2.HealthCheckResponse,
        health.check,
        HEALTH,
    )
    add_stream(
        "Watch",
        health_pb2.HealthCheckRequest,
        health_pb2.HealthCheckResponse,
        health.watch,
        HEALTH,
    )
    for name in REFLECTION:
        method = _method(
            name,
            "ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest,
            reflection_pb2.ServerReflectionResponse,
            StreamType.BIDI_STREAM,
        )
        table.append(
            Endpoint.bidi_stream(
                method,
                lambda requests, _: guarded_stream(
                    unary.containment,
                    "ServerReflectionInfo",
                    reflection.server_reflection_info(requests),
                ),
            )
        )
    return {f"/{each.method.service_name}/{each.method.name}": each for each in table}


def _method(
    service: str,
    name: str,
    request: type[_Request],
    response: type[_Response],
    kind: StreamType,
) -> MethodInfo[_Request, _Response]:
    return MethodInfo(
        name=name,
        service_name=service,
        input=request,
        output=response,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kind,
    )
