"""The two transports side by side: calls, and a watch that catches up; prints a markdown table.

    .venv/bin/python -m scripts.bench.transports

Each round runs both, in turns, on one etcd of its own; the figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from etcd_actions.etcd import TransportName, open_etcd
from etcd_actions.etcd.api import Etcd, KeyRange, Put, Txn, WatchCreate
from etcd_actions.testing import EtcdProcess

TRANSPORTS: tuple[TransportName, ...] = ("grpc", "gateway")
VALUE = os.urandom(1024)
CALLS = 2000
TOGETHER = 16
BATCHES = 200
BATCH = 100

Measured = dict[str, tuple[float, float]]
"""By name: how many a second, and microseconds of this process's CPU for each."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the transports side by side.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each figure (3)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"--rounds: {rounds} is below 1")
    results: dict[TransportName, list[Measured]] = {name: [] for name in TRANSPORTS}
    with tempfile.TemporaryDirectory() as directory, EtcdProcess(Path(directory)) as etcd:
        for number in range(rounds):
            for name in TRANSPORTS:
                prefix = f"/bench/{number}/{name}/".encode()
                results[name].append(trio.run(measure, etcd.endpoint, name, prefix))
    print("| 1 KB values | grpc, 1/s | gateway, 1/s | grpc, µs CPU | gateway, µs CPU | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for what in results["grpc"][0]:
        rate, cpu = (
            [statistics.median(one[what][index] for one in results[name]) for name in TRANSPORTS]
            for index in (0, 1)
        )
        print(
            f"| {what} | {rate[0]:,.0f} | {rate[1]:,.0f} | {cpu[0]:,.1f} | {cpu[1]:,.1f} "
            f"| {cpu[1] / cpu[0]:.1f} x |"
        )


async def measure(endpoint: str, transport: TransportName, prefix: bytes) -> Measured:
    measured: Measured = {}
    async with open_etcd(endpoint, transport=transport) as etcd:

        async def put(number: int) -> None:
            await etcd.put(prefix + b"%d" % number, VALUE)

        async def read(number: int) -> None:
            await etcd.range(KeyRange.of_key(prefix + b"%d" % number))

        measured["put, one at a time"] = await calls(put, 1)
        measured[f"put, {TOGETHER} at a time"] = await calls(put, TOGETHER)
        measured["read, one at a time"] = await calls(read, 1)
        measured[f"read, {TOGETHER} at a time"] = await calls(read, TOGETHER)
        first = (await etcd.put(prefix, b"")).revision + 1
        for _ in range(BATCHES):
            await etcd.txn(Txn([], [Put(prefix + b"b%d" % n, VALUE) for n in range(BATCH)]))
        measured["event, catching up"] = await catch_up(etcd, prefix, first)
    return measured


async def calls(call: Callable[[int], Awaitable[None]], together: int) -> tuple[float, float]:
    numbers = iter(range(CALLS))

    async def worker() -> None:
        for number in numbers:
            await call(number)

    await call(0)
    cpu, clock = time.process_time(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(together):
            nursery.start_soon(worker)
    return CALLS / (time.perf_counter() - clock), (time.process_time() - cpu) / CALLS * 1e6


async def catch_up(etcd: Etcd, prefix: bytes, first: int) -> tuple[float, float]:
    expected = BATCHES * BATCH
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, KeyRange.of_prefix(prefix), first))
        cpu, clock = time.process_time(), time.perf_counter()
        got = 0
        while got < expected:
            got += sum(len(response.events) for response in await stream.receive())
    return got / (time.perf_counter() - clock), (time.process_time() - cpu) / got * 1e6


if __name__ == "__main__":
    main()
