"""A client that watches, and a server on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from etcd_actions import ActionsClient, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.web import Bind

LOOPBACK = Bind("127.0.0.1", 0)


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
async def server(client: ActionsClient) -> AsyncIterator[ActionsServer]:
    async with open_actions_server(client, ServerSettings(bind=LOOPBACK)) as server:
        yield server
