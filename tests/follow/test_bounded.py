"""Memory is bounded under a list, with a handler and a run service that are slow."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import trio

from etcd_actions import WatchingSettings
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd, KeyRange, Put, RangeResult, Txn
from etcd_actions.follow import Handler
from etcd_actions.follow.workqueue import WorkQueueSettings
from etcd_actions.pipeline.processor import open_processor
from etcd_actions.watch import Change
from tests.pipeline.processing import RecordingRunService
from tests.support.load import make_run, with_annotation
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

SETTINGS = WatchingSettings(elect=False, collect_orphans=False)
KIB = 1024


class Counting:
    """An etcd that notes how many values were handled when a page of the list came."""

    def __init__(self, etcd: Etcd, prefix: bytes, handled: list[bytes]) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._handled = handled
        self.read = 0
        self.behind: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def range(self, keys: KeyRange, **options: Any) -> RangeResult:
        found = await self._etcd.range(keys, **options)
        if keys.end == KeyRange.of_prefix(self._prefix).end and not options.get("keys_only"):
            self.behind.append(self.read - len(self._handled))
            self.read += len(found.kvs)
        return found


async def stored(etcd: Etcd, prefix: bytes, count: int, size: int) -> None:
    """Put endings that nobody has recorded, each of a size."""
    (action,) = make_run(prefix, "r1", 1)
    value = with_annotation(action.ended, "filler", "x" * size)
    assert json.decode(value).is_terminal
    puts = [Put(prefix + b"flyte/r1-x%04d" % number, value) for number in range(count)]
    for start in range(0, count, 20):
        await etcd.txn(Txn([], puts[start : start + 20]))


async def test_a_list_is_read_no_faster_than_it_is_handled(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page is fetched while the one before is handled, and no other one."""
    monkeypatch.setattr("etcd_actions.etcd.paging._FIRST_LIMIT", 10)
    monkeypatch.setattr("etcd_actions.etcd.paging._LEAST_LIMIT", 10)
    monkeypatch.setattr("etcd_actions.etcd.paging._MOST_LIMIT", 10)
    await stored(etcd, prefix, 100, 100)
    handled: list[bytes] = []
    handle = Handler.handle_watch_event

    def slowly(handler: Handler, change: Change) -> None:
        time.sleep(0.001)
        handle(handler, change)
        handled.append(change.key)

    monkeypatch.setattr(Handler, "handle_watch_event", slowly)
    counting: Any = Counting(etcd, prefix, handled)
    async with open_processor(
        counting, prefix=prefix, settings=replace(SETTINGS, record=False)
    ) as processor:
        await processor.start_watching()
        assert len(handled) == 100
    assert len(counting.behind) >= 10
    assert max(counting.behind) <= 20


@pytest.mark.slow
async def test_a_list_takes_little_memory_though_nothing_is_told(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 MB of endings, a run service that hangs, and 1 MB for values that wait for it.

    Then all are told and marked: what was dropped is read again.
    """
    monkeypatch.setattr("etcd_actions.etcd.paging._FIRST_LIMIT", 10)
    monkeypatch.setattr("etcd_actions.etcd.paging._LEAST_LIMIT", 10)
    monkeypatch.setattr("etcd_actions.etcd.paging._MOST_LIMIT", 10)

    async def nothing(_: OrphanCollector) -> None:
        await trio.lowlevel.checkpoint()

    # It reads all values, too, at the start.
    monkeypatch.setattr(OrphanCollector, "sweep", nothing)
    await stored(etcd, prefix, 400, 50 * KIB)
    service = RecordingRunService()
    service.hang = trio.Event()
    settings = replace(SETTINGS, outbox_workers=4, queue=WorkQueueSettings(soft_bytes=1024 * KIB))
    async with open_processor(
        etcd, prefix=prefix, run_service=service, settings=settings
    ) as processor:
        tracemalloc.start()
        try:
            await processor.start_watching()
            await eventually(lambda: service.attempts == 4)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        outbox = processor.statistics().outbox
        assert outbox is not None
        assert outbox.keys == 400
        assert outbox.pending_bytes <= 1100 * KIB
        assert peak < 8 * 1024 * KIB
        service.hang.set()
        await eventually(lambda: processor.statistics().marks == {"marked": 400})
