"""The services of the front door, put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from etcd_actions.server.application import Route
from etcd_actions.server.front.logs import Logs, LogService
from etcd_actions.server.methods import Service
from etcd_actions.server.streams import Streams


@dataclass(frozen=True, kw_only=True)
class Front:
    """What the SDK's own entry points need; made by who runs the service.

    Attributes:
        keepalive: After so many seconds without news a stream sends something, where it can.
        logs: What the logs of attempts are read with.
    """

    keepalive: float
    logs: Logs | None = None

    def services(self, streams: Streams) -> Iterable[Service]:
        """The services, each with its methods."""
        if self.logs is not None:
            yield LogService(self.logs, streams, self.keepalive)

    def routes(self) -> Iterable[Route]:
        """What is served by plain HTTP."""
        return ()
