"""From a put to a subscriber of the client, at several rates.

    .venv/bin/python -m scripts.bench.latency [--rates 200 1000 3000]

The generator is a process of its own, an open loop of the load that also measures the readers of
the watch; each value says when it was put.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from etcd_actions import ActionId, ActionUpdate, open_actions_client, open_etcd
from etcd_actions.codecs import json
from etcd_actions.testing import EtcdProcess
from tests.data.captured import PUTS

_PREFIX = b"/bench/taskactions/"
_CHILDREN = 200
_RUN = "rlat"


async def put_at(endpoint: str, rate: float, seconds: float) -> None:
    """The generator: children of one root, each put with the time in its short name."""
    value = next(put.value for put in PUTS if 2_500 <= len(put.value) <= 4_000)
    tree = json.decode_tree(value)
    tree["metadata"].pop("labels", None)
    async with open_etcd(endpoint) as etcd, trio.open_nursery() as nursery:
        began = trio.current_time()
        for number in range(int(rate * seconds)):
            await trio.sleep_until(began + number / rate)
            name = f"c{number % _CHILDREN}"
            tree["metadata"] |= {"name": f"{_RUN}-{name}", "uid": name}
            tree["spec"] |= {
                "runName": _RUN,
                "actionName": name,
                "parentActionName": "a0",
                "project": "p",
                "domain": "d",
                "shortName": str(time.monotonic_ns()),
            }
            key = _PREFIX + f"flyte/{_RUN}-{name}".encode()
            nursery.start_soon(etcd.put, key, json.encode_tree(tree))


async def read(endpoint: str, rate: float, seconds: float) -> tuple[float, float, int, int]:
    """Milliseconds, p50 and p99, how many were seen, and how many a newer one replaced."""
    root = ActionId("p", "d", _RUN, "a0")
    times: list[float] = []
    async with (
        open_etcd(endpoint) as etcd,
        open_actions_client(etcd, prefix=_PREFIX) as client,
    ):
        await client.start_watching()
        async with client.subscribe(root) as updates:
            generator = subprocess.Popen(  # noqa: ASYNC220 - for a moment
                [
                    sys.executable, "-m", "scripts.bench.latency", "--generate", endpoint,
                    "--rates", str(rate), "--seconds", str(seconds),
                ],
            )  # fmt: skip
            with trio.move_on_after(seconds + 6):
                async for update in updates:
                    if isinstance(update, ActionUpdate):
                        times.append((time.monotonic_ns() - int(update.short_name)) / 1e6)
            conflated = updates.statistics().conflated
            generator.wait()
    # The first second is the start of the generator.
    times = times[min(int(rate), len(times) // 4) :]
    return statistics.median(times), statistics.quantiles(times, n=100)[98], len(times), conflated


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rates", type=float, nargs="*", default=[200, 1000, 3000])
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--generate", metavar="ENDPOINT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.generate:
        trio.run(put_at, given.generate, given.rates[0], given.seconds)
        return
    print("| puts/s | p50 ms | p99 ms | conflated |\n| ---: | ---: | ---: | ---: |")
    for rate in given.rates:
        rounds = []
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as data, EtcdProcess(Path(data)) as etcd:
                etcd.start()
                rounds.append(trio.run(read, etcd.endpoint, rate, given.seconds))
        p50, p99, seen, conflated = sorted(rounds)[len(rounds) // 2]
        print(f"| {rate:,.0f} | {p50:.2f} | {p99:.2f} | {conflated} of {seen + conflated} |")


if __name__ == "__main__":
    main()
