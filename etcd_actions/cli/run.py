"""``etcd-actions run``: the processor, beside an etcd or with one of its own."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
import trio

from etcd_actions import __version__
from etcd_actions.cli.exits import ExitCode
from etcd_actions.cli.options import Common
from etcd_actions.cli.signals import Stop, open_stop
from etcd_actions.config.settings import (
    COLLECT_ORPHANS,
    EMBEDDED_PORT,
    ENDPOINTS,
    GRACE,
    RETAIN_TERMINAL,
    RUN_SERVICE,
    STATS_INTERVAL,
)
from etcd_actions.errors import ConfigError, EmbeddedEtcdError
from etcd_actions.etcd.embedded import EmbeddedEtcd, default_data_dir, open_embedded_etcd
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.processor import (
    Processor,
    ProcessorSettings,
    ProcessorStatistics,
    open_processor,
)
from etcd_actions.recorder import MarkResult
from etcd_actions.run_service import NullRunService, RunService

# Nothing can be marked in an etcd that has ended: only what needs none is finished.
_GRACE_WITHOUT_ETCD = 1.0

_log = structlog.get_logger(__name__)


async def run_until_signal(common: Common) -> int:
    """Watch and mark until a signal; raises what made that impossible."""
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
    """Run the processor until the end is asked for; leaves its last numbers in ``counts``."""
    settings = ProcessorSettings(
        collect_orphans=common.config[COLLECT_ORPHANS],
        retain_terminal=common.config[RETAIN_TERMINAL],
    )
    async with (
        common.open_etcd(endpoints) as etcd,
        _open_run_service(common.config[RUN_SERVICE]) as run_service,
        open_processor(
            etcd,
            prefix=common.prefix,
            namespace=common.namespace,
            run_service=run_service,
            settings=settings,
        ) as processor,
    ):
        _log.info(
            "started",
            version=__version__,
            endpoints=endpoints,
            prefix=common.prefix.decode(),
            namespace=common.namespace or "all",
            run_service=str(common.config[RUN_SERVICE] or "none"),
        )
        await processor.start_watching()
        # From here on a signal does not cancel: what was taken in is finished.
        let_finish()
        reflector = processor.statistics().reflector
        if reflector is not None:
            _log.info("synced", revision=reflector.revision, keys=reflector.keys)
        async with trio.open_nursery() as nursery:
            if interval := common.config[STATS_INTERVAL]:
                nursery.start_soon(_tell_often, processor, interval)
            await stop.wait()
            nursery.cancel_scope.cancel("stopping")
        died = stop.failure is not None
        grace = common.config[GRACE]
        await processor.stop_watching(min(grace, _GRACE_WITHOUT_ETCD) if died else grace)
        counts.update(_counts(processor.statistics()))


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


async def _tell_often(processor: Processor, interval: float) -> None:
    while True:
        await trio.sleep(interval)
        statistics = processor.statistics()
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
