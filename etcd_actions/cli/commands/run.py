"""``etcd-actions run``: the whole process, beside an etcd or with one of its own."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog
import trio

from etcd_actions import __version__
from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.app.executor import check_executor, forbid_reading, open_local_executor
from etcd_actions.app.front_door import open_front
from etcd_actions.app.listeners import is_installed, server_settings
from etcd_actions.app.run_records import (
    collect_runs,
    collect_uploads,
    open_run_services,
    run_collector,
    upload_collector,
)
from etcd_actions.app.telemetry import open_telemetry
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.log_output import count_failed_lines, lines_dropped
from etcd_actions.cli.options import Common
from etcd_actions.cli.process_setup import has_terminal
from etcd_actions.cli.signals import LEAST_GRACE, Stop, open_stop
from etcd_actions.client import ActionsClient, open_actions_client
from etcd_actions.config.settings import (
    ALLOWED_HOSTS,
    COLLECT_ORPHANS,
    DRAIN_DELAY,
    EMBEDDED_PORT,
    ENDPOINTS,
    EXECUTOR,
    FINALIZER,
    GRACE,
    MONITORING_LISTEN,
    OTLP_ENDPOINT,
    READY_WITHIN,
    RETAIN_TERMINAL,
    RUN_SERVICE,
    STATS_INTERVAL,
)
from etcd_actions.embedded.embedded_etcd import (
    QUOTA,
    EmbeddedEtcd,
    is_default_data_dir,
    open_embedded_etcd,
)
from etcd_actions.errors import ConfigError, EmbeddedEtcdError, EtcdError, first_error
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import DEFAULT_NAMESPACE, Keyspace
from etcd_actions.monitoring import Monitoring, open_monitoring
from etcd_actions.pipeline.processor_settings import ProcessorSettings, ProcessorStatistics
from etcd_actions.record.recorder import MarkResult
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.web import Bind
from etcd_actions.web.descriptors import raise_limit

if TYPE_CHECKING:
    from etcd_actions.server.front import Front

# Nothing can be marked in an etcd that has ended: only what needs none is finished.
_GRACE_WITHOUT_ETCD = 1.0
# Of the grace, and at most so many seconds of it, for letting go of what is held in etcd.
_PART_FOR_LEAVING = 0.3
_MOST_FOR_LEAVING = 2.0
# Seconds after the server's grace in which it cuts off what is left.
_CUT_OFF = 1.2
_BACKOFF = Backoff(initial=0.5, cap=30.0)

_log = structlog.get_logger(__name__)


async def run_until_signal(common: Common) -> int:
    """Watch and mark until a signal; raises what made that impossible.

    The end takes ``--drain-delay`` and ``--grace`` at most, counted from the signal.
    """
    raise_limit()
    config = common.config
    config.check_one_namespace()
    if config[EXECUTOR] != "none":
        forbid_reading()
    if common.endpoints is None:
        _check_for_embedded(common)
    counts: dict[str, int] = {}
    async with open_stop(config[DRAIN_DELAY] + max(config[GRACE], LEAST_GRACE)) as stop:
        running = _Running(common, stop)
        stop.on_hangup = running.hung_up
        with stop.interrupts() as let_finish:
            if common.endpoints is not None:
                await _serve(common.endpoints, running, let_finish, counts)
            else:
                async with (
                    open_embedded_etcd(
                        common.data_dir, client_port=config[EMBEDDED_PORT]
                    ) as embedded,
                    trio.open_nursery() as nursery,
                ):
                    stop.when_forced(embedded.end_now)
                    _tell_about(embedded)
                    nursery.start_soon(_end_with, embedded, stop)
                    await _serve(embedded.endpoint, running, let_finish, counts)
                    stop.doing = "the embedded etcd"
                    nursery.cancel_scope.cancel("stopped")
        _log.info("stopped", **counts)
        stop.raise_failure()
    return ExitCode.OK


class _Running:
    """What the parts of one ``run`` share."""

    def __init__(self, common: Common, stop: Stop) -> None:
        self.common = common
        self.stop = stop
        self.containment = Containment()
        self.reload: list[Callable[[], None]] = []
        self._terminal = has_terminal()
        count_failed_lines(self.containment)

    def hung_up(self) -> None:
        """A SIGHUP: read files anew, or end where the terminal has gone."""
        if self._terminal and not has_terminal():
            _log.info("stopping", signal="SIGHUP")
            self.stop.request()
            return
        _log.info("reloading", signal="SIGHUP")
        for each in self.reload:
            try:
                each()
            except ConfigError as error:
                # What was read before goes on to count.
                _log.warning("not_reloaded", error=str(error))

    @property
    def time_to_finish(self) -> float:
        """Seconds for what was taken in; the rest of the grace is for leaving etcd in order."""
        grace = self.common.config[GRACE]
        if self.stop.failure is not None:
            grace = min(grace, _GRACE_WITHOUT_ETCD)
        kept = min(_MOST_FOR_LEAVING, max(grace, LEAST_GRACE) * _PART_FOR_LEAVING)
        return max(0.0, min(grace, self.stop.remaining - kept))


async def _serve(
    endpoints: str, running: _Running, let_finish: Callable[[], None], counts: dict[str, int]
) -> None:
    """Run all parts until the end is asked for; leaves the last numbers in ``counts``."""
    common, stop, containment = running.common, running.stop, running.containment
    config = common.config
    settings = ProcessorSettings(
        collect_orphans=config[COLLECT_ORPHANS],
        finalizer=config[FINALIZER],
        retain_terminal=config[RETAIN_TERMINAL],
    )
    served = server_settings(config)
    executing = check_executor(config, served)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(open_telemetry(config[OTLP_ENDPOINT]))
        stop.before_leaving(stack, "the collector of traces")
        etcd = await enter(common.open_etcd(endpoints))
        stop.before_leaving(stack, "the connection to etcd")
        keys = Keyspace(
            common.prefix,
            common.namespace or DEFAULT_NAMESPACE,
            template=config.namespace_template,
        )
        run_service = await enter(
            open_run_services(etcd, keys, config, containment, served=served is not None)
        )
        stop.before_leaving(stack, "the connection to the run service")
        client = await enter(
            open_actions_client(
                etcd,
                prefix=common.prefix,
                namespace=common.namespace or DEFAULT_NAMESPACE,
                namespace_template=config.namespace_template,
                all_namespaces=common.namespace is None,
                run_service=run_service,
                codec=config.codec,
                settings=settings,
                containment=containment,
            )
        )
        stop.before_leaving(stack, "writes to etcd")
        _log.info(
            "started",
            version=__version__,
            endpoints=endpoints,
            prefix=common.prefix.decode(),
            namespace=str(config.namespace_template or common.namespace or "all"),
            run_service=str(config[RUN_SERVICE] or "none"),
        )
        monitoring = await _monitor(stack, client, etcd, common)
        stop.before_leaving(stack, "clients of the monitoring port")
        await client.start_watching()
        # From here on a signal does not cancel: what was taken in is finished.
        let_finish()
        reflector = client.statistics().reflector
        if reflector is not None:
            _log.info("synced", revision=reflector.revision, keys=reflector.keys)
        front = None if served is None else await enter(open_front(config, client, etcd))
        async with trio.open_nursery() as serving:
            leaving, left = trio.Event(), trio.Event()
            server: ActionsServer | None = None
            if served is not None and front is not None:
                server = await serving.start(
                    _serve_clients, client, served, front, monitoring, leaving, left
                )
                running.reload.append(server.reload)
            async with trio.open_nursery() as nursery:
                if executing and served is not None and server is not None:
                    nursery.start_soon(
                        _execute, client, running, served, front, server.address, monitoring
                    )
                if served is not None and front is not None:
                    collector = run_collector(
                        client,
                        etcd,
                        config,
                        namespace=common.namespace,
                        blobs=front.blobs,
                        quota=QUOTA if common.endpoints is None else None,
                    )
                    if monitoring is not None:
                        monitoring.metrics.collected = lambda: collector.collected
                    nursery.start_soon(collect_runs, client, collector)
                    uploads = upload_collector(client, config, blobs=front.blobs)
                    if uploads is not None:
                        nursery.start_soon(collect_uploads, client, uploads)
                        if monitoring is not None:
                            monitoring.metrics.swept = lambda: uploads.collected
                if interval := config[STATS_INTERVAL]:
                    nursery.start_soon(_tell_often, client, interval)
                await stop.wait()
                if monitoring is not None:
                    monitoring.health.draining = True
                if stop.failure is None:
                    # Who balances load has to notice first.
                    await trio.sleep(config[DRAIN_DELAY])
                stop.doing = "the executor"
                nursery.cancel_scope.cancel("stopping")
            leaving.set()
            if served is not None:
                stop.doing = "clients of the service"
                # A client that reads nothing must not keep what is held in etcd.
                with trio.move_on_after(served.grace + _CUT_OFF):
                    await left.wait()
            stop.doing = "the work at hand"
            await client.stop_watching(running.time_to_finish)
            stop.doing = "clients of the service"
        counts.update(_counts(client.statistics()))


async def _serve_clients(
    client: ActionsClient,
    settings: ServerSettings,
    front: Front,
    monitoring: Monitoring | None,
    leaving: trio.Event,
    left: trio.Event,
    *,
    task_status: trio.TaskStatus[ActionsServer],
) -> None:
    """Serve until ``leaving`` is set; ``left`` is set when the last client is done with."""
    try:
        async with open_actions_server(
            client,
            settings,
            is_serving=lambda: monitoring is None or monitoring.health.is_serving,
            front=front,
        ) as server:
            if monitoring is not None:
                monitoring.metrics.server = server.statistics
                monitoring.metrics.listeners["service"] = server.connections
            task_status.started(server)
            await leaving.wait()
    finally:
        left.set()


async def _execute(
    client: ActionsClient,
    running: _Running,
    served: ServerSettings,
    front: Front | None,
    address: Bind,
    monitoring: Monitoring | None,
) -> None:
    """Run actions here, for ever. While etcd refuses, only this waits."""
    config, containment = running.common.config, running.containment

    def wait(error: Exception, failures: int, delay: float) -> None:
        containment.park("executor", "local", error)
        seldom(_log, "executor_waits")(error, failures, delay)

    async def execute() -> None:
        try:
            async for attempt in retrying(_BACKOFF, on=EtcdError, report=wait):
                with attempt:
                    async with open_local_executor(
                        client,
                        config,
                        served,
                        address,
                        front=front,
                        listeners=None if monitoring is None else monitoring.metrics.listeners,
                    ) as executor:
                        attempt.recovered()
                        containment.forget("executor", "local")
                        if monitoring is not None:
                            monitoring.metrics.executor = executor.statistics
                        await trio.sleep_forever()
        except* ConfigError as group:
            running.stop.request(first_error(group))

    await containment.keep("executor", "local", execute)


async def _monitor(
    stack: AsyncExitStack, client: ActionsClient, etcd: Etcd, common: Common
) -> Monitoring | None:
    """Serve health and metrics, unless that is not wanted, or not installed and not asked for."""
    config = common.config
    bind = config[MONITORING_LISTEN]
    if bind is None or not is_installed(config, MONITORING_LISTEN):
        return None
    monitoring = await stack.enter_async_context(
        open_monitoring(
            client,
            etcd,
            bind,
            prefix=common.prefix,
            heard_within=config[READY_WITHIN],
            allowed_hosts=config[ALLOWED_HOSTS],
        )
    )
    monitoring.metrics.lines_dropped = lines_dropped
    return monitoring


def _check_for_embedded(common: Common) -> None:
    security = common.config.security
    if security:
        raise ConfigError(
            f"{', '.join(security)}: the embedded etcd knows neither TLS nor users: say where "
            f"the etcd is that does, with {ENDPOINTS.flag} or {ENDPOINTS.variable}"
        )


async def _end_with(embedded: EmbeddedEtcd, stop: Stop) -> None:
    """Ask for the end when the embedded etcd has ended."""
    how = await embedded.wait_exited()
    _log.error("embedded_etcd_ended")
    stop.request(EmbeddedEtcdError(f"the embedded etcd is gone: {how}"))


async def _tell_often(client: ActionsClient, interval: float) -> None:
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
            position=statistics.position,
            pending=handlers.pending_changes + (outbox.pending_changes if outbox else 0),
            failing=len(handlers.failing) + (len(outbox.failing) if outbox else 0),
            dead_letters=len(statistics.dead_letters),
            undecodable=len(statistics.undecodable),
            reconnects=sum(reflector.reconnects.values()),
            **_counts(statistics),
        )


def _tell_about(embedded: EmbeddedEtcd) -> None:
    look = "etcd-actions watch"
    if not is_default_data_dir(embedded.data_dir):
        look += f" --data-dir {shlex.quote(str(embedded.data_dir))}"
    _log.info(
        "embedded_etcd",
        endpoint=embedded.endpoint,
        version=str(embedded.version),
        data_dir=str(embedded.data_dir),
        look_with=look,
    )


def _counts(statistics: ProcessorStatistics) -> dict[str, int]:
    """What was done, in four numbers."""
    handlers = statistics.handlers
    return {
        "handled": handlers.handled if handlers else 0,
        "marked": statistics.marks.get(MarkResult.MARKED.value, 0),
        "conflated": handlers.conflated if handlers else 0,
        "decode_errors": statistics.decode_errors,
    }
