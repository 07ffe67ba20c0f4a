"""A reflector or a processor under test, and the verdict over what it did."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import trio
import trio.testing

from etcd_actions import ActionId, ActionUpdate, WatchingSettings
from etcd_actions._internal.backoff import Backoff
from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue
from etcd_actions.follow.workqueue import WorkQueueSettings
from etcd_actions.pipeline.processor import Processor, open_processor
from etcd_actions.run_service import RunService
from etcd_actions.watch import Reflector, ReflectorSettings
from tests.support import oracle
from tests.support.oracle import Entry, Skipped
from tests.support.recording import RecordingRunService, RecordingSink, eventually, until_stored

DEAD_AFTER = 1.5
_SOON = Backoff(0.02, 0.2)
REFLECTOR = ReflectorSettings(dead_after=DEAD_AFTER, backoff=_SOON)
# Where nothing falls silent, and a machine that is slow must not be taken for it.
UNHURRIED = ReflectorSettings(backoff=_SOON)
PROCESSOR = WatchingSettings(
    elect=False, collect_orphans=False, reflector=REFLECTOR, queue=WorkQueueSettings(backoff=_SOON)
)


@asynccontextmanager
async def reflecting(
    etcd: Etcd,
    prefix: bytes,
    sink: RecordingSink,
    *,
    settings: ReflectorSettings = REFLECTOR,
) -> AsyncIterator[Reflector]:
    """A reflector that has listed and watches."""
    reflector = Reflector(
        etcd,
        KeyRange.of_prefix(prefix),
        sink,
        likely_prefix=prefix + b"flyte/r",
        settings=settings,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(reflector.run)
        yield reflector
        nursery.cancel_scope.cancel("the test is over")


@asynccontextmanager
async def processing(
    etcd: Etcd,
    prefix: bytes,
    run_service: RunService,
    *,
    settings: WatchingSettings = PROCESSOR,
) -> AsyncIterator[Processor]:
    """A processor that watches."""
    async with open_processor(
        etcd, prefix=prefix, run_service=run_service, settings=settings
    ) as processor:
        await processor.start_watching()
        yield processor


@asynccontextmanager
async def subscribed(
    processor: Processor, parents: Iterable[ActionId]
) -> AsyncIterator[list[ActionUpdate]]:
    """What subscribers to some actions receive, gathered."""
    updates: list[ActionUpdate] = []

    async def gather(parent: ActionId) -> None:
        async with processor.subscribe(parent) as subscription:
            async for update in subscription:
                updates.append(update)

    async with trio.open_nursery() as nursery:
        for parent in parents:
            nursery.start_soon(gather, parent)
        await trio.testing.wait_all_tasks_blocked()
        yield updates
        nursery.cancel_scope.cancel("the test is over")


async def judge_delivery(
    sink: RecordingSink,
    direct: Etcd,
    prefix: bytes,
    *,
    earlier: Sequence[Entry] = (),
    skipped: Sequence[Skipped] = (),
    since: int = 1,
) -> list[Entry]:
    """Wait until every key's last state was given out; then nothing may be wrong.

    ``earlier`` is history read before it was compacted away. ``since`` is a revision before which
    the prefix had no key: all that other tests have written to a shared etcd would be read, too.
    """
    since = earlier[-1].mod_revision + 1 if earlier else since
    history = [*earlier]
    history += await oracle.read_history(direct, KeyRange.of_prefix(prefix), since=since)
    final = oracle.final_states(history)
    await sink.bell.until(lambda: is_settled(sink, final))
    assert oracle.delivery_problems(sink.changes, history, skipped=skipped) == []
    return history


def is_settled(sink: RecordingSink, final: dict[bytes, Entry]) -> bool:
    """Whether the newest change of every key is the key's last state."""
    last = sink.last()
    return all(
        (key not in last or last[key].is_delete)
        if entry.is_delete
        else (key in last and last[key].mod_revision == entry.mod_revision)
        for key, entry in final.items()
    )


def all_marked(stored: dict[bytes, KeyValue]) -> bool:
    """Whether every stored action that is over has its mark."""
    actions = [json.decode(kv.value) for kv in stored.values()]
    return all(action.is_recorded for action in actions if action.is_terminal)


async def judge_marks(
    processors: Sequence[Processor],
    run_services: Sequence[RecordingRunService],
    direct: Etcd,
    prefix: bytes,
) -> list[Entry]:
    """Wait until all work is done and all endings are marked; then nothing may be wrong."""
    keys = KeyRange.of_prefix(prefix)
    await until_stored(direct, keys, all_marked)
    history = await oracle.read_history(direct, keys)
    await eventually(lambda: all(_is_idle(processor) for processor in processors))
    told = [one for run_service in run_services for one in run_service.told]
    assert oracle.mark_problems(history, told) == []
    for run_service in run_services:
        assert oracle.told_problems(run_service.told) == []
    return history


def _is_idle(processor: Processor) -> bool:
    """Whether everything that was taken in was handled."""
    statistics = processor.statistics()
    router, outbox = statistics.handlers, statistics.outbox
    return router is not None and outbox is not None and not router.keys and not outbox.keys
