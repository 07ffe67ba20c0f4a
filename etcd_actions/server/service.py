"""Flyte's ActionsService: five methods on an ActionsClient."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import structlog
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions._internal.tracing import span
from etcd_actions.client import ActionsClient
from etcd_actions.errors import InvalidArgument, NameTaken
from etcd_actions.follow.subscriptions import SnapshotEnd
from etcd_actions.model import ErrorState
from etcd_actions.server.streams import Streams
from etcd_actions.server.update_messages import is_told, response, sentinel

if TYPE_CHECKING:
    from google.protobuf.message import Message

_log = structlog.get_logger(__name__)

TraceError = Callable[["pb.Action"], Awaitable[ErrorState | None]]
"""Finds out why a trace failed, which its message has no field for."""


class ActionsService:
    """Answers what Flyte's SDK, its run service and operators ask.

    Args:
        client: Who does it.
        streams: The open streams.
        keepalive: Seconds of silence after which a stream is given a sentinel once more.
        trace_error: See :data:`TraceError`.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["ActionsService"]

    def __init__(
        self, client: ActionsClient, streams: Streams, keepalive: float, trace_error: TraceError
    ) -> None:
        self._client = client
        self._streams = streams
        self._keepalive = keepalive
        self._trace_error = trace_error

    async def enqueue(self, request: pb.EnqueueRequest) -> pb.EnqueueResponse:
        """Create an action; the same request again is no error."""
        _need(request, "action")
        run_spec = request.run_spec if request.HasField("run_spec") else None
        trace_error = None
        if request.action.WhichOneof("spec") == "trace":
            trace_error = await self._trace_error(request.action)
        with span("enqueue", {"action": request.action.action_id.name}):
            try:
                await self._client.enqueue(request.action, run_spec, trace_error=trace_error)
            except NameTaken as error:
                # Flyte's run service answers CreateRun as if it had gone well.
                _log.warning("name_taken", reason=str(error))
                raise
        return pb.EnqueueResponse()

    async def update(self, request: pb.UpdateRequest) -> pb.UpdateResponse:
        """Report how far an action is."""
        _need(request, "action_id", "status")
        with span("status", {"action": request.action_id.name}):
            await self._client.put_status(request.action_id, request.attempt, request.status)
        return pb.UpdateResponse()

    async def abort(self, request: pb.AbortRequest) -> pb.AbortResponse:
        """End an action and all below it."""
        _need(request, "action_id")
        with span("abort", {"action": request.action_id.name}):
            await self._client.abort_action(request.action_id, request.reason, request.aborted_by)
        return pb.AbortResponse()

    async def signal(self, request: pb.SignalRequest) -> pb.SignalResponse:
        """Give a condition its value."""
        _need(request, "action_id", "value")
        with span("signal", {"action": request.action_id.name}):
            await self._client.signal(request.action_id, request.value, request.signalled_by)
        return pb.SignalResponse()

    async def watch_for_updates(
        self, request: pb.WatchForUpdatesRequest
    ) -> AsyncIterator[pb.WatchForUpdatesResponse]:
        """What became of an action and its children, and what becomes of them.

        First the states at one revision and a sentinel, then what is newer. It ends without
        an error when its client is gone, when it cannot be served any more, and when the
        service ends.
        """
        if request.WhichOneof("filter") is None:
            raise InvalidArgument("parent_action_id", "it is missing: say whose updates")
        parent = request.parent_action_id
        with self._streams.open() as stream:
            async with self._client.subscribe(parent, snapshot=True) as updates:
                try:
                    while not stream.is_over:
                        try:
                            item = await stream.receive(updates, self._keepalive)
                        except trio.EndOfChannel:
                            return
                        if item is None:
                            if not stream.is_over:
                                yield sentinel()
                        elif isinstance(item, SnapshotEnd):
                            yield sentinel()
                        elif is_told(item):
                            self._streams.sent += 1
                            yield response(item, parent.run.org)
                finally:
                    self._streams.conflated += updates.statistics().conflated


def _need(request: Message, *fields: str) -> None:
    for field in fields:
        if not request.HasField(field):
            raise InvalidArgument(field, "it is missing")
