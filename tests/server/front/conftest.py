"""RunService on a client that watches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from etcd_actions import ActionsClient
from tests.server.front.run_calls import RunsAsker, serve_runs


@pytest.fixture
async def asker(client: ActionsClient, tmp_path: Path) -> AsyncIterator[RunsAsker]:
    async with serve_runs(client, tmp_path / "blobs") as (asker, _):
        yield asker
