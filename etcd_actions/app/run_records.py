"""The run services, the deletion of old runs and uploads, and the logs, by the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from etcd_actions._internal.containment import Containment
from etcd_actions.app.executor import state_dir_of
from etcd_actions.blobs import BlobStore, Deployment, NoStore
from etcd_actions.client import ActionsClient
from etcd_actions.config import Config, settings
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import ActionId, Keyspace
from etcd_actions.run_service import NullRunService, RunService
from etcd_actions.run_service.fan_out import BothRunServices
from etcd_actions.storage.store import Store

if TYPE_CHECKING:
    from etcd_actions.runs.run_collector import RunCollector
    from etcd_actions.runs.run_record import ActionHistory
    from etcd_actions.server.front.attempt_logs import Logs
    from etcd_actions.uploads import UploadCollector


@asynccontextmanager
async def open_run_services(
    etcd: Etcd, keys: Keyspace, config: Config, containment: Containment, *, served: bool
) -> AsyncIterator[RunService]:
    """The run services: our own if the service is served, and Flyte's if it is named."""
    endpoint = config[settings.RUN_SERVICE]
    async with AsyncExitStack() as stack:
        own: RunService | None = None
        # Imported here, since both need Flyte's messages.
        if served:
            from etcd_actions.runs.own_run_service import open_own_run_service  # noqa: PLC0415

            own = await stack.enter_async_context(
                open_own_run_service(etcd, keys, containment=containment)
            )
        if endpoint is None:
            yield own or NullRunService()
            return
        from etcd_actions.run_service.grpc_run_service import open_run_service  # noqa: PLC0415

        external = await stack.enter_async_context(open_run_service(endpoint))
        yield external if own is None else BothRunServices(own, external)


def run_collector(
    client: ActionsClient,
    etcd: Etcd,
    config: Config,
    *,
    blobs: BlobStore | None,
    quota: int | None,
) -> RunCollector:
    """The part that deletes runs that ended long ago.

    Objects, and the data that they name, are left to Flyte's executor if that runs them.

    Args:
        client: The client, whose keys it uses.
        etcd: The connection.
        config: The settings.
        blobs: The store of the runs' data.
        quota: The quota of etcd if it is known; the setting overrides it.
    """
    from etcd_actions.runs.run_collector import RunCollector  # noqa: PLC0415
    from etcd_actions.runs.space import Space  # noqa: PLC0415

    keys, share = client.keys, config[settings.RETAIN_SHARE]
    space = Space(etcd, keys.runs, share, config[settings.ETCD_QUOTA] or quota) if share else None
    return RunCollector(
        Store(etcd),
        keys,
        timedelta(seconds=config[settings.RETAIN_RUNS]),
        namespace=config[settings.NAMESPACE],
        objects=_has_objects(config),
        blobs=None if isinstance(blobs, NoStore) else blobs,
        space=space,
        containment=client.containment,
    )


def _has_objects(config: Config) -> bool:
    """Whether we delete the objects of runs; else Flyte's executor does."""
    return config[settings.EXECUTOR] != "none" or config[settings.RUN_SERVICE] is None


def upload_collector(
    client: ActionsClient, config: Config, *, blobs: BlobStore | None
) -> UploadCollector | None:
    """The part that deletes unreferenced uploads; None if they are left alone."""
    mode = config[settings.COLLECT_UPLOADS]
    if mode == "no" or blobs is None or isinstance(blobs, NoStore) or not _has_objects(config):
        return None
    from etcd_actions.server.front.local_files import LocalFiles  # noqa: PLC0415
    from etcd_actions.uploads import UploadCollector  # noqa: PLC0415

    return UploadCollector(
        client.store,
        client.keys,
        blobs,
        Deployment(client.store, client.keys),
        client.images,
        timedelta(seconds=config[settings.RETAIN_UPLOADS]),
        dry_run=mode == "dry-run",
        local=LocalFiles() if config[settings.EXECUTOR] == "local" else None,
    )


async def collect(
    client: ActionsClient, name: str, run: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    """Run a collector while this process is the leader; does not return."""
    await client.containment.keep("task", name, lambda: run(lambda: client.statistics().elected))


def logs_of(client: ActionsClient, etcd: Etcd, keys: Keyspace, config: Config) -> Logs:
    """The reader of the logs of attempts: those of this machine's executor, if there is one."""
    from etcd_actions.runs.own_run_service import history_of_action  # noqa: PLC0415
    from etcd_actions.server.front.attempt_logs import Logs  # noqa: PLC0415

    async def history(action_id: ActionId) -> ActionHistory | None:
        return await history_of_action(Store(etcd), keys, action_id)

    if config[settings.EXECUTOR] == "none":
        return Logs(client=client, history=history)
    from etcd_actions.executor.attempts.attempt_log import LocalLogs  # noqa: PLC0415

    return Logs(client=client, source=LocalLogs(state_dir_of(config)), history=history)
