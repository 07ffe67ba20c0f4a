"""How the settings say what the SDK's own entry points are answered from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from etcd_actions.client import ActionsClient
from etcd_actions.config import Config
from etcd_actions.config.settings import STREAM_KEEPALIVE

if TYPE_CHECKING:
    from etcd_actions.server.front import Front


@asynccontextmanager
async def open_front(config: Config, client: ActionsClient) -> AsyncIterator[Front]:
    """The front door; one serves all ports of a process.

    Args:
        config: The settings.
        client: Who changes and reads actions; its containment is the boundary of what runs here.
    """
    # Loaded on demand: it needs what serves.
    from etcd_actions.server.front import Front  # noqa: PLC0415

    yield Front(client=client, keepalive=config[STREAM_KEEPALIVE])
