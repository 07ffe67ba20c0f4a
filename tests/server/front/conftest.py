"""A server with an index of runs and a registry of tasks, and one that creates runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from etcd_actions import ActionsClient
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.registry.registry import Registry, open_registry
from etcd_actions.runs.run_entry import RunEntry
from etcd_actions.runs.run_index import RunIndex, open_run_index
from etcd_actions.runs.run_record import RunRecord, encode
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.run_messages import RunMessages
from etcd_actions.storage.store import Store
from tests.server.conftest import LOOPBACK
from tests.server.front.calling import Caller
from tests.server.front.run_calls import RunsAsker, serve_runs
from tests.support.runs import key_of


@dataclass
class Lists:
    """What is behind the server.

    Attributes:
        paused: The keys of the records of runs that wait.
        messages: What the server makes messages with.
    """

    etcd: Etcd
    keys: Keyspace
    index: RunIndex
    registry: Registry
    paused: set[bytes]
    messages: RunMessages

    async def put(self, *runs: RunRecord) -> None:
        """Write records, and wait until the index has them."""
        revision = 0
        for run in runs:
            revision = (await self.etcd.put(key_of(self.keys, run), encode(run))).revision
        assert await self.index.wait_for(revision)


@pytest.fixture
async def lists(etcd: Etcd, prefix: bytes) -> AsyncIterator[Lists]:
    keys = Keyspace(prefix)
    async with (
        open_run_index(etcd, keys) as index,
        open_registry(etcd, Store(etcd), keys) as registry,
    ):
        yield Lists(etcd, keys, index, registry, set(), RunMessages())


@pytest.fixture
async def front_server(client: ActionsClient, lists: Lists) -> AsyncIterator[ActionsServer]:
    async def paused(_runs: Iterable[RunEntry]) -> set[bytes]:
        return lists.paused

    front = FrontDoor(
        client=client,
        keepalive=0.05,
        index=lists.index,
        registry=lists.registry,
        paused=paused,
        run_messages=lists.messages,
    )
    settings = ServerSettings(bind=LOOPBACK, keepalive=0.05)
    async with open_actions_server(client, settings, front=front) as server:
        yield server


@pytest.fixture
def caller(front_server: ActionsServer) -> Iterator[Caller]:
    caller = Caller(str(front_server.address))
    yield caller
    caller.close()


@pytest.fixture
async def asker(client: ActionsClient, tmp_path: Path) -> AsyncIterator[RunsAsker]:
    async with serve_runs(client, tmp_path / "blobs") as (asker, _):
        yield asker
