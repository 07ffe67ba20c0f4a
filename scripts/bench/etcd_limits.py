"""Measures how many writes a second this machine's etcd takes, of objects of 3 KB.

    .venv/bin/python -m scripts.bench.etcd_limits [--rounds 3] [--write]

One at a time, 256 at once, and in transactions of 100 as group commit makes them; etcd and the
generator share the machine. The first is the time of a sync of the disk, the last is etcd's
processors. The table goes into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

import psutil

from scripts.bench.action_cost import etcd_metrics
from scripts.bench.load import Plan
from scripts.bench.machine import description
from scripts.bench.processes import child, cpu_seconds, etcd_binary, etcd_server, etcd_version
from scripts.bench.results import Figures
from scripts.bench.scaling_figures import keep_figures, replace_block, table
from scripts.bench.watching import HISTORY, PREFIX

_SECONDS = 6.0
WAYS = {"one at a time": (1, 1), "256 at once": (256, 1), "transactions of 100": (4, 100)}
"""Requests in flight, and puts in each."""


def measure(directory: Path, in_flight: int, batch: int) -> Figures:
    """Puts, as many as go."""
    with etcd_server(etcd_binary(None), directory) as server:
        plan = Plan(
            host=server.host, port=server.port, history=str(HISTORY), prefix=PREFIX, keys=2_000,
            rate=0, batch=batch, in_flight=in_flight, events=1_000_000, seconds=_SECONDS, warm=200,
            rewrite=True, acks=str(directory / "acks"),
        )  # fmt: skip
        etcd = psutil.Process(server.pid)
        with child("load", plan.to_json(), directory / "load.log") as load:
            load.send("warm")
            load.receive("warmed", 30)
            before, cpu = etcd_metrics(server), cpu_seconds(etcd)
            load.send("go")
            done = load.receive("done", 20 * _SECONDS)
        after, cpu = etcd_metrics(server), cpu_seconds(etcd) - cpu
        name = "etcd_disk_wal_fsync_duration_seconds"
        syncs = after[f"{name}_count"] - before[f"{name}_count"]
        took = after[f"{name}_sum"] - before[f"{name}_sum"]
    return {
        "rate": float(done["rate"]),
        "p50": float(done["put_p50_ms"]),
        "p99": float(done["put_p99_ms"]),
        "cpu": 1e6 * cpu / float(done["acked"]),
        "sync": 1000 * took / max(syncs, 1),
        "per_sync": float(done["acked"]) / max(syncs, 1),
    }


def main() -> None:
    """Measure, and print or keep the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.json and .md")
    options = parser.parse_args()
    found: dict[str, list[Figures]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        for name, (in_flight, batch) in WAYS.items():
            with tempfile.TemporaryDirectory() as directory:
                found[name].append(measure(Path(directory), in_flight, batch))
    middle = {
        name: {figure: median(one[figure] for one in taken) for figure in taken[0]}
        for name, taken in found.items()
    }
    rows = [
        [
            name,
            f"{one['rate']:,.0f}",
            f"{one['p50']:.1f} / {one['p99']:.1f}",
            f"{one['cpu']:,.0f}",
            f"{one['sync']:.2f}",
            f"{one['per_sync']:,.1f}",
        ]
        for name, one in middle.items()
    ]
    head = [
        "puts of 3 KB", "a second", "p50 / p99 ms", "µs CPU of etcd", "ms of a sync of the disk",
        "puts in a sync",
    ]  # fmt: skip
    python = ".".join(map(str, sys.version_info[:3]))
    text = (
        f"{table(head, rows)}\nMedians of {options.rounds}; one member, etcd "
        f"{etcd_version(etcd_binary(None))}, Python {python}, {description()}."
    )
    print(text)
    if options.write:
        keep_figures("limits", middle)
        replace_block("limits", text)


if __name__ == "__main__":
    main()
