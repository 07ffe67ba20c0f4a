"""The services of the front door, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from etcd_actions.server.application import Route
from etcd_actions.server.front.cluster import ClusterService
from etcd_actions.server.front.identity import IdentityService
from etcd_actions.server.front.images import FindImage, ImageService
from etcd_actions.server.front.projects import ProjectService, ProjectSettings
from etcd_actions.server.front.refused import NoApps, RefusedMethods
from etcd_actions.server.front.triggers import TriggerService
from etcd_actions.server.methods import Service
from etcd_actions.server.streams import Streams


@dataclass(frozen=True, kw_only=True)
class Front:
    """What the SDK's own entry points need; made by who runs the service.

    Attributes:
        keepalive: After so many seconds without news a stream sends something, where it can.
        projects: Which projects there are.
        projects_with_runs: Gives the names of projects that have runs.
        find_image: Gives an image's full name; None: nothing is ever built.
    """

    keepalive: float
    projects: ProjectSettings = field(default_factory=ProjectSettings)
    projects_with_runs: Callable[[], Iterable[str]] = tuple
    find_image: FindImage | None = None

    def services(self, streams: Streams) -> Iterable[Service]:
        """The services, each with its methods."""
        return (
            ClusterService(),
            ProjectService(self.projects, self.projects_with_runs),
            IdentityService(),
            ImageService(self.find_image),
            TriggerService(),
            NoApps(),
            RefusedMethods(),
        )

    def routes(self) -> Iterable[Route]:
        """What is served by plain HTTP."""
        return ()
