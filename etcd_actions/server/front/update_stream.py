"""Sends the updates of all actions, or of a run's, for the commands: a method of our own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import trio

from etcd_actions.client import ActionsClient
from etcd_actions.errors import InvalidArgument
from etcd_actions.follow.subscriptions import SnapshotEnd
from etcd_actions.model import ActionUpdate, RunId
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb
from etcd_actions.server.caller import CALLER
from etcd_actions.server.streams import Streams


class UpdateStream:
    """The method WatchUpdates of our own service, for commands that follow actions.

    Args:
        client: Its watch is shared by all streams.
        streams: The open streams.
        keepalive: Seconds of silence after which a stream sends an empty message.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["Operations"]

    def __init__(self, client: ActionsClient, streams: Streams, keepalive: float) -> None:
        self._client = client
        self._streams = streams
        self._keepalive = keepalive

    async def watch_updates(
        self, request: pb.WatchUpdatesRequest
    ) -> AsyncIterator[pb.WatchUpdatesResponse]:
        """The states of the client's projects at one revision, then each newer one.

        It ends without an error when its client left, and when the service ends.
        """
        is_of_run = bool(request.project and request.domain and request.run)
        if request.run and not is_of_run:
            raise InvalidArgument("run", "it needs a project and a domain")
        subscription = (
            self._client.subscribe_run(RunId(request.project, request.domain, request.run))
            if is_of_run
            else self._client.subscribe_all()
        )
        async with self._streams.follow(subscription) as (stream, updates):
            while not stream.has_ended:
                try:
                    item = await stream.receive(updates, self._keepalive)
                except trio.EndOfChannel:
                    return
                if item is None:
                    if not stream.has_ended:
                        yield pb.WatchUpdatesResponse()
                elif isinstance(item, SnapshotEnd):
                    yield pb.WatchUpdatesResponse(synced=item.revision)
                elif _is_meant(item, request):
                    self._streams.sent += 1
                    yield pb.WatchUpdatesResponse(json=msgspec.json.encode(item))


def _is_meant(update: ActionUpdate, request: pb.WatchUpdatesRequest) -> bool:
    """Whether the client requests an update, and may read it."""
    named = update.action_id
    return (
        CALLER.get().may_use(named.project)
        and request.project in ("", named.project)
        and request.domain in ("", named.domain)
    )
