"""``etcd-actions run``: the whole process, beside an etcd or with one of its own."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
import trio

from etcd_actions import __version__
from etcd_actions.cli.executing import check_executor, open_local_executor
from etcd_actions.cli.exits import ExitCode
from etcd_actions.cli.options import Common
from etcd_actions.cli.serving import is_installed, server_settings
from etcd_actions.cli.signals import Stop, open_stop
from etcd_actions.cli.telemetry import open_telemetry
from etcd_actions.client import ActionsClient, open_actions_client
from etcd_actions.config.settings import (
    ALLOWED_HOSTS,
    COLLECT_ORPHANS,
    DRAIN_DELAY,
    EMBEDDED_PORT,
    ENDPOINTS,
    GRACE,
    MONITORING_LISTEN,
    OTLP_ENDPOINT,
    READY_WITHIN,
    RETAIN_TERMINAL,
    RUN_SERVICE,
    STATS_INTERVAL,
)
from etcd_actions.errors import ConfigError, EmbeddedEtcdError
from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.embedded import EmbeddedEtcd, default_data_dir, open_embedded_etcd
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.model import DEFAULT_NAMESPACE
from etcd_actions.monitoring import Monitoring, open_monitoring
from etcd_actions.processor import ProcessorSettings, ProcessorStatistics
from etcd_actions.recorder import MarkResult
from etcd_actions.run_service import NullRunService, RunService
from etcd_actions.server import open_actions_server
from etcd_actions.serving.descriptors import raise_limit

# Nothing can be marked in an etcd that has ended: only what needs none is finished.
_GRACE_WITHOUT_ETCD = 1.0

_log = structlog.get_logger(__name__)


async def run_until_signal(common: Common) -> int:
    """Watch and mark until a signal; raises what made that impossible."""
    raise_limit()
    if common.endpoints is None:
        _check_for_embedded(common)
    counts: dict[str, int] = {}
    async with open_stop() as stop:
        with stop.interrupts() as let_finish:
            if common.endpoints is not None:
                await _serve(common.endpoints, common, stop, let_finish, counts)
            else:
                async with (
                    open_embedded_etcd(
                        common.data_dir, client_port=common.config[EMBEDDED_PORT]
                    ) as embedded,
                    trio.open_nursery() as nursery,
                ):
                    _tell_about(embedded)
                    nursery.start_soon(_end_with, embedded, stop)
                    await _serve(embedded.endpoint, common, stop, let_finish, counts)
                    nursery.cancel_scope.cancel("stopped")
        _log.info("stopped", **counts)
        stop.raise_failure()
    return ExitCode.OK


async def _serve(
    endpoints: str,
    common: Common,
    stop: Stop,
    let_finish: Callable[[], None],
    counts: dict[str, int],
) -> None:
    """Run all parts until the end is asked for; leaves the last numbers in ``counts``."""
    config = common.config
    settings = ProcessorSettings(
        collect_orphans=config[COLLECT_ORPHANS],
        retain_terminal=config[RETAIN_TERMINAL],
    )
    served = server_settings(config)
    executing = check_executor(config, served)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(open_telemetry(config[OTLP_ENDPOINT]))
        etcd = await enter(common.open_etcd(endpoints))
        run_service = await enter(_open_run_service(config[RUN_SERVICE]))
        client = await enter(
            open_actions_client(
                etcd,
                prefix=common.prefix,
                namespace=common.namespace or DEFAULT_NAMESPACE,
                all_namespaces=common.namespace is None,
                run_service=run_service,
                codec=config.codec,
                settings=settings,
            )
        )
        _log.info(
            "started",
            version=__version__,
            endpoints=endpoints,
            prefix=common.prefix.decode(),
            namespace=common.namespace or "all",
            run_service=str(config[RUN_SERVICE] or "none"),
        )
        monitoring = await _monitor(stack, client, etcd, common)
        await client.start_watching()
        # From here on a signal does not cancel: what was taken in is finished.
        let_finish()
        reflector = client.statistics().reflector
        if reflector is not None:
            _log.info("synced", revision=reflector.revision, keys=reflector.keys)
        async with AsyncExitStack() as serving:
            if served is not None:
                server = await serving.enter_async_context(
                    open_actions_server(
                        client,
                        served,
                        is_serving=lambda: monitoring is None or monitoring.health.is_serving,
                    )
                )
                if monitoring is not None:
                    monitoring.metrics.server = server.statistics
                    monitoring.metrics.listeners["service"] = server.connections
                if executing:
                    executor = await serving.enter_async_context(
                        open_local_executor(
                            client,
                            config,
                            served,
                            server.address,
                            listeners=None if monitoring is None else monitoring.metrics.listeners,
                        )
                    )
                    if monitoring is not None:
                        monitoring.metrics.executor = executor.statistics
            async with trio.open_nursery() as nursery:
                if interval := config[STATS_INTERVAL]:
                    nursery.start_soon(_tell_often, client, interval)
                await stop.wait()
                if monitoring is not None:
                    monitoring.health.draining = True
                if stop.failure is None:
                    # Who balances load has to notice first.
                    await trio.sleep(config[DRAIN_DELAY])
                nursery.cancel_scope.cancel("stopping")
        died = stop.failure is not None
        grace = config[GRACE]
        await client.stop_watching(min(grace, _GRACE_WITHOUT_ETCD) if died else grace)
        counts.update(_counts(client.statistics()))


async def _monitor(
    stack: AsyncExitStack, client: ActionsClient, etcd: Etcd, common: Common
) -> Monitoring | None:
    """Serve health and metrics, unless that is not wanted, or not installed and not asked for."""
    config = common.config
    bind = config[MONITORING_LISTEN]
    if bind is None or not is_installed(config, MONITORING_LISTEN):
        return None
    return await stack.enter_async_context(
        open_monitoring(
            client,
            etcd,
            bind,
            prefix=common.prefix,
            heard_within=config[READY_WITHIN],
            allowed_hosts=config[ALLOWED_HOSTS],
        )
    )


@asynccontextmanager
async def _open_run_service(endpoint: Endpoint | None) -> AsyncIterator[RunService]:
    if endpoint is None:
        yield NullRunService()
        return
    # Loaded on demand: it needs Flyte's messages.
    from etcd_actions.run_service.grpc import open_run_service  # noqa: PLC0415

    async with open_run_service(endpoint) as run_service:
        yield run_service


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
        reflector, router, outbox = statistics.reflector, statistics.router, statistics.outbox
        if reflector is None or router is None:
            continue
        _log.info(
            "statistics",
            streaming=reflector.streaming,
            revision=reflector.revision,
            keys=reflector.keys,
            elected=statistics.elected,
            position=statistics.position,
            pending=router.pending_changes + (outbox.pending_changes if outbox else 0),
            failing=len(router.failing) + (len(outbox.failing) if outbox else 0),
            dead_letters=len(statistics.dead_letters),
            undecodable=len(statistics.undecodable),
            reconnects=sum(reflector.reconnects.values()),
            **_counts(statistics),
        )


def _tell_about(embedded: EmbeddedEtcd) -> None:
    look = "etcd-actions watch"
    if embedded.data_dir != default_data_dir().expanduser().resolve():
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
    router = statistics.router
    return {
        "handled": router.handled if router else 0,
        "marked": statistics.marks.get(MarkResult.MARKED.value, 0),
        "conflated": router.conflated if router else 0,
        "decode_errors": statistics.decode_errors,
    }
