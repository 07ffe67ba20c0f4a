"""A client that watches, and an executor without processes; nothing of a test runs on after it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from etcd_actions import ActionsClient, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from tests.executor.fakes import Bench


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
def bench(client: ActionsClient, tmp_path: Path) -> Bench:
    return Bench(client, tmp_path)


@pytest.fixture(autouse=True)
def ends_with_its_test(tmp_path: Path) -> Iterator[None]:
    """End the attempts in the test's own state directory."""
    yield
    for directory in tmp_path.glob("state/attempts/*/*"):
        place = AttemptDirectory.at(directory)
        place.kill(signal.SIGKILL)
        if place.is_alive:
            place.kill_left_behind()
