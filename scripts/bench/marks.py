"""Marks a second, with nobody to be told: one write a transaction, and by group commit."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable

import trio

from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd, KeyValue, Put, Txn, TxnResult
from etcd_actions.group_commit import open_group_commit
from etcd_actions.model import FINALIZER_RECORD, build_action_update
from etcd_actions.recorder import Ending, MarkResult, Recorder
from etcd_actions.store import Store
from tests.data.captured import PUTS

_PUTS_TOGETHER = 100


def ended() -> bytes:
    """An object of about 3 KB that is over, as it is before its mark."""
    values = [put.value for put in PUTS if 2_500 <= len(put.value) <= 4_000]
    value = next(
        value
        for value in values
        if (action := json.decode(value)).is_terminal and not action.is_recorded
    )
    tree = json.decode_tree(value)
    tree["metadata"]["finalizers"] = [FINALIZER_RECORD]
    return json.encode_tree(tree)


async def alone(together: int, etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """Each mark is a transaction of its own."""
    return await _mark_all(Recorder(Store(etcd)), together, await _put_all(etcd, prefix, count))


async def grouped(together: int, etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    async with open_group_commit(etcd) as commit:
        recorder = Recorder(Store(etcd, commit.txn))
        return await _mark_all(recorder, together, await _put_all(etcd, prefix, count))


SIDES = {
    "a transaction each, 64 in flight": functools.partial(alone, 64),
    **{
        f"group commit, {together} in flight": functools.partial(grouped, together)
        for together in (64, 128, 256, 512)
    },
}


async def _put_all(etcd: Etcd, prefix: bytes, count: int) -> list[KeyValue]:
    value = ended()
    stored = []
    for first in range(0, count, _PUTS_TOGETHER):
        keys = [
            prefix + b"flyte/r%07d-a1" % number
            for number in range(first, min(first + _PUTS_TOGETHER, count))
        ]
        result: TxnResult = await etcd.txn(Txn([], [Put(key, value) for key in keys]))
        stored += [KeyValue(key, value, result.revision, result.revision, 1) for key in keys]
    return stored


async def _mark_all(
    recorder: Recorder, together: int, stored: list[KeyValue]
) -> tuple[float, float]:
    update = build_action_update(json.decode(stored[0].value), key=stored[0].key, revision=1)
    accepted = Ending.of(update)
    left: Iterable[KeyValue] = iter(stored)

    async def worker() -> None:
        for seen in left:
            await recorder.mark(seen, accepted)

    cpu, clock = time.process_time(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(together):
            nursery.start_soon(worker)
    seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    if recorder.statistics() != {MarkResult.MARKED.value: len(stored)}:
        raise RuntimeError(f"not all were marked: {recorder.statistics()}")
    return len(stored) / seconds, cpu / len(stored) * 1e6
