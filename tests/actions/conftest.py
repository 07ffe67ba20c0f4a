"""Fixtures of the tests of actions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from etcd_actions import (
    ActionsClient,
    open_actions_client,
)
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import (
    Keyspace,
)


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


@pytest.fixture
def keys(prefix: bytes) -> Keyspace:
    return Keyspace(prefix)
