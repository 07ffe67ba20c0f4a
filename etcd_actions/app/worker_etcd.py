"""Opens the part of etcd that the service offers to workers, as configured."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from etcd_actions.config import Config, settings
from etcd_actions.errors import ConfigError
from etcd_actions.etcd import open_connection
from etcd_actions.model import Keyspace

if TYPE_CHECKING:
    from etcd_actions.server.workers.etcd_methods import WorkerEtcd


@asynccontextmanager
async def open_worker_etcd(
    config: Config, endpoints: str, keys: Keyspace
) -> AsyncIterator[WorkerEtcd]:
    """A connection for workers alone, with limits of its own.

    Args:
        config: The settings.
        endpoints: The endpoints of etcd.
        keys: The keys of actions.

    Raises:
        ConfigError: The prefix has the keys of this package, too.
    """
    # Imported here, since it needs the extra "server".
    from etcd_actions.server.workers import etcd_methods  # noqa: PLC0415
    from etcd_actions.server.workers.rights import WorkerRights  # noqa: PLC0415

    try:
        rights = WorkerRights(keys, config[settings.NAMESPACE])
    except ValueError as error:
        raise ConfigError(f"{settings.WORKER_ACCESS.flag}: {error}: give another prefix") from None
    limited = replace(
        config.connection(endpoints),
        largest_answer=etcd_methods.LARGEST_ANSWER,
        stream_window=etcd_methods.STREAM_WINDOW,
    )
    async with open_connection(limited) as etcd:
        yield etcd_methods.WorkerEtcd(etcd, rights)
