"""A client that watches, and an executor without processes; nothing of a test runs on after it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from etcd_actions import ActionsClient, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor import attempt_follower
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.launchers import attempts as looking
from tests.executor.fakes import Bench
from tests.support.ray_head import RayHead, open_ray_head


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
def bench(client: ActionsClient, tmp_path: Path) -> Bench:
    return Bench(client, tmp_path)


@pytest.fixture
async def head(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RayHead]:
    """A head of Ray whose jobs the test runs; attempts are looked at soon."""
    monkeypatch.setattr(looking, "_LOOK_FIRST", 0.01)
    monkeypatch.setattr(looking, "_LOOK_LAST", 0.01)
    monkeypatch.setattr(attempt_follower, "_QUEUED_AFTER", 0.05)
    async with open_ray_head() as head:
        yield head


@pytest.fixture(autouse=True)
def ends_with_its_test(tmp_path: Path) -> Iterator[None]:
    """End the attempts in the test's own state directory."""
    yield
    for directory in tmp_path.glob("state/attempts/*/*"):
        place = AttemptDirectory.at(directory)
        place.kill(signal.SIGKILL)
        if place.is_alive:
            place.kill_left_behind()
