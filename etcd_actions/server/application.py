"""The ASGI application: which path is which method, and what all of them have in common."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import trio
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_codecs
from connectrpc.errors import ConnectError
from connectrpc.interceptor import MetadataInterceptor
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.histogram import Histogram
from etcd_actions._internal.tracing import CallSpan, is_traced
from etcd_actions.server.admission import RateLimit
from etcd_actions.server.authentication import Authentication
from etcd_actions.server.caller import CALLER, Caller
from etcd_actions.server.disconnects import without_a_task
from etcd_actions.server.error_codes import Refusal, told
from etcd_actions.server.methods import Methods, guarded
from etcd_actions.server.streams import CONNECTION, Connection
from etcd_actions.server.tokens import Identity
from etcd_actions.web import ClientGone, Message, Receive, Send, on_lost

# Load balancers and clients that have yet to log in show no token.
_OPEN = frozenset({"grpc.health.v1.Health", "flyteidl2.auth.AuthMetadataService"})


class _Begun(NamedTuple):
    """A call that goes on."""

    at: float
    span: CallSpan | None


class Calls:
    """What was asked, and how it went; done for each call before its body is read.

    Attributes:
        ended: Number of calls by method and code, ``ok`` for those without an error.
        seconds: Their time, by method; of streams, too.
        times: How long they took, by method.
    """

    def __init__(
        self, authentication: Authentication, rate: RateLimit, containment: Containment
    ) -> None:
        self._authentication = authentication
        self._rate = rate
        self.containment = containment
        self.ended: Counter[tuple[str, str]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.times: defaultdict[str, Histogram] = defaultdict(Histogram)

    async def on_start(self, ctx: RequestContext[Any, Any]) -> _Begun:
        """Let a call in.

        Raises:
            Refusal: Its client may not ask, or not so often.
        """
        return await guarded(self.containment, ctx.method.name, self._start(ctx))

    async def _start(self, ctx: RequestContext[Any, Any]) -> _Begun:
        try:
            await self._admit(ctx)
        except Refusal as refusal:
            # Its end is told to nobody who was not told of its beginning.
            self.ended[ctx.method.name, refusal.code.value] += 1
            raise
        await trio.lowlevel.checkpoint_if_cancelled()
        return _Begun(trio.current_time(), self._span(ctx) if is_traced() else None)

    def _span(self, ctx: RequestContext[Any, Any]) -> CallSpan:
        method = ctx.method
        return CallSpan(
            f"{method.service_name}/{method.name}",
            ctx.request_headers,
            {
                "rpc.system": "connect_rpc",
                "rpc.service": method.service_name,
                "rpc.method": method.name,
            },
        )

    async def _admit(self, ctx: RequestContext[Any, Any]) -> None:
        address = (ctx.client_address or "").rpartition(":")[0]
        if ctx.method.service_name in _OPEN:
            self._rate.take(address)
            return
        identity = await self.admit(ctx.request_headers.get("authorization"), address)
        if identity is not None:
            CALLER.set(replace(CALLER.get(), subject=identity.subject, projects=identity.projects))

    async def admit(self, authorization: str | None, address: str) -> Identity | None:
        """Let a request in.

        Args:
            authorization: Its header of this name; None without one.
            address: Where it comes from.

        Returns:
            Whose token it is; None where none is demanded.

        Raises:
            Refusal: Its client may not ask, or not so often.
        """
        identity = None
        if self._authentication.is_demanded:
            identity = await self._authentication.identify(authorization)
        self._rate.take(address if identity is None else identity.client)
        return identity

    async def on_end(
        self, token: _Begun, ctx: RequestContext[Any, Any], error: Exception | None
    ) -> None:
        """Note how it ended, and give an error the code that its client understands."""
        method = ctx.method.name
        self.times[method].observe(trio.current_time() - token.at)
        self.seconds[method] += trio.current_time() - token.at
        if error is None:
            self.ended[method, "ok"] += 1
            if token.span is not None:
                token.span.end("ok")
            return
        meant = told(error, method, self.containment)
        self.ended[method, meant.code.value] += 1
        if token.span is not None:
            token.span.end(meant.code.value)
        if meant is not error:
            raise meant from error


class Route(Protocol):
    """What answers plain HTTP requests below a path, beside the methods.

    Attributes:
        path: What the paths begin with that it answers; it ends with a slash.
    """

    path: str

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        ...


class Application(ConnectASGIApplication[Methods]):
    """All that is served on the port, over Connect, gRPC and gRPC-Web.

    Args:
        methods: The methods of all services.
        calls: What all calls go through.
        routes: What is served beside methods.
        message_bytes: The size of a request, at most.
    """

    def __init__(
        self,
        methods: Methods,
        calls: Calls,
        routes: Sequence[Route] = (),
        *,
        message_bytes: int,
    ) -> None:
        interceptors: Iterable[MetadataInterceptor[_Begun]] = (calls,)
        self._methods = methods
        self._routes = routes
        super().__init__(
            service=methods,
            endpoints=lambda methods: methods.endpoints,
            interceptors=interceptors,
            read_max_bytes=message_bytes,
            codecs=google_protobuf_codecs(),
        )

    @property
    def path(self) -> str:
        """Where it would be mounted beside others."""
        return "/"

    def cut_off(self) -> None:
        """Answer the calls that still go on with an error that asks for another try."""
        self._methods.cut_off()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request; its streams learn at once when the client is gone."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        for route in self._routes:
            if scope["path"].startswith(route.path):
                await route(scope, receive, send)
                return
        if (unusable := _unusable(scope)) is not None:
            await _refuse(send, *unusable)
            return
        connection = Connection()
        CONNECTION.set(connection)
        CALLER.set(Caller.of(scope))
        on_lost(scope, connection.lost)
        try:
            await super().__call__(scope, receive, send)
        except ConnectError as error:
            if error.code not in (Code.DEADLINE_EXCEEDED, Code.CANCELED):
                raise
            # A client may set any deadline: one that passes while its answer is sent is no
            # failure of ours.
            raise ClientGone("its deadline passed while its answer was sent") from error

    async def _call_unary(self, *arguments: Any) -> Any:
        return await super()._call_unary(*without_a_task(arguments))

    async def _call_stream(self, *arguments: Any) -> None:
        await super()._call_stream(*without_a_task(arguments))


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
