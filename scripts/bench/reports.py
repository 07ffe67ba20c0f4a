"""Marks a second with a run service in another process, and with our own; prints a table.

    .venv/bin/python -m scripts.bench.reports [--rounds 3] [--count 4000]

Each round has an etcd of its own and measures all ways in turns, beginning with another one each;
figures are medians of the rounds, ratios medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import trio

from etcd_actions import RunService, WatchingSettings, open_etcd
from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace, build_action_update
from etcd_actions.pipeline.processor import open_processor
from etcd_actions.run_service import NullRunService, open_run_service
from etcd_actions.runs.own_run_service import open_own_run_service
from scripts.bench.processes import etcd_binary, etcd_server
from scripts.bench.writer import put_ended

_TOGETHER = 256


@asynccontextmanager
async def run_service() -> AsyncIterator[RunService]:
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
    stored = await put_ended(etcd, prefix, count)
    async with run_service() as service:
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
    """All of it: list, report, mark."""
    await put_ended(etcd, prefix, count)
    async with run_service() as service:
        return await _mark_all(etcd, prefix, count, service)


async def unreported(etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """List and mark, with a run service that accepts at once."""
    await put_ended(etcd, prefix, count)
    return await _mark_all(etcd, prefix, count, NullRunService())


async def kept(etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """The same of roots, with records and histories in etcd, in the mark's transaction."""
    await put_ended(etcd, prefix, count)
    async with open_own_run_service(etcd, Keyspace(prefix)) as service:
        return await _mark_all(etcd, prefix, count, service)


async def kept_children(etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """The same of actions that are not roots, which have no record."""
    await put_ended(etcd, prefix, count, parent="a0")
    async with open_own_run_service(etcd, Keyspace(prefix)) as service:
        return await _mark_all(etcd, prefix, count, service)


async def _mark_all(
    etcd: Etcd, prefix: bytes, count: int, service: RunService
) -> tuple[float, float]:
    settings = WatchingSettings(elect=False, outbox_workers=_TOGETHER, collect_orphans=False)
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
    "reported and marked": marked,
    "no run service, marked": unreported,
    "kept by ourselves and marked: roots": kept,
    "kept by ourselves and marked: others": kept_children,
}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=4_000, help="marks of each way")
    options = parser.parse_args()
    rounds = [_round(number, options.count) for number in range(options.rounds)]
    print("| mark | 1/s | µs CPU | rate, x the first |\n| --- | --- | --- | --- |")
    base = next(iter(SIDES))
    for name in SIDES:
        rate, cpu = (median(one[name][at] for one in rounds) for at in (0, 1))
        ratio = median(one[name][0] / one[base][0] for one in rounds)
        print(f"| {name} | {rate:,.0f} | {cpu:.1f} | {ratio:.1f} |")


def _round(number: int, count: int) -> dict[str, tuple[float, float]]:
    """All ways, on one etcd."""
    names = list(SIDES)
    first = number % len(names)
    measured = {}
    with (
        tempfile.TemporaryDirectory() as place,
        etcd_server(etcd_binary(None), Path(place)) as server,
    ):
        for at, name in enumerate(names[first:] + names[:first]):
            prefix = f"/bench/{at}/".encode()
            measured[name] = trio.run(_connected, server.address, SIDES[name], prefix, count)
    return measured


async def _connected(
    address: str,
    side: Callable[[Etcd, bytes, int], Awaitable[tuple[float, float]]],
    prefix: bytes,
    count: int,
) -> tuple[float, float]:
    async with open_etcd([address]) as etcd:
        return await side(etcd, prefix, count)


if __name__ == "__main__":
    main()
