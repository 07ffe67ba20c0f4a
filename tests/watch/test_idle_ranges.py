"""The revision of a range in which nothing happens moves on, over both transports.

It is what the position is made of, and what the lag is measured by.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.watch import Reflector, ReflectorSettings
from tests.support.etcd_server import EtcdServer
from tests.support.recording import RecordingSink
from tests.support.waiting import eventually


@asynccontextmanager
async def reflecting(
    server: EtcdServer, prefix: bytes, transport: TransportName, dead_after: float
) -> AsyncIterator[Reflector]:
    async with (
        open_etcd(server.endpoint, transport=transport) as etcd,
        trio.open_nursery() as nursery,
    ):
        reflector = Reflector(
            etcd,
            KeyRange.of_prefix(prefix),
            RecordingSink(),
            settings=ReflectorSettings(dead_after=dead_after),
        )
        await nursery.start(reflector.run)
        yield reflector
        nursery.cancel_scope.cancel("the test is over")


@pytest.mark.parametrize("tells", [True, False], ids=["progress", "comparison"])
async def test_the_revision_of_an_idle_range_moves_beside_one_with_traffic(
    shared_etcd: EtcdServer,
    prefix: bytes,
    transport: TransportName,
    tells: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over the gateway too, whose streams end before two comparisons are made on one."""
    module = "etcd_actions.watch.store_identity.has_reliable_progress"
    monkeypatch.setattr(module, lambda _: tells)
    monkeypatch.setattr("etcd_actions.etcd.gateway.watch._LONGEST_SILENCE", 0.8)
    async with (
        reflecting(shared_etcd, prefix, transport, dead_after=1.2) as reflector,
        open_etcd(shared_etcd.endpoint) as etcd,
    ):
        await eventually(lambda: reflector.statistics().streaming)
        last = await etcd.put(b"/elsewhere", b"")
        await eventually(lambda: reflector.statistics().revision >= last.revision, within=15)
