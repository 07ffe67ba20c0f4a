"""The services of the front door."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from etcd_actions.blobs import BlobStore, Deployment, UrlSigner
from etcd_actions.client import ActionsClient
from etcd_actions.images import ImageBuilds
from etcd_actions.registry.projects import Projects
from etcd_actions.registry.registry import Registry
from etcd_actions.runs.run_index import RunIndex
from etcd_actions.server.application import Calls, Route
from etcd_actions.server.front.attempt_logs import LogService, LogSources
from etcd_actions.server.front.cluster_state import ClusterSources, ClusterState
from etcd_actions.server.front.data_proxy_service import DataProxy
from etcd_actions.server.front.legacy_methods import LegacyDataProxy, LegacyLogs
from etcd_actions.server.front.local_files import LocalFiles
from etcd_actions.server.front.page_streams import PageStream, run_changes
from etcd_actions.server.front.platform_services import (
    AppService,
    ClusterService,
    IdentityService,
    ImageService,
    TriggerService,
)
from etcd_actions.server.front.project_service import ProjectService, ProjectSettings
from etcd_actions.server.front.refused_methods import refuse_others
from etcd_actions.server.front.run_counts import RunCounts
from etcd_actions.server.front.run_data import RunBlobs
from etcd_actions.server.front.run_deletion import RunDeletion
from etcd_actions.server.front.run_lists import FindPaused, RunLists
from etcd_actions.server.front.run_messages import RunMessages
from etcd_actions.server.front.run_methods import RunService
from etcd_actions.server.front.stored_objects import StoredObjects
from etcd_actions.server.front.task_service import TaskService
from etcd_actions.server.front.transfers import Transfers
from etcd_actions.server.front.update_stream import UpdateStream
from etcd_actions.server.methods import Methods, Service
from etcd_actions.server.streams import Streams


@dataclass(frozen=True, kw_only=True)
class FrontDoor:
    """The services that the SDK calls in addition to ActionsService.

    Attributes:
        client: Changes and reads actions; its containment is the boundary of the services.
        keepalive: Seconds of silence after which a stream sends a message, if it can.
        blobs: Stores bundles, inputs and, by default, outputs; None serves no data, and refuses
            runs that need it.
        signer: Signs the URLs of transfers; by default with the client's keys.
        reads_local_files: Whether files of runs are read from this machine, too.
        max_upload_bytes: Bytes of an upload, at most.
        logs: Reads the logs of attempts.
        index: All runs; None serves no lists of them.
        registry: The deployed tasks; None serves none.
        paused: See :data:`FindPaused`.
        projects: The projects and domains.
        projects_with_runs: Returns the names of projects that have runs.
        builds: Builds images; None: no image has to be built.
        run_messages: Encodes messages with runs, for all ports.
        cluster: The sources of the state of the cluster; None: the page does not show it.
    """

    client: ActionsClient
    keepalive: float
    blobs: BlobStore | None = None
    signer: UrlSigner | None = None
    reads_local_files: bool = False
    max_upload_bytes: int = 5 << 30
    logs: LogSources | None = None
    index: RunIndex | None = None
    registry: Registry | None = None
    paused: FindPaused | None = None
    projects: ProjectSettings = field(default_factory=ProjectSettings)
    projects_with_runs: Callable[[], Iterable[str]] = tuple
    builds: ImageBuilds | None = None
    run_messages: RunMessages = field(default_factory=RunMessages)
    cluster: ClusterSources | None = None

    def add_to(self, methods: Methods, streams: Streams) -> None:
        """Add the methods of its services, and refuse Flyte's others."""
        for service in self.services(streams):
            methods.add(service)
        refuse_others(methods)

    def services(self, streams: Streams) -> Iterable[Service]:
        """Its services, for the streams of one port or of this process."""
        find_task = None if self.registry is None else self.registry.task_spec
        data = None if self.blobs is None else RunBlobs(self.blobs, self._deployment)
        yield RunService(
            self.client,
            streams,
            self.keepalive,
            data=data,
            find_task=find_task,
            builds=self.builds,
        )
        yield RunDeletion(self.client, self.blobs)
        yield StoredObjects(self.client, streams, self.keepalive)
        yield UpdateStream(self.client, streams, self.keepalive)
        yield RunCounts(self.client, streams, self.keepalive, self.index)
        if self.blobs is not None and self._transfers is not None:
            proxy = DataProxy(
                self.client,
                self.blobs,
                self._local_files,
                self._signer,
                self._transfers,
                most=self.max_upload_bytes,
                deployment=self._deployment,
                find_task=find_task,
            )
            yield proxy
            yield LegacyDataProxy(proxy.get_action_data)
        if self.logs is not None:
            log_service = LogService(self.logs, streams, self.keepalive)
            yield log_service
            yield LegacyLogs(log_service.tail_logs)
        if self.index is not None:
            yield RunLists(self.index, streams, self.keepalive, self.paused, self.run_messages)
            if self.registry is not None:
                yield TaskService(self.registry, self.index)
        yield ClusterService()
        yield ProjectService(
            self.projects,
            self._stored_projects,
            self.projects_with_runs,
            ready=None if self.index is None else self.index.ready,
        )
        yield IdentityService()
        yield ImageService(None if self.builds is None else self.builds.find)
        yield TriggerService()
        yield AppService()

    def page_streams(self, calls: Calls, streams: Streams) -> Iterable[Route]:
        """The streams of the page."""
        if self.index is not None:
            lines = run_changes(self.index, streams, self.run_messages, self.keepalive)
            yield PageStream("/page/runs", self.client, calls, lines)
        if self.cluster is not None:
            state = ClusterState(self.client, self.cluster, calls, streams, self._number_of_runs)
            yield PageStream("/page/cluster", self.client, calls, state.lines)

    def _number_of_runs(self) -> int | None:
        index = self.index
        return index.statistics().runs if index is not None and index.is_loaded else None

    def routes(self) -> Iterable[Route]:
        """The routes of plain HTTP."""
        if self._transfers is not None:
            yield self._transfers

    @cached_property
    def _stored_projects(self) -> Projects:
        return Projects(self.client.store, self.client.keys)

    @cached_property
    def _signer(self) -> UrlSigner:
        return self.signer or UrlSigner(self.client.store, self.client.keys)

    @cached_property
    def _deployment(self) -> Deployment:
        return Deployment(self.client.store, self.client.keys)

    @cached_property
    def _local_files(self) -> LocalFiles | None:
        return LocalFiles() if self.reads_local_files else None

    @cached_property
    def _transfers(self) -> Transfers | None:
        """One for all ports: it limits the number of transfers at once."""
        if self.blobs is None:
            return None
        return Transfers(self.blobs, self._local_files, self._signer, self.max_upload_bytes)
