"""A client that watches, and an executor without processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from etcd_actions import ActionsClient, open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.executor.fakes import Bench


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
def bench(client: ActionsClient, tmp_path: Path) -> Bench:
    return Bench(client, tmp_path)
