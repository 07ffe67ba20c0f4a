"""Fixtures of all tests: an etcd for the session, and a connection with a prefix of one's own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from etcd_actions import open_etcd
from etcd_actions.etcd.api import Etcd
from tests.support.etcd_server import EtcdServer

_numbers = itertools.count()


def pytest_configure() -> None:
    """Keep logs out of the tests' output; those who look at them use capture_logs."""

    def drop(*_: object) -> structlog.typing.EventDict:
        raise structlog.DropEvent

    structlog.configure(processors=[drop])
    # Shared machines stall: a slow example is no finding.
    hypothesis.settings.register_profile("tests", deadline=None)
    hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd for all tests that neither stop it nor compact it."""
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd of the test's own."""
    server = EtcdServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def killable_etcd(own_etcd: EtcdServer) -> EtcdServer:
    """An etcd of the test's own whose version survives being killed."""
    if not own_etcd.may_be_killed:
        pytest.skip(f"etcd {own_etcd.version} loses acknowledged writes when it is killed")
    return own_etcd


@pytest.fixture
async def etcd(shared_etcd: EtcdServer) -> AsyncIterator[Etcd]:
    """A connection to the shared etcd."""
    async with open_etcd(shared_etcd.endpoint) as connection:
        yield connection


@pytest.fixture
def prefix() -> bytes:
    """A key prefix that no other test uses."""
    return f"/test-{next(_numbers)}/taskactions/".encode()
