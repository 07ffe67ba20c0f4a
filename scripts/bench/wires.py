"""gRPC by ``etcd_actions.http2`` and by grpcio, in turns, on one etcd; prints a markdown table.

    .venv/bin/python -m scripts.bench.wires [--rounds 3] [--seconds 4]

Both are a connection under the same client, so everything above is the same. The load of the
watches comes from a process of its own; ``handled`` is all of the line to the processor's handler.
CPU is this process's, user and system, all threads. Figures are medians of the rounds, ratios the
median of each round's ratio.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog
import trio

from etcd_actions import ActionObject, Phase, WatchingSettings
from etcd_actions.etcd import ConnectionSettings, EtcdClient, open_connection
from etcd_actions.etcd.api import Etcd, KeyRange, WatchCreate
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.follow import Handler
from etcd_actions.model import Summary
from etcd_actions.pipeline.processor import open_processor
from etcd_actions.run_service import NullRunService
from etcd_actions.testing import EtcdProcess
from etcd_actions.watch import Change
from scripts.bench.bodies import stamp_of
from scripts.bench.grpcio_peer import GrpcioConnection
from scripts.bench.load import Plan
from scripts.bench.processes import ROOT, Child, child

WIRES = ("grpcio", "http2")
CALLS = 6_000
VALUE = os.urandom(1024)
PREFIX = "/registry/flyte.org/taskactions/flyte/"

Measured = dict[str, dict[str, float]]
"""The figures of each operation, by name."""


class Seen:
    """Events that were seen, how late, and at what cost."""

    def __init__(self) -> None:
        self.late: list[int] = []
        self._cpu = time.process_time()
        self._began = time.perf_counter()

    def add(self, value: bytes) -> None:
        self.late.append(time.monotonic_ns() - stamp_of(value))

    def figures(self) -> dict[str, float]:
        late = sorted(self.late)
        return {
            "1/s": len(late) / (time.perf_counter() - self._began),
            "µs": (time.process_time() - self._cpu) / len(late) * 1e6,
            "p50 ms": late[len(late) // 2] / 1e6,
            "p99 ms": late[len(late) * 99 // 100] / 1e6,
        }


class _Silence(NullRunService):
    def accepts(self, phase: Phase, deleted: bool) -> bool:
        return False


@asynccontextmanager
async def opened(endpoint: str, wire: str) -> AsyncIterator[Etcd]:
    settings = ConnectionSettings(endpoints=parse_endpoints(endpoint), request_timeout=60)
    if wire == "http2":
        async with open_connection(settings) as client:
            yield client
        return
    client = EtcdClient(settings, GrpcioConnection)
    try:
        yield client
    finally:
        client.close()


async def puts(etcd: Etcd, together: int) -> dict[str, float]:
    numbers = iter(range(CALLS))

    async def worker() -> None:
        for number in numbers:
            await etcd.put(b"/puts/%d" % (number % 500), VALUE)

    await etcd.put(b"/puts/0", VALUE)
    cpu, clock = time.process_time(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(together):
            nursery.start_soon(worker)
    seconds = time.perf_counter() - clock
    return {"1/s": CALLS / seconds, "µs": (time.process_time() - cpu) / CALLS * 1e6}


async def watched(etcd: Etcd, load: Child, seconds: float) -> dict[str, float]:
    """Receive and decode etcd's messages, and nothing else."""
    keys = KeyRange.of_prefix(PREFIX.encode())
    first = (await etcd.put(b"/before", b"")).revision + 1
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, keys, first))
        await stream.receive()
        seen = Seen()

        async def read() -> None:
            while True:
                for response in await stream.receive():
                    for event in response.events:
                        seen.add(event.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await loaded(load, seconds, seen)
            nursery.cancel_scope.cancel("all were seen")
        return seen.figures()


async def handled(etcd: Etcd, load: Child, seconds: float) -> dict[str, float]:
    """All of the line, to the handler."""
    prefix, namespace, _ = PREFIX.rsplit("/", 2)
    # The load's actions have no parents.
    settings = WatchingSettings(collect_orphans=False)
    async with open_processor(
        etcd,
        prefix=f"{prefix}/".encode(),
        namespace=namespace,
        run_service=_Silence(),
        settings=settings,
    ) as processor:
        handle = Handler.handle_task_action_event
        seen = Seen()

        def counted(
            handler: Handler, change: Change, summary: Summary, previous: ActionObject | None = None
        ) -> None:
            handle(handler, change, summary, previous)
            # Without a value the state was merged into a later one.
            if change.value:
                seen.add(change.value)

        setattr(Handler, handle.__name__, counted)
        await processor.start_watching()
        seen = Seen()
        try:
            await loaded(load, seconds, seen)
        finally:
            setattr(Handler, handle.__name__, handle)
        return seen.figures()


async def loaded(load: Child, seconds: float, seen: Seen) -> None:
    """Run the load, until all events are seen, or no more come: states may be merged."""
    load.send("go")
    result = await trio.to_thread.run_sync(load.receive, "done", 3 * seconds + 60)
    before = -1
    while before < len(seen.late) < int(result["acked"]):
        before = len(seen.late)
        await trio.sleep(0.3)


@contextmanager
def generator(
    etcd: EtcdProcess, directory: Path, *, rate: float, batch: int, seconds: float
) -> Iterator[Child]:
    plan = Plan(
        host="127.0.0.1",
        port=etcd.port,
        history=str(ROOT / "tests/data/taskaction_history.jsonl"),
        prefix=PREFIX,
        keys=2_000,
        rate=rate,
        batch=batch,
        in_flight=4,
        events=1_000_000,
        seconds=seconds,
        warm=0,
        rewrite=True,
        acks=str(directory / "acks"),
    )
    with child("load", plan.to_json(), directory / "load.log") as load:
        load.send("warm")
        load.receive("warmed", 30)
        yield load


async def measure(etcd: EtcdProcess, wire: str, directory: Path, seconds: float) -> Measured:
    found: Measured = {}
    async with opened(etcd.endpoint, wire) as client:
        found["put, 64 in flight"] = await puts(client, 64)
        found["put, one in flight"] = await puts(client, 1)
        for name, rate, batch, line in (
            ("watch, 8,000/s", 8_000, 1, watched),
            ("watch, 100 a transaction", 0, 100, watched),
            ("handled, 1,000/s", 1_000, 1, handled),
            ("handled, 3,000/s", 3_000, 1, handled),
        ):
            with generator(etcd, directory, rate=rate, batch=batch, seconds=seconds) as load:
                found[name] = await line(client, load, seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure both ways to speak gRPC side by side.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    results: list[dict[str, Measured]] = []
    for number in range(given.rounds):
        turns: dict[str, Measured] = {}
        for wire in WIRES if number % 2 else reversed(WIRES):
            # Of its own: history and load of one turn are not the other's.
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory)
                with EtcdProcess(path) as etcd:
                    turns[wire] = trio.run(measure, etcd, wire, path, given.seconds)
        results.append(turns)
    print("| what | figure | grpcio | http2 | http2 / grpcio |")
    print("| --- | --- | ---: | ---: | ---: |")
    for what, figures in results[0][WIRES[0]].items():
        for figure in figures:
            one, other = ([turn[wire][what][figure] for turn in results] for wire in WIRES)
            ratio = statistics.median(b / a for a, b in zip(one, other, strict=True))
            a, b = statistics.median(one), statistics.median(other)
            print(f"| {what} | {figure} | {a:,.1f} | {b:,.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
