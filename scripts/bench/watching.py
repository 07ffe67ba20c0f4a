"""Rows about readers of a load: a generator, a reader and etcd, each a process.

The readers of a row take turns in each round, on an etcd of their own unless the row reads what
is there already.
"""

from __future__ import annotations

import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scripts.bench.bodies import run_name
from scripts.bench.load import Plan
from scripts.bench.processes import (
    GO_READER,
    ROOT,
    Child,
    ChildFailed,
    Server,
    child,
    etcd_server,
)
from scripts.bench.recorder import Task
from scripts.bench.results import FLOOR, GO, OURS, Figures
from scripts.bench.setting import Setting, Take

HISTORY = ROOT / "tests/data/taskaction_history.jsonl"
PREFIX = "/registry/flyte.org/taskactions/flyte/"
WARM_EVENTS = 200
START_SECONDS = 30.0
_LISTED_A_SECOND = 5_000
"""Objects that are surely listed in a second on a loaded machine."""
_TRACED_A_SECOND = 500
"""The same while Python counts its allocations."""
GRACE_SECONDS = 15.0
KEYS = 2_000
CHILDREN = 200
OBJECTS = 100_000
PAGE = 2_000
_MOST_EVENTS = 1_000_000
_BATCH = 100

READERS = {
    FLOOR: "reader_grpcio",
    OURS: "reader_etcd_actions",
    GO: GO_READER,
    "aetcd": "reader_aetcd",
    "etcd3-py": "reader_etcd3py",
}
SUBSCRIBERS = READERS | {OURS: "reader_subscriber"}


@dataclass(frozen=True, kw_only=True)
class Load:
    """A load: events a second (0: as many as go), puts in one transaction, keys and runs."""

    rate: float = 0
    batch: int = 1
    keys: int = KEYS
    per_run: int = 20
    small: bool = False


def watch(load: Load, readers: dict[str, str]) -> Callable[[Setting], Any]:
    """A row: put to reader, at a rate."""

    @contextmanager
    def prepared(setting: Setting) -> Iterator[Take]:
        def take(side: str) -> Figures:
            with _place(setting) as (server, directory):
                revision = server.revision()
                task = _task("watch", server, directory, revision + 1)
                return _watched(setting, load, readers[side], task, directory, server)

        yield take

    return prepared


@contextmanager
def listing(setting: Setting) -> Iterator[Take]:
    """A row: a store of many objects, to the last handler."""
    with _place(setting) as (server, directory):
        objects = setting.scaled(OBJECTS)
        preload(server, directory, objects)

        def take(side: str) -> Figures:
            task = _task("list", server, directory, 0)
            with child(READERS[side], task.to_json(), directory / "reader.log") as reading:
                result = _finish(reading, objects, 0, 60)
            if result["listed"] != objects:
                raise ChildFailed(f"{result['listed']} of {objects} seen", directory / "reader.log")
            return {
                "seconds": (result["listed_at"] - result["opened_at"]) / 1e9,
                "rss_mb": result["rss"] / 1e6,
                "cpu_us": result["cpu_ns"] / 1e3 / objects,
                "objects": objects,
            }

        yield take


@contextmanager
def catching_up(setting: Setting) -> Iterator[Take]:
    """A row: what happened while a reader was away, a revision for each event."""
    with _place(setting) as (server, directory):
        events = setting.scaled(OBJECTS)
        preparing = _task("prepare", server, directory, sys.maxsize)
        with child(READERS[OURS], preparing.to_json(), directory / "prepare.log") as before:
            before.send("watch")
            before.receive("watching", START_SECONDS)
        first = server.revision() + 1
        plan = replace(
            _plan(Load(), server, directory), in_flight=32, events=events, seconds=240, warm=0
        )
        with child("load", plan.to_json(), directory / "load.log") as load:
            load.send("go")
            acked = load.receive("done", 300)["acked"]
        if acked != events:
            raise ChildFailed(f"{acked} of {events} written", directory / "load.log")
        last = first + events - 1

        def take(side: str) -> Figures:
            task = _task("catch-up", server, directory, first)
            with child(READERS[side], task.to_json(), directory / "reader.log") as reading:
                result = _finish(reading, events, last, 60)
            if max(result["last"].values(), default=0) < last:
                raise ChildFailed("the last revision was not seen", directory / "reader.log")
            seconds = (result["seen_at"] - result["opened_at"]) / 1e9
            return {
                "rate": events / seconds,
                "rss_mb": result["rss"] / 1e6,
                "cpu_us": result["cpu_ns"] / 1e3 / events,
                "seen": result["seen"],
                "sent": events,
                "disordered": result["disordered"],
            }

        yield take


@contextmanager
def keys(setting: Setting) -> Iterator[Take]:
    """A row: one event, and the memory of a key, in stores of several sizes."""
    sizes = setting.sizes
    with _place(setting) as (server, directory):
        for size in sizes:
            preload(server, directory, size, prefix=_sized(size), small=True)

        def take(side: str) -> Figures:
            found: Figures = {}
            for size in sizes:
                task = replace(
                    _task("watch", server, directory, server.revision() + 1), prefix=_sized(size)
                )
                load = Load(rate=1_000, keys=min(size, KEYS), small=True)
                one = _watched(setting, load, READERS[side], task, directory, server, size)
                found |= {f"{name}_{size}": value for name, value in one.items()}
            least, most = sizes[0], sizes[-1]
            found["growth"] = found[f"cpu_us_{most}"] / found[f"cpu_us_{least}"]
            if side == OURS:
                for size in (least, most):
                    task = replace(
                        _task("list", server, directory, 0), prefix=_sized(size), trace=True
                    )
                    with child(READERS[side], task.to_json(), directory / "reader.log") as reading:
                        reading.send(f"held {size}")
                        held = reading.receive("held", size / _TRACED_A_SECOND + START_SECONDS)
                    found[f"allocated_{size}"] = held["allocated"]
                for figure in ("allocated", "resident"):
                    more = found[f"{figure}_{most}"] - found[f"{figure}_{least}"]
                    found[f"{figure}_key"] = more / (most - least)
            return found

        yield take


def preload(
    server: Server, directory: Path, objects: int, *, prefix: str = PREFIX, small: bool = False
) -> float:
    """Write each of so many keys once, in transactions; how many seconds that took.

    Raises:
        ChildFailed: Not all were written.
    """
    load = Load(batch=_BATCH, keys=objects, small=small)
    plan = replace(
        _plan(load, server, directory),
        prefix=prefix, events=objects, seconds=600, warm=0, rewrite=False,
    )  # fmt: skip
    with child("load", plan.to_json(), directory / "load.log") as load_process:
        load_process.send("go")
        done = load_process.receive("done", 700)
    if done["acked"] < objects:
        raise ChildFailed(f"only {done['acked']} objects were written", directory / "load.log")
    return float(done["seconds"])


def plain_puts(setting: Setting, in_flight: int, count: int) -> Figures:
    """How many puts a second etcd takes from a cheap client, for rows about writes."""
    with _place(setting) as (server, directory):
        plan = replace(
            _plan(Load(), server, directory),
            in_flight=in_flight, events=count, seconds=60, warm=0,
        )  # fmt: skip
        with child("load", plan.to_json(), directory / "load.log") as load:
            load.send("go")
            done = load.receive("done", 120)
    return {"rate": done["rate"], "cpu_us": done["cpu_us"]}


def _watched(
    setting: Setting,
    load: Load,
    reader: str,
    task: Task,
    directory: Path,
    server: Server,
    listed: int = 0,
) -> Figures:
    task = replace(task, run=run_name(0))
    plan = replace(_plan(load, server, directory), prefix=task.prefix, seconds=setting.seconds)
    held = 0
    with (
        child("load", plan.to_json(), directory / "load.log") as generator,
        child(reader, task.to_json(), directory / "reader.log") as reading,
    ):
        reading.send("watch")
        listing = START_SECONDS + listed / _LISTED_A_SECOND
        reading.receive("watching", listing)
        if listed and reader == READERS[OURS]:
            reading.send(f"held {listed}")
            held = reading.receive("held", listing)["resident"]
        generator.send("warm")
        generator.receive("warmed", START_SECONDS)
        reading.send(f"baseline {WARM_EVENTS}")
        reading.receive("ready", START_SECONDS)
        generator.send("go")
        done = generator.receive("done", 2 * setting.seconds + 60)
        if not done["acked"]:
            raise ChildFailed("etcd refused all", directory / "etcd.log")
        final, present = server.range(task.prefix, task.range_end)
        result = _finish(reading, WARM_EVENTS + done["acked"], final, GRACE_SECONDS)
    times = Times.read(Path(task.times), WARM_EVENTS)
    seen = len(times.seen)
    if not seen:
        raise ChildFailed("no event was seen", directory / "reader.log")
    p50, p99, most = times.latencies_ms()
    last = result["last"]
    return {
        "cpu_us": result["cpu_ns"] / 1e3 / seen,
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": most,
        "rate": seen / (times.seen[-1] - times.sent[0]) * 1e9,
        "rss_mb": result["rss"] / 1e6,
        "resident": held,
        "seen": seen,
        "sent": done["acked"],
        "disordered": result["disordered"],
        "stale": sum(
            last.get(key) != revision
            for key, revision in present.items()
            if revision >= task.revision
        ),
        "backlog": times.backlog(_longs(Path(plan.acks)), load.batch),
        "load_planned": load.rate,
        "load_rate": done["rate"],
        "load_late_p99_ms": done["late_p99_ms"],
        "load_put_p50_ms": done["put_p50_ms"],
        "load_put_p99_ms": done["put_p99_ms"],
        "load_cpu_us": done["cpu_us"],
        "load_refused": done["failed"],
    }


@dataclass(frozen=True)
class Times:
    """When a reader saw events, and when they were sent; in the order seen."""

    seen: array[int]
    sent: array[int]

    @classmethod
    def read(cls, path: Path, skip: int) -> Times:
        """From a reader's file, without the first ``skip`` events."""
        both = _longs(path)
        count = len(both) // 2
        return cls(both[skip:count], both[count + skip :])

    def latencies_ms(self) -> tuple[float, float, float]:
        """The median, the 99th percentile and the maximum."""
        latencies = sorted(seen - sent for seen, sent in zip(self.seen, self.sent, strict=True))
        count = len(latencies)
        return (
            latencies[count // 2] / 1e6,
            latencies[count * 99 // 100] / 1e6,
            latencies[-1] / 1e6,
        )

    def backlog(self, acks: Iterable[int], batch: int) -> int:
        """The most events that were acknowledged and not yet seen."""
        most, seen, acked = 0, 0, 0
        for ack in acks:
            acked += batch
            while seen < len(self.seen) and self.seen[seen] <= ack:
                seen += 1
            most = max(most, acked - seen)
        return most


def _longs(path: Path) -> array[int]:
    """A file of 64-bit integers."""
    result = array("q")
    result.frombytes(path.read_bytes())
    return result


@contextmanager
def _place(setting: Setting) -> Iterator[tuple[Server, Path]]:
    with tempfile.TemporaryDirectory(dir=setting.directory) as name:
        directory = Path(name)
        with etcd_server(setting.etcd, directory) as server:
            yield server, directory


def _plan(load: Load, server: Server, directory: Path) -> Plan:
    return Plan(
        host=server.host,
        port=server.port,
        history=str(HISTORY),
        prefix=PREFIX,
        keys=load.keys,
        rate=load.rate,
        batch=load.batch,
        in_flight=4,
        events=_MOST_EVENTS,
        seconds=10,
        warm=WARM_EVENTS,
        rewrite=True,
        acks=str(directory / "acks"),
        per_run=load.per_run,
        small=load.small,
    )


def _task(
    mode: Literal["watch", "list", "catch-up", "prepare"],
    server: Server,
    directory: Path,
    revision: int,
) -> Task:
    return Task(
        mode=mode,
        host=server.host,
        port=server.port,
        prefix=PREFIX,
        revision=revision,
        page=PAGE,
        times=str(directory / "times"),
        spawned=time.monotonic_ns(),
    )


def _sized(size: int) -> str:
    return f"/registry/of{size}/taskactions/flyte/"


def _finish(reading: Child, count: int, revision: int, grace: float) -> dict[str, Any]:
    reading.send(f"finish {count} {revision} {grace}")
    return reading.receive("result", grace + 30)
