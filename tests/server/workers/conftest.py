"""A service with a part of etcd for workers, and connections by tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import pytest

from etcd_actions import ActionsClient, open_actions_client
from etcd_actions.etcd import ConnectionSettings, EtcdClient, open_connection
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.model import Keyspace
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.workers.etcd_methods import LARGEST_ANSWER, STREAM_WINDOW, WorkerEtcd
from etcd_actions.server.workers.rights import WorkerRights
from etcd_actions.testing import EtcdServer
from etcd_actions.web import Bind

TOKENS = """
client-token name=alice
worker-token name=w1 role=worker
other-worker-token name=w2 role=worker
"""

Connect = Callable[..., AbstractAsyncContextManager[EtcdClient]]


class Site(NamedTuple):
    """The service, the etcd behind it, and the keys."""

    server: ActionsServer
    etcd: EtcdClient
    keys: Keyspace
    connect: Connect


@pytest.fixture
async def behind(shared_etcd: EtcdServer) -> AsyncIterator[EtcdClient]:
    """The etcd, without a service between."""
    settings = ConnectionSettings(endpoints=parse_endpoints(shared_etcd.endpoint))
    async with open_connection(settings) as etcd:
        yield etcd


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKENS)
    return ServerSettings(bind=Bind("127.0.0.1", 0), token_file=tokens)


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    """Opens a connection to a service as a worker does."""

    def connect(
        *servers: ActionsServer, token: str = "worker-token", request_timeout: float = 5.0
    ) -> AbstractAsyncContextManager[EtcdClient]:
        file = tmp_path / f"token-{token}"
        file.write_text(f"{token}\n")
        addresses = ",".join(str(each.address) for each in servers)
        return open_connection(
            ConnectionSettings(
                endpoints=parse_endpoints(addresses),
                token_file=file,
                request_timeout=request_timeout,
            )
        )

    return connect


@pytest.fixture
async def limited(shared_etcd: EtcdServer) -> AsyncIterator[EtcdClient]:
    """The connection of the service for workers."""
    settings = ConnectionSettings(
        endpoints=parse_endpoints(shared_etcd.endpoint),
        largest_answer=LARGEST_ANSWER,
        stream_window=STREAM_WINDOW,
    )
    async with open_connection(settings) as etcd:
        yield etcd


@pytest.fixture
async def client(behind: EtcdClient, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(behind, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
async def site(
    client: ActionsClient,
    behind: EtcdClient,
    limited: EtcdClient,
    settings: ServerSettings,
    connect: Connect,
) -> AsyncIterator[Site]:
    workers = WorkerEtcd(limited, WorkerRights(client.keys, None))
    async with open_actions_server(client, settings, workers=workers) as server:
        yield Site(server, behind, client.keys, connect)
