"""Marks a second with a run service in another process, beside the rate of bare calls to it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from etcd_actions import ProcessorSettings, RunService, open_processor
from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd, KeyValue, Put, Txn
from etcd_actions.model import Keyspace, build_action_update
from etcd_actions.run_service import NullRunService, open_run_service
from etcd_actions.runs.own_run_service import open_own_run_service
from scripts.bench.marks import ended

_PUTS_TOGETHER = 100
_TOGETHER = 256


@asynccontextmanager
async def told() -> AsyncIterator[RunService]:
    """A connection to a run service of its own, which accepts everything."""
    process = subprocess.Popen(  # noqa: ASYNC220 - for a moment
        [sys.executable, "-m", "tests.support.run_service_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(await trio.to_thread.run_sync(process.stdout.readline))
        async with open_run_service(f"127.0.0.1:{port}") as service:
            yield service
    finally:
        process.stdin.close()
        process.stdout.read()
        process.wait()
        process.stdout.close()


async def bare(etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """Record and status of as many actions, and nothing else."""
    stored = await _put_all(etcd, prefix, count)
    async with told() as service:
        left = iter(stored)

        async def worker() -> None:
            for kv in left:
                action = json.decode(kv.value)
                update = build_action_update(action, key=kv.key, revision=kv.mod_revision)
                await service.record_action(update, action)
                await service.update_action_status(update)

        cpu, clock = time.process_time(), time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(_TOGETHER):
                nursery.start_soon(worker)
        seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return count / seconds, cpu / count * 1e6


async def marked(etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """All of it: list, tell, mark."""
    await _put_all(etcd, prefix, count)
    async with told() as service:
        return await _mark_all(etcd, prefix, count, service)


async def unheard(etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """List and mark, with nobody to be told."""
    await _put_all(etcd, prefix, count)
    return await _mark_all(etcd, prefix, count, NullRunService())


async def kept(etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """The same of roots, with their records and histories in etcd: three writes more for each."""
    await _put_all(etcd, prefix, count)
    async with open_own_run_service(etcd, Keyspace(prefix)) as service:
        return await _mark_all(etcd, prefix, count, service)


async def kept_children(etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """The same of actions that are no roots: one write more for each."""
    await _put_all(etcd, prefix, count, parent="a0")
    async with open_own_run_service(etcd, Keyspace(prefix)) as service:
        return await _mark_all(etcd, prefix, count, service)


async def _mark_all(
    etcd: Etcd, prefix: bytes, count: int, service: RunService
) -> tuple[float, float]:
    settings = ProcessorSettings(elect=False, outbox_workers=_TOGETHER, collect_orphans=False)
    async with open_processor(
        etcd, prefix=prefix, namespace="flyte", run_service=service, settings=settings
    ) as processor:
        cpu, clock = time.process_time(), time.perf_counter()
        await processor.start_watching()
        while sum(processor.statistics().marks.values()) < count:  # noqa: ASYNC110
            await trio.sleep(0.01)
        seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return count / seconds, cpu / count * 1e6


SIDES = {
    "bare calls: record and status": bare,
    "told and marked": marked,
    "nobody told, marked": unheard,
    "kept by ourselves and marked: roots": kept,
    "kept by ourselves and marked: others": kept_children,
}


async def _put_all(etcd: Etcd, prefix: bytes, count: int, parent: str = "") -> list[KeyValue]:
    tree = json.decode_tree(ended())
    stored = []
    for first in range(0, count, _PUTS_TOGETHER):
        puts = []
        for number in range(first, min(first + _PUTS_TOGETHER, count)):
            run, name = f"r{number:07d}", "c1" if parent else "a0"
            tree["metadata"] |= {"name": f"{run}-{name}", "uid": f"uid-{number}"}
            tree["spec"] |= {"runName": run, "actionName": name, "parentActionName": parent}
            puts.append(Put(prefix + f"flyte/{run}-{name}".encode(), json.encode_tree(tree)))
        done = await etcd.txn(Txn((), puts))
        stored += [KeyValue(put.key, put.value, done.revision, done.revision, 1) for put in puts]
    return stored
