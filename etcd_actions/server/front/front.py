"""The services of the front door, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from etcd_actions.client import ActionsClient
from etcd_actions.registry.registry import Registry
from etcd_actions.runs.creation import RunData
from etcd_actions.runs.index import RunIndex
from etcd_actions.server.application import Route
from etcd_actions.server.front.cluster import ClusterService
from etcd_actions.server.front.identity import IdentityService
from etcd_actions.server.front.images import FindImage, ImageService
from etcd_actions.server.front.logs import Logs, LogService
from etcd_actions.server.front.projects import ProjectService, ProjectSettings
from etcd_actions.server.front.refused import NoApps, RefusedMethods
from etcd_actions.server.front.run_lists import Paused, RunLists
from etcd_actions.server.front.runs import DeployedTasks, RunService
from etcd_actions.server.front.tasks import TaskService
from etcd_actions.server.front.triggers import TriggerService
from etcd_actions.server.methods import Service
from etcd_actions.server.streams import Streams


@dataclass(frozen=True, kw_only=True)
class Front:
    """What the SDK's own entry points need; made by who runs the service.

    Attributes:
        client: Who changes and reads actions; its containment is the boundary of what runs here.
        keepalive: After so many seconds without news a stream sends something, where it can.
        data: Where runs keep their data; None refuses runs that need a place for it.
        logs: What the logs of attempts are read with.
        index: All runs; None serves no lists of them.
        registry: The deployed tasks; None serves none.
        paused: Says which runs wait for a signal; see :data:`Paused`.
        projects: Which projects there are.
        projects_with_runs: Gives the names of projects that have runs.
        find_image: Gives an image's full name; None: nothing is ever built.
    """

    client: ActionsClient
    keepalive: float
    data: RunData | None = None
    logs: Logs | None = None
    index: RunIndex | None = None
    registry: Registry | None = None
    paused: Paused | None = None
    projects: ProjectSettings = field(default_factory=ProjectSettings)
    projects_with_runs: Callable[[], Iterable[str]] = tuple
    find_image: FindImage | None = None

    def services(self, streams: Streams) -> Iterable[Service]:
        """The services, each with its methods."""
        deployed = None if self.registry is None else DeployedTasks(self.registry)
        yield RunService(self.client, streams, self.keepalive, data=self.data, deployed=deployed)
        if self.logs is not None:
            yield LogService(self.logs, streams, self.keepalive)
        if self.index is not None:
            yield RunLists(self.index, streams, self.keepalive, self.paused)
            if self.registry is not None:
                yield TaskService(self.registry, self.index)
        yield ClusterService()
        yield ProjectService(self.projects, self.projects_with_runs)
        yield IdentityService()
        yield ImageService(self.find_image)
        yield TriggerService()
        yield NoApps()
        yield RefusedMethods()

    def routes(self) -> Iterable[Route]:
        """What is served by plain HTTP."""
        return ()
