"""The methods of the front door, in this process, on etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Final

import trio
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from google.protobuf.message import Message

from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.cli.calls import MessageT
from etcd_actions.client import ActionsClient
from etcd_actions.errors import (
    EtcdActionsError,
    FailedPrecondition,
    NotFound,
    NotServed,
    ServiceRefused,
)
from etcd_actions.etcd import Etcd
from etcd_actions.runs.run_index import RunIndex, open_run_index
from etcd_actions.server.caller import CALLER, Caller
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.run_lists import RunLists
from etcd_actions.server.front.run_methods import RunService
from etcd_actions.server.methods import Service, functions_of
from etcd_actions.server.streams import CONNECTION, Connection, Streams

_KEEPALIVE: Final = 30.0
"""Seconds of silence after which a stream sends a message."""
_MOST_STREAMS: Final = 10_000
_ERRORS: Final[dict[Code, type[EtcdActionsError]]] = {
    Code.NOT_FOUND: NotFound,
    Code.FAILED_PRECONDITION: FailedPrecondition,
}
_LISTS: Final = ("ListRuns", "WatchRuns")


@asynccontextmanager
async def open_local_calls(
    etcd: Etcd, client: ActionsClient, front: FrontDoor | None = None
) -> AsyncIterator[LocalCalls]:
    """Open the methods of the front door in this process, until the context is left.

    Args:
        etcd: The connection.
        client: A client on it; it need not watch.
        front: Services in addition to those that read runs and actions.
    """
    async with owned_tasks("the reads") as nursery:
        calls = LocalCalls(etcd, client, nursery)
        for service in () if front is None else front.services(calls.streams):
            calls.add(service)
        yield calls
        nursery.cancel_scope.cancel("the reader is closed")


class LocalCalls:
    """Implements :class:`~etcd_actions.cli.calls.Calls`; made by :func:`open_local_calls`.

    Attributes:
        streams: The open streams.
    """

    def __init__(self, etcd: Etcd, client: ActionsClient, nursery: trio.Nursery) -> None:
        self._etcd = etcd
        self._client = client
        self._nursery = nursery
        self.streams = Streams(_MOST_STREAMS)
        self._functions: dict[tuple[str, str], Callable[[Any], Any]] = {}
        self._opening = trio.Lock()
        self.add(RunService(client, self.streams, _KEEPALIVE))

    def add(self, service: Service) -> None:
        """Add the methods of a service."""
        for method, function in functions_of(service):
            self._functions[service.descriptor.full_name, method.name] = function

    async def unary(
        self, service: str, method: str, request: Message, kind: type[MessageT], /
    ) -> MessageT:
        """See :class:`~etcd_actions.cli.calls.Calls`."""
        function = await self._function(service, method)
        with _as_caller():
            response = await function(request)
        assert isinstance(response, kind)
        return response

    @asynccontextmanager
    async def stream(
        self, service: str, method: str, request: Message, kind: type[MessageT], /
    ) -> AsyncIterator[AsyncIterator[MessageT]]:
        """See :class:`~etcd_actions.cli.calls.Calls`."""
        function = await self._function(service, method)
        with _as_caller():
            async with aclosing(function(request)) as responses:
                yield responses

    async def _function(self, service: str, method: str) -> Callable[[Any], Any]:
        async with self._opening:
            if method in _LISTS and (service, method) not in self._functions:
                index: RunIndex = await self._nursery.start(self._keep_index)
                self.add(RunLists(index, self.streams, _KEEPALIVE))
        try:
            return self._functions[service, method]
        except KeyError:
            raise NotServed(
                f"{service}/{method} is not served on etcd: name a service with --service"
            ) from None

    async def _keep_index(self, *, task_status: trio.TaskStatus[RunIndex]) -> None:
        async with open_run_index(self._etcd, self._client.keys) as index:
            task_status.started(index)
            await trio.sleep_forever()


@contextmanager
def _as_caller() -> Iterator[None]:
    """Make the body the call of a client of all projects, and translate its errors."""
    caller, connection = CALLER.set(Caller("")), CONNECTION.set(Connection())
    try:
        yield
    except ConnectError as error:
        raise _ERRORS.get(error.code, ServiceRefused)(error.message) from None
    finally:
        CALLER.reset(caller)
        CONNECTION.reset(connection)
