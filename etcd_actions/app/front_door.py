"""Makes the front door, its store of blobs and its logs from the configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from etcd_actions.app.executor import open_image_builds, state_dir_of
from etcd_actions.app.image_uploads import ImageUploads
from etcd_actions.app.listeners import project_settings
from etcd_actions.blobs import BlobStore, NoStore, UrlSigner, open_blob_store
from etcd_actions.client import ActionsClient
from etcd_actions.config import Config, settings
from etcd_actions.embedded.data_directory import default_data_dir
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.api import Etcd
from etcd_actions.images.builds import build_task_spec
from etcd_actions.model import ActionId, Keyspace
from etcd_actions.storage.store import Store

if TYPE_CHECKING:
    from etcd_actions.runs.run_record import ActionHistory
    from etcd_actions.server.front import FrontDoor
    from etcd_actions.server.front.attempt_logs import LogSources
    from etcd_actions.server.front.cluster_state import ClusterSources

# Seconds of silence after which a stream is sent a message.
_KEEPALIVE = 30.0

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_front_door(
    config: Config, client: ActionsClient, etcd: Etcd, cluster: ClusterSources | None = None
) -> AsyncIterator[FrontDoor]:
    """The front door; one serves all ports of a process.

    Args:
        config: The settings.
        client: Changes and reads actions.
        etcd: Its connection.
        cluster: The sources of the state of the cluster, for the page.

    Raises:
        ConfigError: The configured store of blobs cannot be used.
    """
    # Imported here, since it needs the extra "server".
    from etcd_actions.registry.registry import open_registry  # noqa: PLC0415
    from etcd_actions.runs.run_index import open_run_index  # noqa: PLC0415
    from etcd_actions.server.front import FrontDoor  # noqa: PLC0415
    from etcd_actions.server.front.run_lists import paused_runs  # noqa: PLC0415

    keys, containment = client.keys, client.containment
    async with (
        open_run_index(
            etcd,
            keys,
            containment=containment,
            # Processes with shards receive their parts only. A replica without lists needs no runs.
            on_demand=bool(config[settings.SHARDS]),
        ) as index,
        open_registry(etcd, client.store, keys, containment=containment) as registry,
    ):
        blobs = await trio.to_thread.run_sync(blob_store, config)
        uploads = ImageUploads(blobs)
        builds = await open_image_builds(client, config, uploads.read, uploads.exists)
        if builds is not None:
            registry.build_in(build_task_spec())
        yield FrontDoor(
            client=client,
            keepalive=config[settings.STREAM_KEEPALIVE],
            blobs=blobs,
            builds=builds,
            signer=UrlSigner(client.store, keys),
            reads_local_files=config[settings.EXECUTOR] == "local",
            max_upload_bytes=config[settings.MAX_UPLOAD_BYTES],
            logs=_logs(
                client, etcd, keys, config, blobs, is_here=config[settings.EXECUTOR] != "none"
            ),
            index=index,
            registry=registry,
            paused=paused_runs(client, keys),
            projects=project_settings(config),
            projects_with_runs=index.projects,
            cluster=cluster,
        )


def blob_store(config: Config) -> BlobStore:
    """The configured store; else the default folder, if it can be written."""
    where = config[settings.BLOB_DIR]
    try:
        return open_blob_store(_expanded(where or default_data_dir().with_name("blobs")))
    except ConfigError as error:
        if where is not None:
            raise ConfigError(f"{settings.BLOB_DIR.flag}: {error}") from None
        why = f"{error}; or name it with {settings.BLOB_DIR.flag} or {settings.BLOB_DIR.variable}"
        _log.warning("no_blob_store", error=str(error), remedy=settings.BLOB_DIR.flag)
        return NoStore(why)


def _expanded(where: Path | str) -> Path | str:
    if isinstance(where, str):
        return where
    try:
        return where.expanduser().absolute()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{where} cannot be found: {error}: give an absolute path") from None


async def local_front_door(config: Config, client: ActionsClient, etcd: Etcd) -> FrontDoor:
    """The front door of a command or a worker: it serves local files, and no lists of runs.

    Raises:
        ConfigError: The store of blobs that is given cannot be used.
    """
    from etcd_actions.server.front import FrontDoor  # noqa: PLC0415

    blobs = await trio.to_thread.run_sync(blob_store, config)
    return FrontDoor(
        client=client,
        keepalive=_KEEPALIVE,
        blobs=blobs,
        reads_local_files=True,
        logs=_logs(client, etcd, client.keys, config, blobs, is_here=True),
    )


def _logs(
    client: ActionsClient,
    etcd: Etcd,
    keys: Keyspace,
    config: Config,
    blobs: BlobStore,
    *,
    is_here: bool,
) -> LogSources:
    """The reader of the logs of attempts.

    It reads the logs of this machine's executor, if there is one. It also reads logs that workers
    have copied next to the outputs of attempts: from the blob store, and from any directory if
    tasks run here, since a task could read that directory, too.
    """
    from etcd_actions.runs.reading import history_of_action  # noqa: PLC0415
    from etcd_actions.server.front.attempt_logs import LogSources  # noqa: PLC0415

    async def history(action_id: ActionId) -> ActionHistory | None:
        return await history_of_action(Store(etcd), keys, action_id)

    if not is_here and find_spec("psutil") is None:
        # The extra "executor" is not installed.
        return LogSources(client=client, history=history)
    from etcd_actions.executor.attempts.attempt_log import LocalLogs  # noqa: PLC0415
    from etcd_actions.executor.shared_logs import SharedLogs  # noqa: PLC0415

    def is_readable(outputs: str) -> bool:
        return is_here or blobs.key_of(outputs) is not None

    source = LocalLogs(state_dir_of(config)) if is_here else None
    return LogSources(client=client, source=source, shared=SharedLogs(is_readable), history=history)
