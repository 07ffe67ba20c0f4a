"""Workers without processes: each has a client, claims and a state directory of its own."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from etcd_actions import ActionsClient, open_actions_client
from etcd_actions._internal.clock import Clock
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor import Executor, ExecutorSettings, Offer
from etcd_actions.executor.open_executor import open_executor_with
from etcd_actions.pipeline.watching_settings import WatchingSettings
from tests.executor.fakes import FakeAttempts

GIBIBYTE = 1024.0**3


def offer(
    *,
    slots: int = 4,
    cpus: float = 64.0,
    memory: float = 64 * GIBIBYTE,
    gpus: int = 0,
    pools: tuple[str, ...] = ("default",),
) -> Offer:
    return Offer(slots=slots, cpus=cpus, memory=memory, gpus=gpus, pools=pools)


class FakeWorker(NamedTuple):
    """A worker whose attempts run until the test ends them."""

    executor: Executor
    attempts: FakeAttempts
    client: ActionsClient


@asynccontextmanager
async def fake_worker(
    etcd: Etcd, prefix: bytes, directory: Path, offered: Offer | None = None, *, ttl: int = 5
) -> AsyncIterator[FakeWorker]:
    """A worker, for as long as the context lasts."""
    offered = offered or offer()
    directory.mkdir()
    settings = ExecutorSettings(
        python=Path(sys.executable),
        service="127.0.0.1:1",
        state_dir=directory,
        slots=offered.slots,
        claim_ttl=ttl,
        offer=offered,
    )
    attempts = FakeAttempts()
    async with open_actions_client(
        etcd, prefix=prefix, settings=WatchingSettings(record=False)
    ) as client:
        await client.start_watching()
        async with open_executor_with(client, settings, attempts, Clock()) as executor:
            yield FakeWorker(executor, attempts, client)
