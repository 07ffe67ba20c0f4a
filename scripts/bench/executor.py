"""What the local executor costs: tasks a second, and the processor time of a task.

    .venv/bin/python -m scripts.bench.executor --python SDK/bin/python [--tasks 40]

A parent that calls one task after the other, and one that calls all at once; started by the fork
server, and by exec.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from etcd_actions.executor.places import AttemptPlace
from etcd_actions.testing import EtcdProcess
from scripts.bench.service import free_port

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


def measure(etcd: str, python: Path, directory: Path, task: str, count: int, fork: bool) -> None:
    """Run one, and print a row."""
    log = (directory / "log").open("ab")
    service = subprocess.Popen(
        [
            sys.executable, "-m", "etcd_actions", "run", "--endpoints", etcd,
            "--listen", f"127.0.0.1:{free_port()}", "--monitoring-listen", "none",
            "--executor", "local", "--python", str(python),
            f"--executor-fork-server={str(fork).lower()}",
            "--executor-state-dir", str(directory / f"state-{fork}"), "--log-format", "json",
        ],
        stderr=log,
    )  # fmt: skip
    try:
        time.sleep(4)
        before = _of_children(directory)
        own = sum(psutil.Process(service.pid).cpu_times()[:2])
        submitted = subprocess.run(
            [
                sys.executable, "-m", "etcd_actions", "submit", f"{directory / 'bench.py'}:{task}",
                "--endpoints", etcd, "--python", str(python), "--input", f"count={count}",
                "--output-base", str(directory / f"{task}-{fork}"), "--output", "jsonl",
                "--log-level", "error",
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        rows = [json.loads(line) for line in submitted.stdout.splitlines()]
        after = _of_children(directory)
        (end,) = [
            row["seconds"]
            for row in rows
            if row.get("action") == "a0" and row["phase"] == "SUCCEEDED"
        ]
        (start,) = [
            row["seconds"]
            for row in rows
            if row.get("action") == "a0" and row["phase"] == "RUNNING"
        ]
        own = sum(psutil.Process(service.pid).cpu_times()[:2]) - own
        took = end - start
        how = "fork server" if fork else "exec"
        cpu = f"{(after - before) / count:.2f}" if fork else "-"
        print(
            f"| {task} | {how} | {count / took:.1f} | {1000 * took / count:.0f} | "
            f"{cpu} | {1000 * own / count:.1f} |"
        )
    finally:
        service.terminate()
        service.wait()
        log.close()
        for attempt in directory.glob("state-*/attempts/*/*"):
            place = AttemptPlace.at(attempt)
            place.kill(signal.SIGKILL)


def _of_children(directory: Path) -> float:
    """Seconds of processor time of what the fork servers of a directory have started."""
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
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "bench.py").write_text(PROGRAM)
        (directory / "etcd").mkdir()
        with EtcdProcess(directory / "etcd") as own:
            own.start()
            print(
                "| program | started by | tasks/s | ms a task | CPU s a task, of its process | "
                "CPU ms a task, of the service |"
            )
            print("| --- | --- | ---: | ---: | ---: | ---: |")
            for fork in (True, False):
                for task in ("one_by_one", "at_once"):
                    python = options.python.absolute()
                    measure(own.endpoint, python, directory, task, options.tasks, fork)


if __name__ == "__main__":
    main()
