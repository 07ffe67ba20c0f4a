"""The process of ``etcd-actions run``: the order in which its parts start and drain.

``App._serve`` has that order: the context that it enters first is left last.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from etcd_actions import __version__
from etcd_actions._internal.containment import Containment
from etcd_actions.app.cluster_sources import cluster_sources
from etcd_actions.app.collectors import collect, run_collector, upload_collector
from etcd_actions.app.executor import check_executor, open_local_executor
from etcd_actions.app.front_door import open_front_door
from etcd_actions.app.kept_executor import keep_executor
from etcd_actions.app.listeners import open_monitoring_port, server_settings
from etcd_actions.app.run_services import open_run_services
from etcd_actions.app.stop import LEAST_GRACE, Stop
from etcd_actions.app.telemetry import open_telemetry
from etcd_actions.app.worker_etcd import open_worker_etcd
from etcd_actions.client import ActionsClient, open_actions_client
from etcd_actions.config import Config, settings
from etcd_actions.embedded.data_directory import is_default_data_dir
from etcd_actions.embedded.embedded_etcd import QUOTA, EmbeddedEtcd, open_embedded_etcd
from etcd_actions.errors import ConfigError, EmbeddedEtcdError
from etcd_actions.etcd import open_connection
from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.member_states import open_member_states
from etcd_actions.etcd.quorum import QuorumMonitor, open_quorum_monitor
from etcd_actions.model import DEFAULT_NAMESPACE, Keyspace
from etcd_actions.monitoring import Health, Monitoring
from etcd_actions.pipeline.watching_settings import WatchingSettings, WatchingStatistics
from etcd_actions.record.recorder import MarkResult
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.web import Bind

if TYPE_CHECKING:
    from etcd_actions.executor import Executor, ExecutorStatistics
    from etcd_actions.server.front import FrontDoor
    from etcd_actions.server.workers.etcd_methods import WorkerEtcd

# Without an etcd nothing can be marked: only work that needs none is finished.
_GRACE_WITHOUT_ETCD = 1.0
# The part of the grace, and its limit in seconds, that is reserved for leaving etcd in order.
_PART_FOR_LEAVING = 0.3
_MOST_FOR_LEAVING = 2.0
# Seconds after the server's grace in which it closes the remaining connections.
_CLOSE_WITHIN = 1.2

_log = structlog.get_logger(__name__)


class App:
    """The process of one ``etcd-actions run``.

    Args:
        config: The settings.
        stop: The request to end.
        containment: Counts and logs the failures of its parts.
        lines_dropped: Returns the number of log lines that were dropped, for the metrics.
    """

    def __init__(
        self,
        config: Config,
        stop: Stop,
        containment: Containment,
        lines_dropped: Callable[[], int],
    ) -> None:
        self._config = config
        self._stop = stop
        self._containment = containment
        self._lines_dropped = lines_dropped
        self._server: ActionsServer | None = None
        self._executor: Callable[[], ExecutorStatistics] | None = None
        self._counts: dict[str, int] = {}

    async def run(self) -> dict[str, int]:
        """Run until the end is requested; returns the final counts.

        Raises:
            ConfigError: The settings contradict each other.
            EtcdActionsError: A part cannot start.
        """
        stop, endpoints = self._stop, self._config.endpoints
        with stop.interrupts() as let_finish:
            if endpoints is not None:
                await self._serve(endpoints, let_finish)
            else:
                async with self._open_embedded_etcd() as embedded:
                    await self._serve(embedded.endpoint, let_finish)
                    stop.doing = "the embedded etcd"
        return self._counts

    def reload(self) -> None:
        """Read certificates and tokens again; an unusable file changes nothing."""
        _log.info("reloading", signal="SIGHUP")
        if self._server is not None:
            try:
                self._server.reload()
            except ConfigError as error:
                _log.warning("not_reloaded", error=str(error))

    @asynccontextmanager
    async def _open_embedded_etcd(self) -> AsyncIterator[EmbeddedEtcd]:
        config, stop = self._config, self._stop
        if security := config.security:
            raise ConfigError(
                f"{', '.join(security)}: the embedded etcd has neither TLS nor users: name an "
                f"etcd that has, with {settings.ENDPOINTS.flag} or {settings.ENDPOINTS.variable}"
            )
        async with (
            open_embedded_etcd(
                config[settings.DATA_DIR], client_port=config[settings.EMBEDDED_PORT]
            ) as embedded,
            trio.open_nursery() as nursery,
        ):
            stop.when_forced(embedded.end_now)
            watch = "etcd-actions watch"
            if not is_default_data_dir(embedded.data_dir):
                watch += f" --data-dir {shlex.quote(str(embedded.data_dir))}"
            _log.info(
                "embedded_etcd",
                endpoint=embedded.endpoint,
                version=str(embedded.version),
                data_dir=str(embedded.data_dir),
                look_with=watch,
            )
            nursery.start_soon(self._end_with, embedded)
            yield embedded
            nursery.cancel_scope.cancel("stopped")

    async def _serve(self, endpoints: str, let_finish: Callable[[], None]) -> None:
        """Start all parts, wait for the request to end, and drain them."""
        config, stop = self._config, self._stop
        namespace, template = config[settings.NAMESPACE], config.namespace_template
        served = server_settings(config)
        executing = check_executor(config, served)
        async with AsyncExitStack() as stack:
            enter = partial(stop.enter, stack)
            await enter(open_telemetry(config[settings.OTLP_ENDPOINT]), "the collector of traces")
            etcd = await enter(
                open_connection(config.connection(endpoints)), "the connection to etcd"
            )
            quorum = await enter(open_quorum_monitor(etcd), "the monitor of the quorum")
            keys = Keyspace(
                config[settings.PREFIX], namespace or DEFAULT_NAMESPACE, template=template
            )
            run_service = await enter(
                open_run_services(etcd, keys, config, self._containment, served=served is not None),
                "the connection to the run service",
            )
            client = await enter(
                open_actions_client(
                    etcd,
                    prefix=config[settings.PREFIX],
                    namespace=namespace or DEFAULT_NAMESPACE,
                    namespace_template=template,
                    all_namespaces=namespace is None,
                    run_service=run_service,
                    codec=config[settings.CODEC],
                    settings=WatchingSettings(
                        collect_orphans=config[settings.COLLECT_ORPHANS],
                        finalizer=config[settings.FINALIZER],
                        retain_terminal=config[settings.RETAIN_TERMINAL],
                        shards=config[settings.SHARDS] or 0,
                        executes=executing,
                    ),
                    containment=self._containment,
                ),
                "writes to etcd",
            )
            _log.info(
                "started",
                version=__version__,
                endpoints=endpoints,
                prefix=config[settings.PREFIX].decode(),
                namespace=str(template or namespace or "all"),
                run_service=str(config[settings.RUN_SERVICE] or "none"),
            )
            members = await enter(open_member_states(etcd), "the states of members")
            hosts = config[settings.ALLOWED_HOSTS]
            monitoring = await enter(
                open_monitoring_port(
                    config, client, etcd, quorum, self._lines_dropped, allowed_hosts=hosts
                ),
                "clients of the monitoring port",
            )
            if monitoring is not None:
                monitoring.metrics.members = members.read
            await client.start_watching()
            # From here on a signal does not cancel: accepted work is finished.
            let_finish()
            reflector = client.statistics().reflector
            if reflector is not None:
                _log.info("synced", revision=reflector.revision, keys=reflector.keys)
            front: FrontDoor | None = None
            if served is not None:
                health = self._health(client, etcd, quorum, monitoring)
                cluster = cluster_sources(members, health, lambda: self._executor)
                front = await stack.enter_async_context(
                    open_front_door(config, client, etcd, cluster)
                )
            workers: WorkerEtcd | None = None
            if served is not None and config[settings.WORKER_ACCESS]:
                workers = await enter(
                    open_worker_etcd(config, endpoints, keys), "the connection of workers to etcd"
                )
            async with trio.open_nursery() as serving:
                leaving, left = trio.Event(), trio.Event()
                if served is not None and front is not None:
                    self._server = await serving.start(
                        partial(_serve_clients, workers=workers),
                        client,
                        served,
                        front,
                        monitoring,
                        leaving,
                        left,
                    )
                async with trio.open_nursery() as tasks:
                    if served is not None and front is not None and self._server is not None:
                        self._start_collectors(tasks, client, etcd, front, monitoring)
                        if executing:
                            address = self._server.address
                            tasks.start_soon(
                                self._execute, client, served, front, address, monitoring
                            )
                    if interval := config[settings.STATS_INTERVAL]:
                        tasks.start_soon(_log_progress, client, interval)
                    await stop.wait()
                    if monitoring is not None:
                        monitoring.health.draining = True
                    if stop.failure is None:
                        # Load balancers need time to notice.
                        await trio.sleep(config[settings.DRAIN_DELAY])
                    stop.doing = "the executor"
                    tasks.cancel_scope.cancel("stopping")
                leaving.set()
                if served is not None:
                    stop.doing = "clients of the service"
                    # A client that does not read must not delay the release of leases in etcd.
                    with trio.move_on_after(served.grace + _CLOSE_WITHIN):
                        await left.wait()
                stop.doing = "the work in progress"
                await client.stop_watching(self._time_to_finish())
                stop.doing = "clients of the service"
            self._counts = _counts(client.statistics())

    def _start_collectors(
        self,
        tasks: trio.Nursery,
        client: ActionsClient,
        etcd: Etcd,
        front: FrontDoor,
        monitoring: Monitoring | None,
    ) -> None:
        """Start the collectors of old runs and unreferenced uploads."""
        config = self._config
        quota = QUOTA if config.endpoints is None else None
        runs = run_collector(client, etcd, config, blobs=front.blobs, quota=quota)
        uploads = upload_collector(client, config, blobs=front.blobs)
        tasks.start_soon(collect, client, "collecting runs", runs.run)
        if uploads is not None:
            tasks.start_soon(collect, client, "collecting uploads", uploads.run)
        if monitoring is not None:
            monitoring.metrics.collected = lambda: runs.collected
            if uploads is not None:
                monitoring.metrics.swept = lambda: uploads.collected

    async def _execute(
        self,
        client: ActionsClient,
        served: ServerSettings,
        front: FrontDoor,
        address: Bind,
        monitoring: Monitoring | None,
    ) -> None:
        """Run actions here, without end. While etcd rejects requests, only this task waits."""
        listeners = None if monitoring is None else monitoring.metrics.listeners

        def opened(executor: Executor) -> None:
            self._executor = executor.statistics
            if monitoring is not None:
                monitoring.metrics.executor = executor.statistics

        await keep_executor(
            lambda: open_local_executor(client, self._config, served, address, front, listeners),
            opened,
            name="local",
            containment=self._containment,
            stop=self._stop,
        )

    def _health(
        self,
        client: ActionsClient,
        etcd: Etcd,
        quorum: QuorumMonitor,
        monitoring: Monitoring | None,
    ) -> Health:
        """The health of the process, which the page shows also without a monitoring port."""
        if monitoring is not None:
            return monitoring.health
        config = self._config
        silence_limit = config[settings.READY_WITHIN]
        health = Health(client, etcd, config[settings.PREFIX], silence_limit=silence_limit)
        health.quorum_loss = lambda: quorum.loss
        return health

    async def _end_with(self, embedded: EmbeddedEtcd) -> None:
        """Request the end when the embedded etcd has ended."""
        how = await embedded.wait_exited()
        _log.error("embedded_etcd_ended")
        self._stop.request(EmbeddedEtcdError(f"the embedded etcd has ended: {how}"))

    def _time_to_finish(self) -> float:
        """Seconds for the accepted work; the rest of the grace is for leaving etcd in order."""
        grace = self._config[settings.GRACE]
        if self._stop.failure is not None:
            grace = min(grace, _GRACE_WITHOUT_ETCD)
        reserved = min(_MOST_FOR_LEAVING, max(grace, LEAST_GRACE) * _PART_FOR_LEAVING)
        return max(0.0, min(grace, self._stop.remaining - reserved))


async def _serve_clients(
    client: ActionsClient,
    served: ServerSettings,
    front: FrontDoor,
    monitoring: Monitoring | None,
    leaving: trio.Event,
    left: trio.Event,
    *,
    workers: WorkerEtcd | None,
    task_status: trio.TaskStatus[ActionsServer],
) -> None:
    """Serve until ``leaving`` is set; set ``left`` when the last client has left."""
    try:
        async with open_actions_server(
            client,
            served,
            is_serving=lambda: monitoring is None or monitoring.health.is_serving,
            front=front,
            workers=workers,
        ) as server:
            if monitoring is not None:
                monitoring.metrics.server = server.statistics
                monitoring.metrics.listeners["service"] = server.connections
            task_status.started(server)
            await leaving.wait()
    finally:
        left.set()


async def _log_progress(client: ActionsClient, interval: float) -> None:
    while True:
        await trio.sleep(interval)
        statistics = client.statistics()
        reflector, handlers, outbox = statistics.reflector, statistics.handlers, statistics.outbox
        if reflector is None or handlers is None:
            continue
        _log.info(
            "statistics",
            streaming=reflector.streaming,
            revision=reflector.revision,
            keys=reflector.keys,
            elected=statistics.elected,
            position=statistics.checkpoint,
            pending=handlers.pending_changes + (outbox.pending_changes if outbox else 0),
            failing=len(handlers.failing) + (len(outbox.failing) if outbox else 0),
            dead_letters=len(statistics.dead_letters),
            undecodable=len(statistics.undecodable),
            reconnects=sum(reflector.reconnects.values()),
            **_counts(statistics),
        )


def _counts(statistics: WatchingStatistics) -> dict[str, int]:
    handlers = statistics.handlers
    return {
        "handled": handlers.handled if handlers else 0,
        "marked": statistics.marks.get(MarkResult.MARKED.value, 0),
        "conflated": handlers.conflated if handlers else 0,
        "decode_errors": statistics.decode_errors,
    }
