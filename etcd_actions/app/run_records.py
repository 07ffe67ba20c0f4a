"""How the settings say which run services record runs, how long records stay, where logs are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from etcd_actions._internal.containment import Containment
from etcd_actions.app.executor import state_dir_of
from etcd_actions.blobs import BlobStore, Deployment, NoStore
from etcd_actions.client import ActionsClient
from etcd_actions.config import Config
from etcd_actions.config.settings import (
    COLLECT_UPLOADS,
    ETCD_QUOTA,
    EXECUTOR,
    RETAIN_RUNS,
    RETAIN_SHARE,
    RETAIN_UPLOADS,
    RUN_SERVICE,
)
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
    """The run services: our own where the service is served, then Flyte's.

    Args:
        etcd: The connection.
        keys: Where runs' records and actions' histories are kept.
        config: The settings.
        containment: Where unexpected failures are counted.
        served: Whether there are clients that ask for runs.
    """
    endpoint = config[RUN_SERVICE]
    # Loaded on demand: both need Flyte's messages.
    if not served:
        if endpoint is None:
            yield NullRunService()
            return
        from etcd_actions.run_service.grpc_run_service import open_run_service  # noqa: PLC0415

        async with open_run_service(endpoint) as external:
            yield external
        return
    from etcd_actions.runs.own_run_service import open_own_run_service  # noqa: PLC0415

    async with open_own_run_service(etcd, keys, containment=containment) as own:
        if endpoint is None:
            yield own
            return
        from etcd_actions.run_service.grpc_run_service import open_run_service  # noqa: PLC0415

        async with open_run_service(endpoint) as external:
            yield BothRunServices(own, external)


def run_collector(
    client: ActionsClient,
    etcd: Etcd,
    config: Config,
    *,
    namespace: str | None,
    blobs: BlobStore | None,
    quota: int | None,
) -> RunCollector:
    """What removes runs that ended long ago.

    Objects are left to Flyte's executor where that runs them, and so is what they name.

    Args:
        client: Whose keys.
        etcd: The connection.
        config: The settings.
        namespace: The only one that is looked at; None for all.
        blobs: Where data of runs is.
        quota: That of the etcd where it is known; the setting comes first.
    """
    from etcd_actions.runs.run_collector import RunCollector  # noqa: PLC0415
    from etcd_actions.runs.space import Space  # noqa: PLC0415

    keys, share = client.keys, config[RETAIN_SHARE]
    space = Space(etcd, keys.runs, share, config[ETCD_QUOTA] or quota) if share else None
    return RunCollector(
        Store(etcd),
        keys,
        timedelta(seconds=config[RETAIN_RUNS]),
        namespace=namespace,
        objects=_has_objects(config),
        blobs=None if isinstance(blobs, NoStore) else blobs,
        space=space,
        containment=client.containment,
    )


def _has_objects(config: Config) -> bool:
    """Whether the objects of runs are ours to remove; else Flyte's executor does it."""
    return config[EXECUTOR] != "none" or config[RUN_SERVICE] is None


def upload_collector(
    client: ActionsClient, config: Config, *, blobs: BlobStore | None
) -> UploadCollector | None:
    """What removes uploads that nothing needs; None where they are left alone.

    Args:
        client: Whose keys.
        config: The settings.
        blobs: Where uploads are.
    """
    wanted = config[COLLECT_UPLOADS]
    if wanted == "no" or blobs is None or isinstance(blobs, NoStore) or not _has_objects(config):
        return None
    from etcd_actions.server.front.local_files import LocalFiles  # noqa: PLC0415
    from etcd_actions.uploads import UploadCollector  # noqa: PLC0415

    return UploadCollector(
        client.store,
        client.keys,
        blobs,
        Deployment(client.store, client.keys),
        client.images,
        timedelta(seconds=config[RETAIN_UPLOADS]),
        dry_run=wanted == "dry-run",
        local=LocalFiles() if config[EXECUTOR] == "local" else None,
    )


async def collect_uploads(client: ActionsClient, collector: UploadCollector) -> None:
    """Remove uploads that nothing needs, as long as this process leads; for ever."""
    await client.containment.keep(
        "task",
        "collecting uploads",
        lambda: collector.run(lambda: client.statistics().elected),
    )


async def collect_runs(client: ActionsClient, collector: RunCollector) -> None:
    """Remove runs that ended long ago, as long as this process leads; for ever."""
    await client.containment.keep(
        "task",
        "collecting runs",
        lambda: collector.run(lambda: client.statistics().elected),
    )


def logs_of(client: ActionsClient, etcd: Etcd, keys: Keyspace, config: Config) -> Logs:
    """What the logs of attempts are read with: those of this machine's executor, if there is one.

    Args:
        client: Knows the actions.
        etcd: The connection.
        keys: Those of the client.
        config: The settings.
    """
    from etcd_actions.runs.own_run_service import history_of_action  # noqa: PLC0415
    from etcd_actions.server.front.attempt_logs import Logs  # noqa: PLC0415

    async def history(action_id: ActionId) -> ActionHistory | None:
        return await history_of_action(Store(etcd), keys, action_id)

    if config[EXECUTOR] == "none":
        return Logs(client=client, history=history)
    from etcd_actions.executor.attempt_log import LocalLogs  # noqa: PLC0415

    return Logs(client=client, source=LocalLogs(state_dir_of(config)), history=history)
