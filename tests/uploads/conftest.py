from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from etcd_actions import open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.uploads.world import World


@pytest.fixture
async def world(etcd: Etcd, prefix: bytes, tmp_path: Path) -> AsyncIterator[World]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield await World.open(etcd, client, tmp_path / "blobs")
