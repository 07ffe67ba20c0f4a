"""Measures the local executor: tasks a second, and the processor time of a task.

    .venv/bin/python -m scripts.bench.executor --python SDK/bin/python [--tasks 40]

A parent that calls one task after the other, and one that calls all at once; started by the fork
server, and by exec. The row of the table is the first of these.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from scripts.bench.processes import (
    ROOT,
    ChildFailed,
    command_cost,
    etcd_binary,
    etcd_server,
    last_lines,
    service,
)
from scripts.bench.results import OURS, Figures
from scripts.bench.setting import Setting, Skipped, Take

SDK = ROOT / ".venv-sdk/bin/python"
_TASKS = 40
_SUBMIT_SECONDS = 180

PROGRAM = """
import asyncio
import flyte

env = flyte.TaskEnvironment(name="bench")


@env.task
async def small(number: int) -> int:
    return number


@env.task
async def one_by_one(count: int) -> int:
    return sum([await small(number) for number in range(count)])


@env.task
async def at_once(count: int) -> int:
    return sum(await asyncio.gather(*(small(number) for number in range(count))))
"""


@contextmanager
def sequential(setting: Setting) -> Iterator[Take]:
    """A row: tasks one after the other, started by the fork server; and the SDK's import.

    Raises:
        Skipped: There is no Python with Flyte's SDK.
    """
    if not SDK.exists():
        raise Skipped("no .venv-sdk: make it by scripts/_sdk-venv")
    with tempfile.TemporaryDirectory(dir=setting.directory) as name:
        directory = Path(name)
        count = setting.scaled(_TASKS)
        (directory / "bench.py").write_text(PROGRAM)
        with etcd_server(setting.etcd, directory) as server:

            def take(side: str) -> Figures:
                if side == OURS:
                    return measure(server.address, SDK, directory, "one_by_one", count, fork=True)
                cpu, _ = command_cost([str(SDK), "-c", "import flyte"], directory / "import.log")
                return {"cpu_s": cpu / 1000}

            yield take


def measure(etcd: str, python: Path, directory: Path, task: str, count: int, fork: bool) -> Figures:
    """Run a program with so many tasks.

    Raises:
        ChildFailed: It did not succeed.
    """
    log = directory / "service.log"
    settings = [
        "--executor", "local", "--python", str(python),
        f"--executor-fork-server={str(fork).lower()}",
        "--executor-state-dir", str(directory / f"state-{fork}"),
    ]  # fmt: skip
    try:
        with service(etcd, log, *settings) as (_, process):
            # One before, so that the fork server has imported what it shares.
            _submit(etcd, python, directory, task, 1, fork)
            before = _of_children(directory)
            own = sum(process.cpu_times()[:2])
            took = _submit(etcd, python, directory, task, count, fork)
            figures = {
                "rate": count / took,
                "ms": 1000 * took / count,
                "service_cpu_ms": 1000 * (sum(process.cpu_times()[:2]) - own) / count,
            }
            if fork:
                # Of the tasks and of their parent, which is a task itself.
                figures["cpu_s"] = (_of_children(directory) - before) / (count + 1)
            return figures
    finally:
        for attempt in directory.glob("state-*/attempts/*/*"):
            AttemptDirectory.at(attempt).kill(signal.SIGKILL)


def _submit(etcd: str, python: Path, directory: Path, task: str, count: int, fork: bool) -> float:
    """Run the program; seconds from the start of its parent to its end."""
    log = directory / "submit.log"
    with log.open("wb") as errors:
        done = subprocess.run(
            [
                sys.executable, "-m", "etcd_actions", "submit", f"{directory / 'bench.py'}:{task}",
                "--endpoints", etcd, "--python", str(python), "--input", f"count={count}",
                "--output-base", str(directory / f"{task}-{fork}"), "--output", "jsonl",
                "--log-level", "error",
            ],
            check=False, stdout=subprocess.PIPE, stderr=errors, text=True,
            timeout=_SUBMIT_SECONDS,
        )  # fmt: skip
    if done.returncode:
        print(last_lines(directory / "service.log"), file=sys.stderr)
        raise ChildFailed(f"submit ends with {done.returncode}", log)
    at = {
        row["phase"]: row["seconds"]
        for row in map(json.loads, done.stdout.splitlines())
        if row.get("action") == "a0"
    }
    # A state may be merged into the next one, as RUNNING of a parent that is fast.
    began = at.get("RUNNING", min(at.values()))
    return float(at["SUCCEEDED"] - began)


def _of_children(directory: Path) -> float:
    """Seconds of processor time of the processes that a directory's fork servers started."""
    spent = 0.0
    for process in psutil.process_iter():
        try:
            if not Path(f"/proc/{process.pid}/fd/2").readlink().is_relative_to(directory):
                continue
            if any(part.endswith("fork_server_main.py") for part in process.cmdline()):
                times = process.cpu_times()
                spent += times.children_user + times.children_system
        except (psutil.Error, OSError):
            continue
    return spent


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", type=Path, default=SDK)
    parser.add_argument("--tasks", type=int, default=_TASKS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "bench.py").write_text(PROGRAM)
        with etcd_server(etcd_binary(None), directory) as own:
            print(
                "| program | started by | tasks/s | ms a task | CPU s a task, of its process | "
                "CPU ms a task, of the service |"
            )
            print("| --- | --- | ---: | ---: | ---: | ---: |")
            for fork in (True, False):
                for task in ("one_by_one", "at_once"):
                    one = measure(
                        own.address, options.python.absolute(), directory, task, options.tasks, fork
                    )
                    cpu = f"{one['cpu_s']:.2f}" if fork else "-"
                    print(
                        f"| {task} | {'fork server' if fork else 'exec'} | {one['rate']:.1f} | "
                        f"{one['ms']:.0f} | {cpu} | {one['service_cpu_ms']:.1f} |"
                    )


if __name__ == "__main__":
    main()
