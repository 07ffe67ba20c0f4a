"""Users of the tests of permissions, and the secrets that no text may contain."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from etcd_actions import open_etcd
from etcd_actions.etcd import Etcd, TransportName, User
from tests.support.cluster import WORKER, EtcdCluster

SECRETS = ("root-pw-5f1c", "worker-pw-9b27", "another-pw-c0de", "third-pw-77aa")
ANOTHER = replace(WORKER, password=SECRETS[2])
CALLS = 40
PATIENCE = 60


def tells_no_secret(error: BaseException) -> None:
    """Neither the error nor its traceback, with all variables, has a password in it."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    text = str(error) + repr(error) + "".join(told.format())
    assert not [secret for secret in SECRETS if secret in text]


@asynccontextmanager
async def connected(
    cluster: EtcdCluster, transport: TransportName, user: User | None = WORKER
) -> AsyncIterator[Etcd]:
    """With a user; by default the one that may do everything with keys."""
    async with open_etcd(cluster.endpoints, transport=transport, user=user) as etcd:
        yield etcd
