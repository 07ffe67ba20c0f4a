"""The table of methods: all have the same boundary, access check and time limit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final, Protocol, TypeVar

import trio
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.server import Endpoint
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from etcd_actions._internal.containment import Containment
from etcd_actions.errors import EtcdActionsError
from etcd_actions.server.error_codes import Refusal, failure
from etcd_actions.server.project_access import ProjectAccess, has_rule
from etcd_actions.web import ClientDisconnected

_Result = TypeVar("_Result")

_ENDPOINTS: Final[Mapping[StreamType, Callable[..., Any]]] = {
    StreamType.UNARY: Endpoint.unary,
    StreamType.SERVER_STREAM: Endpoint.server_stream,
    StreamType.BIDI_STREAM: Endpoint.bidi_stream,
}

Function = Callable[[Any], Any]
"""Takes a request, or an iterator of requests; returns a response, or generates several."""


class Service(Protocol):
    """Implements methods of one gRPC service, each under its name in snake case."""

    @property
    def descriptor(self) -> ServiceDescriptor:
        """The gRPC service."""


def functions_of(service: Service) -> Iterator[tuple[MethodDescriptor, Function]]:
    """The methods that a service implements, each with its function."""
    names = {name.replace("_", ""): name for name in dir(service) if not name.startswith("_")}
    for method in service.descriptor.methods:
        if (name := names.get(method.name.lower())) is not None:
            yield method, getattr(service, name)


class Methods:
    """Collects the methods of services.

    Args:
        timeout: Seconds that a unary call may take.
        containment: The boundary of each call.
        access: Checks which projects a request may name.

    Attributes:
        endpoints: The endpoints by path.
        answered: The methods by path, except those that :meth:`refuse` added.
    """

    def __init__(self, timeout: float, containment: Containment, access: ProjectAccess) -> None:
        self._timeout = timeout
        self._containment = containment
        self._access = access
        self._open: set[trio.CancelScope] = set()
        self._has_ended = False
        self.endpoints: dict[str, Any] = {}
        self.answered: dict[str, MethodInfo[Any, Any]] = {}

    @property
    def services(self) -> tuple[str, ...]:
        """The full names of the services that answer a method."""
        return tuple(dict.fromkeys(each.service_name for each in self.answered.values()))

    def add(self, service: Service) -> None:
        """Add each method that a service implements."""
        for method, function in functions_of(service):
            self.add_method(method_info(method), function)

    def add_method(self, method: MethodInfo[Any, Any], function: Function) -> None:
        """Add one method.

        Raises:
            ValueError: Its request names no project, and it is not listed as one that needs none.
        """
        name = _full_name(method)
        if not has_rule(name, method.input.DESCRIPTOR):
            raise ValueError(
                f"{name} names no project: add it to project_access.WITHOUT_A_PROJECT if it "
                "returns nothing that belongs to one"
            )
        self.answered[f"/{name}"] = method
        self.endpoints[f"/{name}"] = self._endpoint(method, function)

    def refuse(self, method: MethodDescriptor, reason: str) -> None:
        """Answer a method that nothing has added as unimplemented."""

        async def refuse(_: Any) -> Any:
            raise Refusal(Code.UNIMPLEMENTED, reason)

        async def refuse_stream(_: Any) -> AsyncIterator[Any]:
            raise Refusal(Code.UNIMPLEMENTED, reason)
            yield  # It makes this a stream.

        described = method_info(method)
        function = refuse_stream if method.server_streaming else refuse
        self.endpoints.setdefault(f"/{_full_name(described)}", self._endpoint(described, function))

    def interrupt(self) -> None:
        """End the unary calls in progress with UNAVAILABLE, which clients retry."""
        self._has_ended = True
        for scope in self._open:
            scope.cancel("the service ends")

    def _endpoint(self, method: MethodInfo[Any, Any], function: Function) -> Any:
        name = _full_name(method)

        async def checked(request: Any) -> Any:
            self._access.check(name, request)
            return await function(request)

        async def unary(request: Any, _: object) -> Any:
            with trio.move_on_after(self._timeout) as scope:
                self._open.add(scope)
                try:
                    return await guarded(self._containment, method.name, checked(request))
                finally:
                    self._open.discard(scope)
            # The call may have taken effect: to repeat it is safe.
            reason = f"no response within {self._timeout:g} s: see --request-timeout"
            if self._has_ended:
                reason = "the service is shutting down"
            raise Refusal(Code.UNAVAILABLE, reason)

        async def checked_requests(requests: AsyncIterator[Any]) -> AsyncGenerator[Any]:
            async for each in requests:
                self._access.check(name, each)
                yield each

        async def responses_to(request: Any) -> AsyncGenerator[Any]:
            async with AsyncExitStack() as stack:
                if method.stream_type is StreamType.BIDI_STREAM:
                    request = await stack.enter_async_context(aclosing(checked_requests(request)))
                else:
                    self._access.check(name, request)
                async for each in await stack.enter_async_context(aclosing(function(request))):
                    yield each

        async def stream(request: Any, _: object) -> AsyncIterator[Any]:
            responses = responses_to(request)
            try:
                while True:
                    step = anext(responses, None)
                    if (response := await guarded(self._containment, method.name, step)) is None:
                        return
                    yield response
            finally:
                await guarded(self._containment, method.name, responses.aclose())

        call = unary if method.stream_type is StreamType.UNARY else stream
        return _ENDPOINTS[method.stream_type](method, call)


async def guarded(containment: Containment, method: str, work: Awaitable[_Result]) -> _Result:
    """Raise only errors that have a code; contain any other one, and raise INTERNAL for it.

    connectrpc lets a SystemExit or an exception group pass, and sends the client nothing of use.
    """
    try:
        return await work
    except (ConnectError, EtcdActionsError, ClientDisconnected):
        raise
    except BaseException as error:
        containment.caught("request", method, error)
    raise failure()


def method_info(method: MethodDescriptor, service: str = "") -> MethodInfo[Any, Any]:
    """A method as connectrpc describes it; ``service`` replaces the name of its service."""
    if method.client_streaming:
        kind = StreamType.BIDI_STREAM
    else:
        kind = StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY
    return MethodInfo(
        name=method.name,
        service_name=service or method.containing_service.full_name,
        input=GetMessageClass(method.input_type),
        output=GetMessageClass(method.output_type),
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kind,
    )


def _full_name(method: MethodInfo[Any, Any]) -> str:
    return f"{method.service_name}/{method.name}"
