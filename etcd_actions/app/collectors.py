"""Makes the collectors of old runs and of unreferenced uploads from the configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from etcd_actions.blobs import BlobStore, Deployment, NoStore
from etcd_actions.client import ActionsClient
from etcd_actions.config import Config, settings
from etcd_actions.etcd.api import Etcd
from etcd_actions.storage.store import Store

if TYPE_CHECKING:
    from etcd_actions.runs.run_collector import RunCollector
    from etcd_actions.uploads import UploadCollector


def run_collector(
    client: ActionsClient,
    etcd: Etcd,
    config: Config,
    *,
    blobs: BlobStore | None,
    quota: int | None,
) -> RunCollector:
    """The collector of old runs.

    Objects and their data are left to Flyte's executor if that one runs the actions.

    Args:
        client: The client, whose keys are collected.
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
    """The collector of unreferenced uploads; None if nothing collects them."""
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
    await client.containment.keep("task", name, lambda: run(lambda: client.statistics().collects))
