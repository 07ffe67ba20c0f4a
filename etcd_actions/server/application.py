"""The ASGI application: the table of methods, and what all calls have in common."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import trio
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.histogram import Histogram
from etcd_actions._internal.tracing import CallSpan, is_traced
from etcd_actions.server.authentication import Authentication
from etcd_actions.server.caller import CALLER, Caller
from etcd_actions.server.disconnects import without_a_task
from etcd_actions.server.error_codes import Refusal, as_connect_error
from etcd_actions.server.json_codec import codecs
from etcd_actions.server.methods import Methods, guarded
from etcd_actions.server.rate_limit import RateLimit
from etcd_actions.server.streams import CONNECTION, Connection
from etcd_actions.server.tokens import Identity
from etcd_actions.web import ClientDisconnected, Message, Receive, Send, on_disconnect, respond

# Load balancers and clients before their login send no token.
_WITHOUT_TOKEN = frozenset({"grpc.health.v1.Health", "flyteidl2.auth.AuthMetadataService"})


class _Started(NamedTuple):
    """A call in progress."""

    at: float
    span: CallSpan | None


class Calls:
    """Admits and counts each call, before its body is read.

    Attributes:
        ended: Number of calls by method and code, ``ok`` for those without an error.
        times: The distribution of their times in seconds, by method; of a stream, while it is open.
    """

    def __init__(
        self, authentication: Authentication, rate: RateLimit, containment: Containment
    ) -> None:
        self._authentication = authentication
        self._rate = rate
        self._containment = containment
        self.ended: Counter[tuple[str, str]] = Counter()
        self.times: defaultdict[str, Histogram] = defaultdict(Histogram)

    async def on_start(self, ctx: RequestContext[Any, Any]) -> _Started:
        """Admit a call.

        Raises:
            Refusal: Its client is not admitted, or calls too often.
        """
        return await guarded(self._containment, ctx.method.name, self._start(ctx))

    async def _start(self, ctx: RequestContext[Any, Any]) -> _Started:
        method, headers = ctx.method, ctx.request_headers
        address = (ctx.client_address or "").rpartition(":")[0]
        try:
            if method.service_name in _WITHOUT_TOKEN:
                self._rate.take(address)
            else:
                _name_caller(await self.admit(headers.get("authorization"), address))
        except Refusal as refusal:
            # connectrpc does not call on_end for it.
            self.ended[method.name, refusal.code.value] += 1
            raise
        await trio.lowlevel.checkpoint_if_cancelled()
        span = None
        if is_traced():
            attributes = {
                "rpc.system": "connect_rpc",
                "rpc.service": method.service_name,
                "rpc.method": method.name,
            }
            span = CallSpan(f"{method.service_name}/{method.name}", headers, attributes)
        return _Started(trio.current_time(), span)

    async def admit_request(self, scope: Message) -> None:
        """Admit a plain HTTP request as :meth:`on_start` admits a call; see :meth:`admit`."""
        address = (scope["client"] or ("",))[0]
        _name_caller(await self.admit(_shown(scope), address))

    async def admit(self, authorization: str | None, address: str) -> Identity | None:
        """Check the token of a request, and count it; returns None if no token is needed.

        Args:
            authorization: Its header of this name; None without one.
            address: The address of its client.

        Raises:
            Refusal: The client is not admitted, or calls too often.
        """
        identity = None
        if self._authentication.is_required:
            identity = await self._authentication.identify(authorization)
        self.take(address if identity is None else identity.client)
        if identity is not None and identity.is_worker:
            raise Refusal(
                Code.PERMISSION_DENIED,
                f"the token of {identity.subject} has role=worker: only etcd-actions worker may "
                "use it",
            )
        return identity

    async def admit_worker(self, scope: Message) -> Identity:
        """Check the token of a worker's request, and count it.

        Raises:
            Refusal: The client is no worker, or calls too often.
        """
        identity = await self._authentication.identify(_shown(scope))
        self.take(identity.client)
        if not identity.is_worker:
            # Another service may accept it, and the file of the worker may have another one by now.
            raise Refusal(
                Code.UNAUTHENTICATED,
                f"{identity.client} of the service's --token-file is no worker's: add name=NAME "
                "role=worker to its line",
            )
        return identity

    def take(self, client: str) -> None:
        """Count a request; raises a Refusal if its client sends too many."""
        self._rate.take(client)

    async def on_end(
        self, token: _Started, ctx: RequestContext[Any, Any], error: Exception | None
    ) -> None:
        """Count a call, and give an error the code that its client understands."""
        method = ctx.method.name
        sent = None if error is None else as_connect_error(error, method, self._containment)
        code = "ok" if sent is None else sent.code.value
        self.count(method, code, token.at)
        if token.span is not None:
            token.span.end(code)
        if sent is not None and sent is not error:
            raise sent from error

    def count(self, method: str, code: str, began: float) -> None:
        """Count a call that has ended; of plain HTTP, by its path."""
        self.times[method].observe(trio.current_time() - began)
        self.ended[method, code] += 1


class Route(Protocol):
    """Answers plain HTTP requests for some paths."""

    def answers(self, path: str) -> bool:
        """Whether it answers requests for a path."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""


class Application(ConnectASGIApplication[Methods]):
    """All that is served on the port, over Connect, gRPC and gRPC-Web.

    Args:
        methods: The methods of all services.
        calls: Admits and counts the calls of methods.
        routes: Answer other requests.
        message_bytes: The size of a request, at most.
    """

    def __init__(
        self, methods: Methods, calls: Calls, routes: Sequence[Route] = (), *, message_bytes: int
    ) -> None:
        self._routes = routes
        super().__init__(
            service=methods,
            endpoints=lambda methods: methods.endpoints,
            interceptors=(calls,),
            read_max_bytes=message_bytes,
            codecs=codecs(),
        )

    @property
    def path(self) -> str:
        """The path below which another application would mount this one."""
        return "/"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request; a stream ends as soon as its client left."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        connection = Connection()
        CONNECTION.set(connection)
        CALLER.set(Caller.of(scope))
        on_disconnect(scope, connection.lost)
        for route in self._routes:
            if route.answers(scope["path"]):
                await route(scope, receive, send)
                return
        if (unusable := _unusable(scope)) is not None:
            status, reason = unusable
            await respond(send, status, f"{reason}\n".encode())
            return
        try:
            await super().__call__(scope, receive, send)
        except ConnectError as error:
            if error.code not in (Code.DEADLINE_EXCEEDED, Code.CANCELED):
                raise
            # A client may set any deadline: if it passes while the response is sent, the service
            # has not failed.
            raise ClientDisconnected("its deadline passed while its answer was sent") from error

    async def _call_unary(self, *arguments: Any) -> Any:
        return await super()._call_unary(*without_a_task(arguments))

    async def _call_stream(self, *arguments: Any) -> None:
        await super()._call_stream(*without_a_task(arguments))


def _shown(scope: Message) -> str | None:
    """The header ``authorization`` of a request; None without one."""
    shown = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    return shown[0].decode("latin-1") if shown else None


def _name_caller(identity: Identity | None) -> None:
    """Store the identity of the current request's client."""
    if identity is not None:
        caller = CALLER.get()
        CALLER.set(replace(caller, subject=identity.subject, projects=identity.projects))


def _unusable(scope: Message) -> tuple[int, str] | None:
    """The status and the reason if connectrpc would fail on a request; None if it would not."""
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
