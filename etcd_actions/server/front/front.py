"""The services of the front door, put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from etcd_actions.client import ActionsClient
from etcd_actions.runs.creation import Deployed, RunData
from etcd_actions.server.application import Route
from etcd_actions.server.front.logs import Logs, LogService
from etcd_actions.server.front.runs import RunService
from etcd_actions.server.methods import Service
from etcd_actions.server.streams import Streams


@dataclass(frozen=True, kw_only=True)
class Front:
    """What the SDK's own entry points need; made by who runs the service.

    Attributes:
        client: Who changes and reads actions; its containment is the boundary of what runs here.
        keepalive: After so many seconds without news a stream sends something, where it can.
        data: Where runs keep their data; None refuses runs that need a place for it.
        deployed: The deployed tasks; None refuses runs of these.
        logs: What the logs of attempts are read with.
    """

    client: ActionsClient
    keepalive: float
    data: RunData | None = None
    deployed: Deployed | None = None
    logs: Logs | None = None

    def services(self, streams: Streams) -> Iterable[Service]:
        """The services, each with its methods."""
        yield RunService(
            self.client, streams, self.keepalive, data=self.data, deployed=self.deployed
        )
        if self.logs is not None:
            yield LogService(self.logs, streams, self.keepalive)

    def routes(self) -> Iterable[Route]:
        """What is served by plain HTTP."""
        return ()
