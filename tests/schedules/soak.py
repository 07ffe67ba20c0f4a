"""One process under a steady load for some minutes: nothing that it holds may grow.

``python -m tests.schedules.soak [--minutes M] [--rate N] [--results docs/proof.md]``: a real etcd
that compacts its history, a run service in a process of its own, four readers, and writers that
make so many changes a second: each action is made, runs and ends, is told, marked, kept for a
while and expires. Each second it samples the memory, descriptors and threads of the process, its
trio tasks and the depth of its outbox.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from etcd_actions import __version__, open_etcd
from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd
from etcd_actions.testing import EtcdBinary, EtcdProcess
from tests.cli.command import environment
from tests.schedules.chart import Line, charts
from tests.schedules.main import binaries
from tests.schedules.processes import Process
from tests.schedules.readers import Reader
from tests.schedules.sections import put_section
from tests.support.load import make_action

ROOT = Path(__file__).parents[2]
PREFIX = "/soak/taskactions/"
HEADING = "## Soak"
_KEPT = 20
_EVERY = 1.0
_CHILDREN = 50
_WRITERS = 8
# What a second half may add, by its slope: noise, and what an allocator keeps.
_ALLOWED = {"rss": 8.0, "descriptors": 4.0, "threads": 3.0, "tasks": 10.0, "outbox": 50.0}
_UNITS = {"rss": "MiB", "descriptors": "", "threads": "", "tasks": "", "outbox": "keys"}
_TITLES = {
    "rss": "resident memory",
    "descriptors": "open descriptors",
    "threads": "threads",
    "tasks": "trio tasks",
    "outbox": "keys in the outbox",
    "written": "changes written",
    "keys": "keys below the prefix",
    "lag": "lag of the watch",
}
# Behind by so many seconds of load, at most, on average.
_OUTBOX_SECONDS = 2.0


class Sample(NamedTuple):
    """What was seen at a time, in seconds from the beginning."""

    at: float
    rss: float
    descriptors: float
    threads: float
    tasks: float
    outbox: float
    keys: float
    written: float
    marked: float
    not_accepted: float


class Verdict(NamedTuple):
    """How a measure went over the second half."""

    name: str
    mean: float
    growth: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it did not grow."""
        return self.growth <= self.allowed

    def __str__(self) -> str:
        """Short."""
        sign = "ok" if self.holds else "GROWS"
        return f"{sign}: {self.growth:+.1f} in the second half, at most {self.allowed:g}"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line that fits best."""
    n = len(points)
    if n < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def second_half(samples: Sequence[Sample], name: str) -> list[tuple[float, float]]:
    """The points of a measure from the middle on."""
    middle = samples[-1].at / 2
    return [(each.at, getattr(each, name)) for each in samples if each.at >= middle]


def judge(samples: Sequence[Sample], rate: float) -> list[Verdict]:
    """Whether anything grew; the outbox must be short, and the load what was asked for."""
    verdicts = []
    for name, allowed in _ALLOWED.items():
        points = second_half(samples, name)
        lasted = points[-1][0] - points[0][0]
        mean = sum(value for _, value in points) / len(points)
        verdicts.append(Verdict(name, mean, slope(points) * lasted, allowed))
    outbox = verdicts[-1]
    depth = Verdict("outbox, mean", outbox.mean, outbox.mean, rate * _OUTBOX_SECONDS)
    pace = samples[-1].written / samples[-1].at
    lacking = Verdict("changes a second, and how many are lacking", pace, rate - pace, rate / 20)
    return [*verdicts, depth, lacking]


class Load:
    """Writes at a pace, and counts.

    Attributes:
        written: Number of changes that etcd acknowledged.
    """

    def __init__(self, etcd: Etcd, rate: float) -> None:
        self._etcd = etcd
        self._pause = _WRITERS / rate
        self.written = 0

    async def run(self) -> None:
        """Write for ever."""
        async with trio.open_nursery() as nursery:
            for number in range(_WRITERS):
                nursery.start_soon(self._write, number)

    async def _write(self, number: int) -> None:
        due = trio.current_time()
        for turn in range(10**9):
            run = f"w{number}x{turn // _CHILDREN}"
            action = make_action(PREFIX.encode(), run, f"a{turn % _CHILDREN + 1}", like=turn)
            for state in _to_the_end(action.states):
                # Behind, it catches up: the pace is a mean.
                due += self._pause
                await trio.sleep_until(due)
                await self._etcd.put(action.key, state)
                self.written += 1


def _to_the_end(states: Iterable[bytes]) -> Iterator[bytes]:
    """The states up to the first that is over, held by nobody but us: so it may expire.

    A state behind that would wipe out its mark.
    """
    for state in states:
        tree = json.decode_tree(state)
        tree["metadata"].pop("finalizers", None)
        yield json.encode_tree(tree)
        if json.decode(state).is_terminal:
            return


def sample(process: Process, load: Load, began: float) -> Sample:
    """Look once; it blocks for some milliseconds."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    url = f"http://127.0.0.1:{process.monitoring_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()

    def metric(name: str) -> float:
        return sum(
            float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)
        )

    calls = "etcd_actions_run_service_calls_total{"
    refused = [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith(calls) and 'result="accepted"' not in line
    ]
    return Sample(
        time.monotonic() - began,
        int(fields["VmRSS"].split()[0]) / 1024,
        len(list(Path(f"/proc/{process.pid}/fd").iterdir())),
        int(fields["Threads"]),
        metric("etcd_actions_trio_tasks "),
        metric('etcd_actions_queue_keys{queue="outbox"}'),
        metric("etcd_actions_watch_keys "),
        load.written,
        metric('etcd_actions_marks_total{result="marked"}'),
        sum(refused),
    )


async def soak(seconds: float, rate: float, directory: Path, binary: EtcdBinary) -> list[Sample]:
    """Run for so long, and return what was seen; samples are printed, too."""
    samples: list[Sample] = []
    with ExitStack() as stack:
        flags = ["--auto-compaction-mode=periodic", "--auto-compaction-retention=1m"]
        etcd = stack.enter_context(EtcdProcess(directory, binary=binary.path, flags=flags))
        run_service = stack.enter_context(_Server())
        process = Process(
            0,
            directory,
            [
                f"--endpoints={etcd.endpoint}",
                f"--run-service=http://127.0.0.1:{run_service}",
                f"--prefix={PREFIX}",
                f"--retain-terminal={_KEPT}s",
                "--collect-orphans=false",
                "--log-format=json",
            ],
            module="etcd_actions",
        )
        stack.callback(process.close)
        process.start()
        async with open_etcd(etcd.endpoint) as connection, trio.open_nursery() as nursery:
            with trio.fail_after(60):
                while not await trio.to_thread.run_sync(process.is_ready):  # noqa: ASYNC110
                    await trio.sleep(0.1)
            load = Load(connection, rate)
            nursery.start_soon(load.run)
            for number in range(4):
                nursery.start_soon(_read, process, number)
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                await trio.sleep(_EVERY)
                seen = await trio.to_thread.run_sync(partial(sample, process, load, began))
                samples.append(seen)
                if len(samples) % 10 == 0:
                    print(*(f"{k}={v:.0f}" for k, v in seen._asdict().items()), flush=True)
            nursery.cancel_scope.cancel("it has lasted long enough")
        await process.term()
        problems = process.life.problems()
        if problems:
            raise RuntimeError("\n".join(problems))
    return samples


class _Server:
    """The run service of the tests, as a process."""

    def __enter__(self) -> int:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.run_service_server", "--threads", "64"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


async def _read(process: Process, number: int) -> None:
    """Subscribe to one run after another, as their callers do."""
    via = ("grpc:0", "connect:0")[number % 2]
    for turn in range(10**9):
        reader = Reader(str(number), f"w{number}x{turn}", "a0", via)
        with trio.move_on_after(20):
            await reader.read(process.address)


def report(
    samples: Sequence[Sample], verdicts: Sequence[Verdict], rate: float, version: str
) -> str:
    """The part of docs/proof.md about it."""
    last = samples[-1]
    holds = "nothing grew" if all(each.holds for each in verdicts) else "**something grew**"
    lines = [
        HEADING,
        "",
        f"{last.at:.0f} s at {last.written / last.at:.0f} changes/s (requested: {rate:g}), "
        f"without the marks: {holds}. Recorded actions were kept for {_KEPT} s.",
        "",
        "![memory, descriptors, threads and tasks of the process](soak.svg)",
        "",
        "| | |",
        "| --- | --- |",
        f"| date | {datetime.datetime.now(datetime.UTC):%Y-%m-%d} |",
        f"| etcd-actions | {__version__} |",
        f"| etcd | {version} |",
        f"| changes written | {last.written:.0f} |",
        f"| marks | {last.marked:.0f} |",
        f"| calls that the run service did not accept | {last.not_accepted:.0f} |",
        "",
        "| second half | mean | growth by its slope | allowed | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for each in verdicts:
        title = _TITLES.get(each.name, each.name)
        lines.append(
            f"| {title} | {each.mean:.1f} | {each.growth:+.1f} | {each.allowed:g} | "
            f"{'holds' if each.holds else 'GROWS'} |"
        )
    return "\n".join((*lines, ""))


def picture(samples: Sequence[Sample], verdicts: Sequence[Verdict], rate: float) -> str:
    """The charts, as SVG."""
    by_name = {each.name: each for each in verdicts}
    lines = [
        Line(
            _TITLES[name],
            _UNITS.get(name, ""),
            [(each.at, getattr(each, name)) for each in samples],
            str(by_name[name]) if name in by_name else "",
        )
        for name in ("rss", "descriptors", "threads", "tasks", "outbox", "keys")
    ]
    return charts(lines, f"{samples[-1].at:.0f} s at {rate:g} changes/s")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--results", type=Path, help="the Markdown file that has the results")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    binary = binaries()[0]
    run: Callable[[], list[Sample]] = partial(
        trio.run, soak, arguments.minutes * 60, arguments.rate, directory, binary
    )
    samples = run()
    verdicts = judge(samples, arguments.rate)
    text = report(samples, verdicts, arguments.rate, str(binary.version))
    print(text)
    (directory / "soak.svg").write_text(picture(samples, verdicts, arguments.rate))
    if arguments.results is not None:
        put_section(arguments.results, HEADING, text)
        drawn = arguments.results.with_name("soak.svg")
        drawn.write_text(picture(samples, verdicts, arguments.rate))
    return 0 if all(each.holds for each in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
