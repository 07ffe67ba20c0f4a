"""The table of methods: each service adds its own, and all of them have the same bounds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import trio
from connectrpc.code import Code
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import Endpoint

from etcd_actions._internal.containment import Containment
from etcd_actions.server.boundaries import guarded, guarded_stream
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.project_access import Access, has_rule

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Service(Protocol):
    """What is served beside others on one port."""

    def add_to(self, methods: Methods) -> None:
        """Add each of its methods."""
        ...


class UnaryCalls:
    """Bounds calls that are no stream."""

    def __init__(self, timeout: float, containment: Containment) -> None:
        self._timeout = timeout
        self._containment = containment
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
                    return await guarded(self._containment, name, function(request))
                finally:
                    self._open.discard(scope)
            # It may have been done: the same again is safe.
            why = "the service is ending" if self._cut_off else "it took too long"
            raise Refusal(Code.UNAVAILABLE, why)

        return call


class Methods:
    """Collects the methods of services; each has a boundary, and a unary one a time, too.

    Args:
        calls: Bounds those that are no stream.
        containment: The boundary of each call.
        access: Decides which projects a request may name.
    """

    def __init__(self, calls: UnaryCalls, containment: Containment, access: Access) -> None:
        self._calls = calls
        self._containment = containment
        self._access = access
        # The library names the class of an endpoint in its public interface, and no kind of it.
        self._table: dict[str, Any] = {}
        self._services: dict[str, None] = {}
        self._answered: dict[str, MethodInfo[Any, Any]] = {}
        self._only_missing = False

    @contextmanager
    def only_what_is_missing(self) -> Iterator[None]:
        """Add refusals: only methods that nothing has added, and anything else replaces them.

        They do not make a service one that is served.
        """
        self._only_missing = True
        try:
            yield
        finally:
            self._only_missing = False

    @property
    def endpoints(self) -> Mapping[str, Any]:
        """The endpoints by their paths."""
        return self._table

    @property
    def answered(self) -> Mapping[str, MethodInfo[Any, Any]]:
        """The methods that are not only refused, by their paths."""
        return self._answered

    @property
    def services(self) -> tuple[str, ...]:
        """The full names of all services that have a method."""
        return tuple(self._services)

    def unary(
        self,
        service: str,
        name: str,
        request: type[_Request],
        response: type[_Response],
        function: Callable[[_Request], Awaitable[_Response]],
    ) -> None:
        """Add a method that gives one answer."""
        method = _method(service, name, request, response, StreamType.UNARY)

        async def checked(request: _Request) -> _Response:
            self._check(method, request)
            return await function(request)

        self._add(Endpoint.unary(method, self._calls.bounded(name, checked)))

    def server_stream(
        self,
        service: str,
        name: str,
        request: type[_Request],
        response: type[_Response],
        function: Callable[[_Request], AsyncIterator[_Response]],
    ) -> None:
        """Add a method that gives one answer after another."""
        method = _method(service, name, request, response, StreamType.SERVER_STREAM)

        async def checked(request: _Request) -> AsyncIterator[_Response]:
            self._check(method, request)
            responses = function(request)
            try:
                async for each in responses:
                    yield each
            finally:
                if isinstance(responses, AsyncGenerator):
                    await responses.aclose()

        def call(
            request: _Request, _: RequestContext[_Request, _Response]
        ) -> AsyncIterator[_Response]:
            return guarded_stream(self._containment, name, checked(request))

        self._add(Endpoint.server_stream(method, call))

    def bidi_stream(
        self,
        service: str,
        name: str,
        request: type[_Request],
        response: type[_Response],
        function: Callable[[AsyncIterator[_Request]], AsyncIterator[_Response]],
    ) -> None:
        """Add a method that answers while it is asked."""
        method = _method(service, name, request, response, StreamType.BIDI_STREAM)

        async def checked(requests: AsyncIterator[_Request]) -> AsyncIterator[_Request]:
            async for each in requests:
                self._check(method, each)
                yield each

        async def answers(requests: AsyncIterator[_Request]) -> AsyncIterator[_Response]:
            checked_requests = checked(requests)
            responses = function(checked_requests)
            try:
                async for each in responses:
                    yield each
            finally:
                for generator in (responses, checked_requests):
                    if isinstance(generator, AsyncGenerator):
                        await generator.aclose()

        def call(
            requests: AsyncIterator[_Request], _: RequestContext[_Request, _Response]
        ) -> AsyncIterator[_Response]:
            return guarded_stream(self._containment, name, answers(requests))

        self._add(Endpoint.bidi_stream(method, call))

    def _check(self, method: MethodInfo[Any, Any], request: Any) -> None:
        self._access.check(_full_name(method), request)

    def _add(self, endpoint: Any) -> None:
        method = endpoint.method
        path = f"/{method.service_name}/{method.name}"
        if self._only_missing:
            self._table.setdefault(path, endpoint)
            return
        if not has_rule(_full_name(method), method.input.DESCRIPTOR):
            raise ValueError(
                f"{_full_name(method)} names no project: add it to access.WITHOUT_A_PROJECT if it "
                "tells nothing that belongs to one"
            )
        self._services[method.service_name] = None
        self._answered[path] = method
        self._table[path] = endpoint


def _full_name(method: MethodInfo[Any, Any]) -> str:
    return f"{method.service_name}/{method.name}"


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
