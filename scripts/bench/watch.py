"""Compares four readers of one load: etcd3-py, aetcd, bare grpcio, and etcd-actions.

Each measurement has an empty etcd, a generator and a reader: three processes on loopback.
The readers take turns, round by round. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NoReturn

from scripts.bench.load import Plan
from scripts.bench.processes import (
    ROOT,
    Child,
    ChildFailed,
    Server,
    child,
    etcd_binary,
    etcd_server,
    etcd_version,
)
from scripts.bench.recorder import Task
from scripts.bench.report import Measurement, Times, longs, table, verdicts

READERS = {
    "etcd3-py": "reader_etcd3py",
    "aetcd": "reader_aetcd",
    "grpcio": "reader_grpcio",
    "etcd-actions": "reader_etcd_actions",
}
LISTERS = ("grpcio", "etcd-actions")

PREFIX = "/registry/flyte.org/taskactions/flyte/"
WARM_EVENTS = 200
START_SECONDS = 20.0
MAX_EVENTS = 1_000_000


@dataclass(frozen=True)
class Scenario:
    """A load: events a second (0: as many as go), and puts in one transaction."""

    title: str
    rate: float = 0
    batch: int = 1


SCENARIOS = {
    "batch": Scenario("Transactions of {batch} puts, {pace}", 0, 100),
    "1000": Scenario("Single puts at 1,000/s", 1_000),
    "2000": Scenario("Single puts at 2,000/s", 2_000),
    "8000": Scenario("Single puts at 8,000/s", 8_000),
    "list": Scenario("First list of {objects:,} objects"),
}


class Bench:
    """One run, with its options."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
        self._directory = directory
        self._etcd = etcd_binary(options.etcd)
        self.measurements: list[Measurement] = []

    def head(self) -> str:
        """Where and with what this was measured."""
        versions = ", ".join(f"{name} {_version(name)}" for name in ("grpcio", "aetcd", "etcd3-py"))
        load = ", ".join(f"{one:.2f}" for one in os.getloadavg())
        return (
            f"etcd {etcd_version(self._etcd)}, Python {platform.python_version()}, {versions}; "
            f"{os.cpu_count()} cores, load average {load} before; "
            f"{self._options.runs} rounds of {self._options.seconds:g} s."
        )

    def run(self, name: str) -> str:
        """Measure one scenario and return its report."""
        scenario = SCENARIOS[name]
        if name == "list":
            found = self._run_list()
        else:
            rate = self._options.batch_rate if name == "batch" else scenario.rate
            scenario = Scenario(scenario.title, rate, scenario.batch)
            found = self._run_watch(name, scenario)
        self.measurements += found
        pace = f"{scenario.rate:,.0f} puts/s" if scenario.rate else "as many as go"
        title = scenario.title.format(
            batch=scenario.batch, pace=pace, objects=self._options.objects
        )
        parts = [f"## {title}", table(name, found), "\n".join(verdicts(name, found))]
        return "\n\n".join(part for part in parts if part)

    def _run_watch(self, name: str, scenario: Scenario) -> list[Measurement]:
        found = []
        for round_, reader in _turns(self._options.runs, self._options.readers):
            with ExitStack() as stack:
                directory = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(dir=self._directory))
                )
                server = stack.enter_context(etcd_server(self._etcd, directory))
                measurement = self._watch(name, scenario, reader, round_, server, directory)
            _progress(measurement)
            found.append(measurement)
        return found

    def _watch(
        self,
        name: str,
        scenario: Scenario,
        reader: str,
        round_: int,
        server: Server,
        directory: Path,
    ) -> Measurement:
        options = self._options
        revision, _ = server.range("/", b"0")
        task = self._task("watch", server, directory, revision + 1)
        plan = Plan(
            host=server.host,
            port=server.port,
            history=str(options.data),
            prefix=task.prefix,
            keys=options.keys,
            rate=scenario.rate,
            batch=scenario.batch,
            in_flight=options.in_flight,
            events=MAX_EVENTS,
            seconds=options.seconds,
            warm=WARM_EVENTS,
            rewrite=True,
            acks=str(directory / "acks"),
        )
        try:
            with (
                child("load", plan.to_json(), directory / "load.log") as load,
                child(READERS[reader], task.to_json(), directory / "reader.log") as reading,
            ):
                reading.tell("watch")
                reading.hear("watching", START_SECONDS)
                load.tell("warm")
                load.hear("warmed", START_SECONDS)
                reading.tell(f"baseline {WARM_EVENTS}")
                reading.hear("ready", START_SECONDS)
                load.tell("go")
                done = load.hear("done", 2 * options.seconds + 60)
                if not done["acked"]:
                    return Measurement(
                        scenario=name, reader=reader, round=round_, failed="etcd refused all"
                    )
                final, keys = server.range(task.prefix, task.range_end)
                result = _finish(reading, WARM_EVENTS + done["acked"], final, options.grace)
        except ChildFailed as error:
            return Measurement(scenario=name, reader=reader, round=round_, failed=str(error))
        acks = longs(Path(plan.acks))
        times = Times.read(Path(task.times), WARM_EVENTS)
        p50, p99, most = times.latencies_ms()
        seen = len(times.seen)
        last = result["last"]
        stale = sum(last.get(key) != revision for key, revision in keys.items())
        return Measurement(
            scenario=name,
            reader=reader,
            round=round_,
            sent=done["acked"],
            seen=seen,
            planned_rate=scenario.rate,
            rate=done["rate"],
            refused=done["failed"],
            late_p99_ms=done["late_p99_ms"],
            late_max_ms=done["late_max_ms"],
            put_p50_ms=done["put_p50_ms"],
            put_p99_ms=done["put_p99_ms"],
            load_cpu_us=done["cpu_us"],
            cpu_us=result["cpu_ns"] / 1e3 / max(seen, 1),
            p50_ms=p50,
            p99_ms=p99,
            max_ms=most,
            lag_s=options.grace if stale else max(0.0, (times.seen[-1] - acks[-1]) / 1e9),
            backlog=times.backlog(acks, scenario.batch),
            disordered=result["disordered"],
            stale=stale,
            rss=result["rss"],
            notes=result["notes"],
        )

    def _run_list(self) -> list[Measurement]:
        options = self._options
        found = []
        readers = [reader for reader in options.readers if reader in LISTERS]
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self._directory)))
            server = stack.enter_context(etcd_server(self._etcd, directory))
            sent = self._preload(server, directory)
            for round_, reader in _turns(options.runs, readers):
                measurement = self._list(reader, round_, sent, server, directory)
                _progress(measurement)
                found.append(measurement)
        return found

    def _preload(self, server: Server, directory: Path) -> int:
        options = self._options
        plan = Plan(
            host=server.host,
            port=server.port,
            history=str(options.data),
            prefix=PREFIX,
            keys=options.objects,
            rate=0,
            batch=100,
            in_flight=4,
            events=options.objects,
            seconds=120,
            warm=0,
            rewrite=False,
            acks=str(directory / "acks"),
        )
        with child("load", plan.to_json(), directory / "load.log") as load:
            load.tell("go")
            done = load.hear("done", 180)
        if done["acked"] < options.objects:
            raise ChildFailed(f"only {done['acked']} objects were written")
        return int(options.objects)

    def _list(
        self, reader: str, round_: int, sent: int, server: Server, directory: Path
    ) -> Measurement:
        task = self._task("list", server, directory, 0)
        try:
            with child(READERS[reader], task.to_json(), directory / "reader.log") as reading:
                result = _finish(reading, sent, sys.maxsize, 60)
        except ChildFailed as error:
            return Measurement(scenario="list", reader=reader, round=round_, failed=str(error))
        return Measurement(
            scenario="list",
            reader=reader,
            round=round_,
            sent=sent,
            seen=result["listed"],
            cpu_us=result["cpu_ns"] / 1e3 / max(result["listed"], 1),
            rss=result["rss"],
            list_s=(result["listed_at"] - result["opened_at"]) / 1e9,
            start_s=(result["listed_at"] - task.spawned) / 1e9,
            notes=result["notes"],
        )

    def _task(
        self, mode: Literal["watch", "list"], server: Server, directory: Path, revision: int
    ) -> Task:
        return Task(
            mode=mode,
            host=server.host,
            port=server.port,
            prefix=PREFIX,
            revision=revision,
            page=self._options.page,
            times=str(directory / "times"),
            spawned=time.monotonic_ns(),
        )


def _finish(reading: Child, count: int, revision: int, grace: float) -> dict[str, Any]:
    reading.tell(f"finish {count} {revision} {grace}")
    return reading.hear("result", grace + 30)


def _turns(rounds: int, readers: Sequence[str]) -> list[tuple[int, str]]:
    """Each reader once a round, and each round begun by the next one."""
    return [
        (round_, readers[(round_ + turn) % len(readers)])
        for round_ in range(rounds)
        for turn in range(len(readers))
    ]


def _progress(one: Measurement) -> None:
    said = one.failed or (
        f"{one.seen} of {one.sent}, {one.cpu_us:.1f} µs, p99 {one.p99_ms:.2f} ms, "
        f"generator {one.rate:.0f}/s at {one.load_cpu_us:.0f} µs"
    )
    print(f"{one.scenario} round {one.round} {one.reader}: {said}", file=sys.stderr, flush=True)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--etcd", metavar="PATH", help="the etcd to run (default: of PATH, else the wheel's)")
    add("--scenario", action="append", choices=SCENARIOS, help="default: all; may be repeated")
    add("--reader", action="append", choices=READERS, help="default: all; may be repeated")
    add("--runs", type=int, default=3, help="rounds (default: %(default)s)")
    add("--seconds", type=float, default=10, help="of load a round (default: %(default)s)")
    add("--grace", type=float, default=15, help="seconds to catch up (default: %(default)s)")
    add("--keys", type=int, default=2_000, help="different keys (default: %(default)s)")
    add("--batch-rate", type=float, default=0, help="puts/s of batch (default: as many as go)")
    add("--in-flight", type=int, default=4, help="transactions of batch (default: %(default)s)")
    add("--objects", type=int, default=100_000, help="of the list (default: %(default)s)")
    add("--page", type=int, default=2_000, help="of the bare list (default: %(default)s)")
    add("--data", type=Path, default=ROOT / "tests/data/taskaction_history.jsonl")
    add("--directory", type=Path, help="for etcd's data (default: the system's for such)")
    add("--json", type=Path, help="write every measurement to this file")
    options = parser.parse_args()
    options.scenarios = options.scenario or list(SCENARIOS)
    options.readers = options.reader or list(READERS)
    options.data = options.data.resolve()
    if not options.data.is_file():
        parser.error(f"no captured TaskActions at {options.data}")
    return options


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(143)


def main() -> None:
    """Measure, and print Markdown."""
    options = _options()
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as directory:
        bench = Bench(options, Path(directory))
        print(bench.head(), flush=True)
        for name in options.scenarios:
            print("\n" + bench.run(name), flush=True)
    if options.json:
        options.json.write_text(
            json.dumps([asdict(one) for one in bench.measurements], indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
