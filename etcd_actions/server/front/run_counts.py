"""Sends the numbers of actions of runs, for the page's list of runs: a method of our own.

The numbers are those of the watch of this process. A run that another process watches, as with
shards, is listed instead: at first, and whenever its record changes.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import trio

from etcd_actions.follow.run_counts import ActionCounts
from etcd_actions.model import ActionId
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb
from etcd_actions.server.required import require_runs

if TYPE_CHECKING:
    from etcd_actions.client import ActionsClient
    from etcd_actions.runs.run_index import RunIndex
    from etcd_actions.server.streams import Streams

MOST_RUNS: Final = 200
"""The most runs of a request."""
_EVERY: Final = 0.5
"""Seconds between two messages of a stream."""
_NO_RECORD: Final = -1


class RunCounts:
    """The method of the service that counts the actions of runs.

    Args:
        client: Has the watch.
        streams: The open streams.
        keepalive: Seconds of silence after which a stream sends an empty message.
        index: The records of runs; None if there are none.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["Operations"]

    def __init__(
        self, client: ActionsClient, streams: Streams, keepalive: float, index: RunIndex | None
    ) -> None:
        self._client = client
        self._streams = streams
        self._keepalive = keepalive
        self._index = index

    async def watch_counts(
        self, request: pb.WatchCountsRequest
    ) -> AsyncIterator[pb.WatchCountsResponse]:
        """The counts of all requested runs, then those that change, until the client leaves."""
        roots = require_runs(request.runs, MOST_RUNS)
        runs = [_Run(self._client, root) for root in roots]
        try:
            with self._streams.open_for_page() as stream:
                due = -math.inf
                while not stream.has_ended:
                    changed = []
                    for run in runs:
                        if await run.read(self._revision(run)):
                            changed.append(run)
                    if changed or trio.current_time() >= due:
                        due = trio.current_time() + self._keepalive
                        self._streams.sent += len(changed)
                        yield _message(changed)
                    await stream.wait(_EVERY)
        finally:
            for run in runs:
                run.counter.close()

    def _revision(self, run: _Run) -> int:
        """The revision of a run's record."""
        entry = None if self._index is None else self._index.get(run.record)
        return _NO_RECORD if entry is None else entry.revision


class _Run:
    """A run, and the counts that were sent."""

    def __init__(self, client: ActionsClient, root: ActionId) -> None:
        self._client = client
        self._id = root.run_id
        self.name = pb.RunName(project=root.project, domain=root.domain, run=root.run)
        self.record = client.keys.run_record(root)
        self.counter = client.count_actions(self._id)
        self.counts: ActionCounts | None = None
        self._listed_at: int | None = None

    async def read(self, revision: int) -> bool:
        """Read the counts; returns whether they have changed.

        Args:
            revision: That of the run's record.
        """
        counts = await self.counter.read()
        if counts is not None:
            self._listed_at = None
        elif self._listed_at == revision:
            return False
        else:
            listing = await self._client.list_run_actions(self._id, traces=True)
            ended = sum(action.phase.is_terminal for action in listing.actions)
            counts = ActionCounts(ended, len(listing.actions))
            self._listed_at = revision
        has_changed = counts != self.counts
        self.counts = counts
        return has_changed


def _message(runs: Sequence[_Run]) -> pb.WatchCountsResponse:
    response = pb.WatchCountsResponse()
    for each in runs:
        assert each.counts is not None
        ended, actions = each.counts
        response.runs.add(run=each.name, ended=ended, actions=actions)
    return response
