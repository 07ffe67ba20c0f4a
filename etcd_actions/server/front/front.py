"""The services of the front door, put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from etcd_actions.registry.registry import Registry
from etcd_actions.runs.index import RunIndex
from etcd_actions.server.application import Route
from etcd_actions.server.front.run_lists import Paused, RunLists
from etcd_actions.server.front.tasks import TaskService
from etcd_actions.server.methods import Service
from etcd_actions.server.streams import Streams


@dataclass(frozen=True, kw_only=True)
class Front:
    """What the SDK's own entry points need; made by who runs the service.

    Attributes:
        keepalive: After so many seconds without news a stream sends something, where it can.
        index: All runs; None serves no lists of them.
        registry: The deployed tasks; None serves none.
        paused: Says which runs wait for a signal; see :data:`Paused`.
    """

    keepalive: float
    index: RunIndex | None = None
    registry: Registry | None = None
    paused: Paused | None = None

    def services(self, streams: Streams) -> Iterable[Service]:
        """The services, each with its methods."""
        if self.index is not None:
            yield RunLists(self.index, streams, self.keepalive, self.paused)
            if self.registry is not None:
                yield TaskService(self.registry, self.index)

    def routes(self) -> Iterable[Route]:
        """What is served by plain HTTP."""
        return ()
