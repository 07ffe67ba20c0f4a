"""The process of ``etcd-actions worker``: an executor without the service.

It never stands for election: it watches, claims, runs and reports. Its tasks call a listener of its
own, by default on the loopback interface.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
import trio

from etcd_actions import __version__
from etcd_actions._internal.containment import Containment
from etcd_actions.app.executor import (
    check_machine,
    executor_settings,
    settings_for_tasks,
    state_dir_of,
    worker_offer,
)
from etcd_actions.app.front_door import local_front_door
from etcd_actions.app.kept_executor import keep_executor
from etcd_actions.app.listeners import grace_of_requests, open_monitoring_port
from etcd_actions.app.stop import Stop
from etcd_actions.app.telemetry import open_telemetry
from etcd_actions.client import ActionsClient, open_actions_client
from etcd_actions.config import Config, settings
from etcd_actions.errors import ConfigError
from etcd_actions.etcd import ConnectionSettings, open_connection
from etcd_actions.etcd.quorum import open_quorum_monitor
from etcd_actions.model import DEFAULT_NAMESPACE
from etcd_actions.monitoring import Monitoring
from etcd_actions.pipeline.watching_settings import WatchingSettings
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.storage.claims import LONGEST_TTL
from etcd_actions.web import Bind

if TYPE_CHECKING:
    from etcd_actions.executor import Executor, ExecutorStatistics, Offer
    from etcd_actions.server.front import FrontDoor

_PORT: Final = "port"
"""The file in the state directory with the port of the listener for tasks."""
_MOST_OF_A_PORT: Final = 65535

_log = structlog.get_logger(__name__)


class Worker:
    """One worker.

    Args:
        config: The settings.
        connection: The connection to etcd, or to a service in place of it.
        stop: The request to end.
        containment: Counts and logs the failures of its parts.
        lines_dropped: Returns the number of log lines that were dropped, for the metrics.
    """

    ENDS_WITHIN: Final = 8.0
    """Seconds after the grace within which the attempts that still run are ended."""

    def __init__(
        self,
        config: Config,
        connection: ConnectionSettings,
        stop: Stop,
        containment: Containment,
        lines_dropped: Callable[[], int],
    ) -> None:
        self._config = config
        self._connection = connection
        self._stop = stop
        self._containment = containment
        self._lines_dropped = lines_dropped
        self._executor: Executor | None = None

    async def run(self) -> dict[str, int]:
        """Run actions until the end is requested; returns the final counts.

        Raises:
            ConfigError: The settings contradict each other.
            EtcdActionsError: A part cannot start.
        """
        check_machine(self._config)
        self._check_claims()
        offer = worker_offer(self._config)
        with self._stop.interrupts() as let_finish:
            async with AsyncExitStack() as stack:
                await self._work(stack, offer, let_finish)
        return self._counts()

    async def _work(
        self, stack: AsyncExitStack, offer: Offer, let_finish: Callable[[], None]
    ) -> None:
        config, stop = self._config, self._stop
        enter = partial(stop.enter, stack)
        namespace, template = config[settings.NAMESPACE], config.namespace_template
        await enter(open_telemetry(config[settings.OTLP_ENDPOINT]), "the collector of traces")
        etcd = await enter(open_connection(self._connection), "the connection to etcd")
        quorum = await enter(open_quorum_monitor(etcd), "the monitor of the quorum")
        client = await enter(
            open_actions_client(
                etcd,
                prefix=config[settings.PREFIX],
                namespace=namespace or DEFAULT_NAMESPACE,
                namespace_template=template,
                all_namespaces=namespace is None,
                codec=config[settings.CODEC],
                settings=WatchingSettings(record=False, finalizer=config[settings.FINALIZER]),
                containment=self._containment,
            ),
            "writes to etcd",
        )
        _log.info(
            "started",
            version=__version__,
            **self._where(),
            prefix=config[settings.PREFIX].decode(),
            executor="ray" if config[settings.EXECUTOR] == "ray" else "local",
            slots=offer.slots,
            cpus=offer.cpus,
            memory=offer.memory if offer.memory is None else int(offer.memory),
            gpus=offer.gpus,
            pools=",".join(offer.pools),
            labels=",".join(f"{key}={value}" for key, value in offer.labels.items()),
        )
        monitoring = await enter(
            open_monitoring_port(config, client, etcd, quorum, self._lines_dropped),
            "clients of the monitoring port",
        )
        await client.start_watching()
        let_finish()
        front = await local_front_door(config, client, etcd)
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self._execute, client, offer, front, monitoring)
            if interval := config[settings.STATS_INTERVAL]:
                tasks.start_soon(self._log_progress, interval)
            await stop.wait()
            if monitoring is not None:
                monitoring.health.draining = True
            if stop.failure is None:
                await trio.sleep(config[settings.DRAIN_DELAY])
            stop.doing = "the attempts that run"
            if self._executor is not None:
                failed = stop.failure is not None
                await self._executor.handover.drain(0.0 if failed else config[settings.GRACE])
            stop.doing = "the executor"
            tasks.cancel_scope.cancel("stopping")
        await client.stop_watching(0)

    def _check_claims(self) -> None:
        """Refuse claims that a service does not grant.

        Raises:
            ConfigError: They would outlive a dead worker for too long.
        """
        ttl = self._config[settings.EXECUTOR_CLAIM_TTL]
        if self._connection.token_file is not None and ttl > LONGEST_TTL:
            raise ConfigError(
                f"{settings.EXECUTOR_CLAIM_TTL.flag} {ttl}: with {settings.SERVICE.flag} claims "
                f"live for {LONGEST_TTL} seconds at most"
            )

    def _where(self) -> dict[str, str]:
        addresses = ",".join(map(str, self._connection.endpoints))
        kind = "endpoints" if self._connection.token_file is None else "service"
        return {kind: addresses}

    async def _execute(
        self,
        client: ActionsClient,
        offer: Offer,
        front: FrontDoor,
        monitoring: Monitoring | None,
    ) -> None:
        """Run actions, without end. While etcd rejects requests, only this task waits."""

        def opened(found: tuple[Executor, ActionsServer]) -> None:
            self._executor, server = found
            if monitoring is not None:
                monitoring.metrics.executor = self._executor.statistics
                monitoring.metrics.listeners["tasks"] = server.connections
            _log.info("working", tasks=str(server.address))

        await keep_executor(
            lambda: self._open_executor(client, offer, front),
            opened,
            name="worker",
            containment=self._containment,
            stop=self._stop,
        )

    @asynccontextmanager
    async def _open_executor(
        self, client: ActionsClient, offer: Offer, front: FrontDoor
    ) -> AsyncIterator[tuple[Executor, ActionsServer]]:
        from etcd_actions.executor import open_executor  # noqa: PLC0415

        async with AsyncExitStack() as stack:
            server = await self._open_listener(client, front, stack)
            own = executor_settings(self._config, server.address, offer)
            yield await stack.enter_async_context(open_executor(client, own)), server

    async def _open_listener(
        self, client: ActionsClient, front: FrontDoor, stack: AsyncExitStack
    ) -> ActionsServer:
        """The listener for tasks: by preference at the port of the last worker on the directory.

        A task calls the address that its worker had when the task was started.
        """
        bind = self._config[settings.TASKS_LISTEN]
        if bind is not None:
            served = settings_for_tasks(self._config, self._limits(bind), bind)
            return await stack.enter_async_context(open_actions_server(client, served, front=front))
        file = state_dir_of(self._config) / _PORT
        for port in (_noted(file), 0):
            bind = Bind("127.0.0.1", port)
            served = settings_for_tasks(self._config, self._limits(bind), bind)
            try:
                server = await stack.enter_async_context(
                    open_actions_server(client, served, front=front)
                )
            except ConfigError:
                if not port:
                    raise
                # Another process has the port.
                continue
            with suppress(OSError):
                file.write_text(f"{server.address.port}\n")
            return server
        raise AssertionError("the system chose no port")

    def _limits(self, bind: Bind) -> ServerSettings:
        return ServerSettings(bind=bind, grace=grace_of_requests(self._config))

    async def _log_progress(self, interval: float) -> None:
        while True:
            await trio.sleep(interval)
            _log.info("statistics", **self._counts())

    def _counts(self) -> dict[str, int]:
        return {} if self._executor is None else counts(self._executor.statistics())


def counts(found: ExecutorStatistics) -> dict[str, int]:
    """The counts of an executor for a line of the log."""
    return {
        "running": found.running,
        "open": found.open_actions,
        "started": found.started,
        "ended": sum(found.ended.values()),
        "retries": found.retries,
    }


def _noted(file: Path) -> int:
    """The port in a file; 0, which lets the system choose one, if there is none."""
    try:
        port = int(file.read_text())
    except (OSError, ValueError):
        return 0
    return port if 0 < port <= _MOST_OF_A_PORT else 0
