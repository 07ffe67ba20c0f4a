"""Flyte's ActionsService: five methods on an ActionsClient."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions._internal.tracing import span
from etcd_actions.client import ActionsClient
from etcd_actions.errors import InvalidArgument, NameTaken
from etcd_actions.follow.subscriptions import SnapshotEnd
from etcd_actions.model import ErrorState
from etcd_actions.server.operations import abort_response, enqueue_response
from etcd_actions.server.required import require
from etcd_actions.server.streams import Streams
from etcd_actions.server.update_messages import is_sent, response, sentinel

_log = structlog.get_logger(__name__)

TraceError = Callable[["pb.Action"], Awaitable[ErrorState | None]]
"""Reads the error of a failed trace, for which its message has no field."""


class ActionsService:
    """Serves Flyte's SDK, its run service and operators.

    Args:
        client: Reads and changes the actions.
        streams: The open streams.
        keepalive: Seconds of silence after which a stream is sent another sentinel.
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
        """Create an action; the same request again is not an error."""
        require(request, "action")
        run_spec = request.run_spec if request.HasField("run_spec") else None
        trace_error = None
        if request.action.WhichOneof("spec") == "trace":
            trace_error = await self._trace_error(request.action)
        with span("enqueue", {"action": request.action.action_id.name}):
            try:
                done = await self._client.enqueue(request.action, run_spec, trace_error=trace_error)
            except NameTaken as error:
                # Flyte's run service answers CreateRun as if that had succeeded.
                _log.warning("name_taken", reason=str(error))
                raise
        return enqueue_response(created=done.created)

    async def update(self, request: pb.UpdateRequest) -> pb.UpdateResponse:
        """Report the status of an action."""
        require(request, "action_id", "status")
        with span("status", {"action": request.action_id.name}):
            await self._client.put_status(request.action_id, request.attempt, request.status)
        return pb.UpdateResponse()

    async def abort(self, request: pb.AbortRequest) -> pb.AbortResponse:
        """End an action and all actions below it."""
        require(request, "action_id")
        with span("abort", {"action": request.action_id.name}):
            named, reason, by = request.action_id, request.reason, request.aborted_by
            done = await self._client.abort_action(named, reason, by)
        return abort_response(done)

    async def signal(self, request: pb.SignalRequest) -> pb.SignalResponse:
        """Deliver the value of a condition."""
        require(request, "action_id", "value")
        with span("signal", {"action": request.action_id.name}):
            await self._client.signal(request.action_id, request.value, request.signalled_by)
        return pb.SignalResponse()

    async def watch_for_updates(
        self, request: pb.WatchForUpdatesRequest
    ) -> AsyncIterator[pb.WatchForUpdatesResponse]:
        """The states of an action and its children, and each newer state.

        First the states at one revision and a sentinel, then newer states. It ends without an
        error when its client left, when it cannot be served any more, and when the service ends.
        """
        if request.WhichOneof("filter") is None:
            raise InvalidArgument("parent_action_id", "it is missing: give an action")
        parent = request.parent_action_id
        subscription = self._client.subscribe(parent, snapshot=True)
        async with self._streams.follow(subscription) as (stream, updates):
            while not stream.has_ended:
                try:
                    item = await stream.receive(updates, self._keepalive)
                except trio.EndOfChannel:
                    return
                if item is None:
                    if not stream.has_ended:
                        yield sentinel()
                elif isinstance(item, SnapshotEnd):
                    yield sentinel()
                elif is_sent(item):
                    self._streams.sent += 1
                    yield response(item, parent.run.org)
