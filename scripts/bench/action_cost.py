"""Measures the cost of an action over its life, in etcd: writes, bytes, processor time.

    .venv/bin/python -m scripts.bench.action_cost [--children 200] [--runs 20] [--write]

A program of Flyte's SDK has one run with so many children, then runs that have only a root; both
through the front door of the service and on one worker, while a second service only follows.
Then the objects and records of all runs are removed, and etcd is compacted. The figures go into
docs/scaling.json, which docs/scaling.md and ``scripts.bench.simulate_cells`` use.

Processor time and counts hardly depend on the load of the machine; times would.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.model.keyspace import OWN_PREFIX, Keyspace
from scripts.bench.executor import PROGRAM, SDK
from scripts.bench.machine import description
from scripts.bench.processes import (
    ChildFailed,
    Server,
    etcd_binary,
    etcd_server,
    etcd_version,
    last_lines,
    service,
    total_cpu_seconds,
    worker,
)
from scripts.bench.scaling_figures import Cost, Costs, keep_figures, replace_block, table

_QUIET_SECONDS = 2.0
_IDLE_SECONDS = 8.0
_SETTLE_SECONDS = 120.0
_COMPACTION_SECONDS = 60.0
_KEYS = Keyspace()
# What a key is, by its prefix; the others are "other".
_FAMILIES = {
    _KEYS.prefix: "object",
    _KEYS.claims: "claim",
    _KEYS.runs: "record of the run",
    _KEYS.run_tasks: "task of the run",
    _KEYS.histories: "history",
    _KEYS.own + b"position/": "checkpoint",
    _KEYS.elections: "election",
}
_WITH_OBJECT = {"object", "trace", "claim"}
"""The families that go with the object; the others stay with the record of the run."""


class Event(NamedTuple):
    """One put or deletion."""

    key: bytes
    size: int
    is_deletion: bool


@dataclass
class Reading:
    """The state of etcd and of the processes at one moment; processor times are less idle ones."""

    revision: int
    proposals: float
    wal_bytes: float
    in_use: float
    etcd_cpu: float
    service_cpu: float
    follower_cpu: float
    worker_cpu: float
    live: dict[bytes, int] = field(default_factory=dict)


class Bench:
    """One etcd, a service, a worker, and a service that only follows."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        (directory / "bench.py").write_text(PROGRAM)
        self.server: Server = stack.enter_context(etcd_server(etcd_binary(None), directory))
        common = ("--blob-dir", str(directory / "blobs"))
        self.address, serving = stack.enter_context(
            service(self.server.address, directory / "service.log", *common)
        )
        # It follows all changes; the first process is the leader.
        _, following = stack.enter_context(
            service(self.server.address, directory / "follower.log", *common)
        )
        executing = (
            *("--python", str(SDK), "--images", "off"),
            *("--executor-state-dir", str(directory / "state")),
        )
        working = stack.enter_context(
            worker(
                ("--endpoints", self.server.address), directory / "worker.log", *common, *executing
            )
        )
        self._processes = (psutil.Process(self.server.pid), serving, following, working)
        self._idle = [0.0] * len(self._processes)

    def submit(self, count: int) -> None:
        """Run the program, to its end.

        Raises:
            ChildFailed: It did not succeed.
        """
        log = self._directory / "submit.log"
        with log.open("wb") as output:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "etcd_actions", "submit"),
                    f"{self._directory / 'bench.py'}:at_once",
                    *("--service", self.address, "--python", str(SDK)),
                    *("--input", f"count={count}", "--output", "jsonl", "--log-level", "error"),
                ],
                check=False,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=600,
            )
        if done.returncode:
            print(last_lines(self._directory / "service.log"), file=sys.stderr)
            raise ChildFailed(f"submit ends with {done.returncode}", log)

    def measure_idle(self) -> None:
        """Measure the processor time that each process takes without work, to subtract it."""
        self._settle()
        # The end of a start takes longer than its writes.
        time.sleep(_IDLE_SECONDS)
        before = [total_cpu_seconds(each) for each in self._processes]
        time.sleep(_IDLE_SECONDS)
        self._idle = [
            (total_cpu_seconds(each) - spent) / _IDLE_SECONDS
            for each, spent in zip(self._processes, before, strict=True)
        ]

    def read(self) -> Reading:
        """Read all counters, once nothing is written any more."""
        self._settle()
        metrics = self._metrics()
        now = time.monotonic()
        etcd, served, followed, worked = (
            total_cpu_seconds(each) - idle * now
            for each, idle in zip(self._processes, self._idle, strict=True)
        )
        return Reading(
            revision=self.server.revision(),
            proposals=metrics["etcd_server_proposals_applied_total"],
            wal_bytes=metrics.get("etcd_disk_wal_write_bytes_total", 0.0),
            in_use=metrics["etcd_mvcc_db_total_size_in_use_in_bytes"],
            etcd_cpu=etcd,
            service_cpu=served,
            follower_cpu=followed,
            worker_cpu=worked,
            live=self._live(),
        )

    def events(self, after: int, up_to: int) -> list[Event]:
        """The changes after one revision, up to another one."""
        watch = self.server.channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )
        create = pb.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=after + 1)
        found: list[Event] = []
        stream = watch(_open(pb.WatchRequest(create_request=create)), timeout=60)
        for response in stream:
            for event in response.events:
                if event.kv.mod_revision <= up_to:
                    size = len(event.kv.key) + len(event.kv.value)
                    is_deletion = event.type == pb.Event.DELETE
                    found.append(Event(event.kv.key, size, is_deletion))
            if response.events and response.events[-1].kv.mod_revision >= up_to:
                stream.cancel()
                return found
        raise RuntimeError("the watch ended")

    def collect(self) -> None:
        """Remove all runs that have ended, with everything of theirs."""
        log = self._directory / "gc.log"
        with log.open("wb") as output:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "etcd_actions", "gc", "runs", "--older-than", "0s"),
                    *("--service", self.address),
                ],
                check=False,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=300,
            )
        if done.returncode:
            raise ChildFailed(f"gc ends with {done.returncode}", log)

    def compact(self) -> float:
        """Compact all history: bytes of the database in use afterwards."""
        compact = self.server.channel.unary_unary(
            "/etcdserverpb.KV/Compact",
            request_serializer=pb.CompactionRequest.SerializeToString,
            response_deserializer=pb.CompactionResponse.FromString,
        )
        compact(pb.CompactionRequest(revision=self.server.revision(), physical=True), timeout=60)
        # Freed pages count as in use until the backend's next commit.
        deadline = time.monotonic() + _COMPACTION_SECONDS
        before = -1.0
        while (now := self._metrics()["etcd_mvcc_db_total_size_in_use_in_bytes"]) != before:
            before = now
            if time.monotonic() > deadline:
                break
            time.sleep(_QUIET_SECONDS)
        return now

    def _live(self) -> dict[bytes, int]:
        get = self.server.channel.unary_unary(
            "/etcdserverpb.KV/Range",
            request_serializer=pb.RangeRequest.SerializeToString,
            response_deserializer=pb.RangeResponse.FromString,
        )
        response: pb.RangeResponse = get(pb.RangeRequest(key=b"\0", range_end=b"\0"), timeout=60)
        return {kv.key: len(kv.key) + len(kv.value) for kv in response.kvs}

    def _settle(self) -> None:
        """Wait until no revision comes any more.

        Raises:
            RuntimeError: They do not end.
        """
        deadline = time.monotonic() + _SETTLE_SECONDS
        before = -1
        while (now := self.server.revision()) != before:
            before = now
            if time.monotonic() > deadline:
                raise RuntimeError("something writes on and on")
            time.sleep(_QUIET_SECONDS)

    def _metrics(self) -> dict[str, float]:
        return etcd_metrics(self.server)


def etcd_metrics(server: Server) -> dict[str, float]:
    """The metrics of etcd that have no labels."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{server.address}/metrics", timeout=20) as response:
        text = response.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.M)}


def _open(request: pb.WatchRequest) -> Iterator[pb.WatchRequest]:
    """One request, on a stream that stays open for a minute."""
    yield request
    time.sleep(60)


def family(key: bytes) -> str:
    """The kind of a key."""
    for prefix, name in _FAMILIES.items():
        if key.startswith(prefix):
            return name
    if key.startswith(_KEYS.traces):
        return "trace"
    return "other of ours" if key.startswith(OWN_PREFIX) else "other"


@dataclass
class Spent:
    """The cost of some runs: between two readings, with what they left."""

    before: Reading
    after: Reading
    events: list[Event]

    def cost(self, deletions: float) -> Cost:
        """The cost of all of it; ``deletions`` is the number of writes that will remove it."""
        new = {k: size for k, size in self.after.live.items() if k not in self.before.live}
        kinds: dict[bool, list[int]] = defaultdict(list)
        for key, size in new.items():
            kinds[family(key) in _WITH_OBJECT].append(size)
        return Cost(
            writes=len(self.events) + deletions,
            requests=self.after.proposals - self.before.proposals,
            written_bytes=sum(each.size for each in self.events if not each.is_deletion),
            object_keys=len(kinds[True]),
            object_bytes=sum(kinds[True]),
            record_keys=len(kinds[False]),
            record_bytes=sum(kinds[False]),
            etcd_cpu_ms=1000 * (self.after.etcd_cpu - self.before.etcd_cpu),
            service_cpu_ms=1000 * (self.after.service_cpu - self.before.service_cpu),
            worker_cpu_ms=1000 * (self.after.worker_cpu - self.before.worker_cpu),
        )

    def by_family(self) -> dict[str, tuple[int, int, int]]:
        """Puts, deletions and bytes by the kind of key."""
        puts, deletions, sizes = Counter[str](), Counter[str](), Counter[str]()
        for each in self.events:
            name = family(each.key)
            (deletions if each.is_deletion else puts)[name] += 1
            sizes[name] += 0 if each.is_deletion else each.size
        return {name: (puts[name], deletions[name], sizes[name]) for name in puts | deletions}


def divided(cost: Cost, by: float, less: Cost | None = None) -> Cost:
    """A cost less another one, divided."""
    names = Cost.__struct_fields__
    taken = {name: getattr(less, name) if less else 0.0 for name in names}
    return Cost(**{name: (getattr(cost, name) - taken[name]) / by for name in names})


def measure(directory: Path, children: int, runs: int) -> tuple[Costs, dict[str, list[float]]]:
    """Measure: the costs, and puts, deletions and bytes of a child by the kind of key."""
    with ExitStack() as stack:
        bench = Bench(directory, stack)
        bench.submit(1)
        bench.measure_idle()
        first = bench.read()
        bench.submit(children)
        second = bench.read()
        for _ in range(runs):
            bench.submit(0)
        third = bench.read()
        logical = sum(each.size for each in bench.events(0, third.revision))
        followed = third.follower_cpu - first.follower_cpu
        changes = len(bench.events(first.revision, third.revision))
        large = Spent(first, second, bench.events(first.revision, second.revision))
        small = Spent(second, third, bench.events(second.revision, third.revision))
        bench.collect()
        last = bench.read()
        removal = bench.events(third.revision, last.revision)
        deleted = sum(each.is_deletion for each in removal)
        compacted = bench.compact()
    ended = len(third.live) - len(first.live)
    # Of the keys that stayed until their run was removed, each cost so many writes.
    each = len(removal) / max(deleted, 1)
    root_keys = len(third.live) - len(second.live)
    root = divided(small.cost(root_keys * each), runs)
    child = divided(large.cost((ended - root_keys) * each), children, root)
    print(
        f"removal: {len(removal)} writes, {deleted} deletions of {ended} keys; "
        f"in use {third.in_use:,.0f} before, {compacted:,.0f} after the compaction",
        file=sys.stderr,
    )
    costs = Costs(
        run=root,
        child=child,
        page_factor=third.in_use / logical,
        follow_us=1e6 * followed / changes,
    )
    mine, others = large.by_family(), small.by_family()
    families = {
        name: [
            (mine.get(name, (0, 0, 0))[part] - others.get(name, (0, 0, 0))[part] / runs) / children
            for part in range(3)
        ]
        for name in sorted(mine.keys() | others.keys())
    }
    return costs, families


def main() -> None:
    """Measure, and print or keep the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--children", type=int, default=200)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.json and .md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        costs, families = measure(Path(name), options.children, options.runs)
    text = tables(costs, families)
    print(text)
    if options.write:
        keep_figures("costs", costs)
        replace_block("costs", f"{text}\n{conditions(options.children, options.runs)}")


def conditions(children: int, runs: int) -> str:
    """With what it was measured."""
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"A run of {children} children and {runs} runs of a root; etcd "
        f"{etcd_version(etcd_binary(None))}, Python {python}, {description()}."
    )


def tables(costs: Costs, families: dict[str, list[float]]) -> str:
    """The costs, and what they consist of."""
    labels = {
        "writes": "puts and deletions, its removal included",
        "requests": "requests to etcd that write (proposals of raft)",
        "written_bytes": "bytes written",
        "object_keys": "keys that stay with its object",
        "object_bytes": "bytes of these",
        "record_keys": "keys that stay with the record of its run",
        "record_bytes": "bytes of these",
        "etcd_cpu_ms": "CPU ms of etcd",
        "service_cpu_ms": "CPU ms of the service",
        "worker_cpu_ms": "CPU ms of the worker, without the task",
    }
    rows = [
        [text, f"{getattr(costs.run, name):,.1f}", f"{getattr(costs.child, name):,.1f}"]
        for name, text in labels.items()
    ]
    parts = [
        [name, *(f"{value:,.1f}" for value in values)]
        for name, values in families.items()
        if values[0] >= 0.05
    ]
    return "\n".join(
        [
            table(["an action over its life", "a run with its root", "each other action"], rows),
            table(["keys of each other action", "puts", "deletions", "bytes written"], parts),
            f"etcd's database has {costs.page_factor:.2f} bytes in use for each byte of keys and "
            f"values, of all revisions that are not compacted. A process that only follows spends "
            f"{costs.follow_us:.0f} µs of CPU on each write.",
        ]
    )


if __name__ == "__main__":
    main()
