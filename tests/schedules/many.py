"""Many schedules, some side by side, each in a process of its own.

``python -m tests.schedules.many --first N --count M [--jobs J] [--results FILE]``: prints a line
for each, keeps the logs of those with a violation, and says how to repeat it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.schedules.main import LONGEST
from tests.schedules.results import HEADING, Result, Results
from tests.schedules.sections import put_section

ROOT = Path(__file__).parents[2]
_CUT_OFF = LONGEST + 60


def run_seed(seed: int, directory: Path) -> Result:
    """Run one schedule; its directory stays only where something was violated."""
    return _run(["--seed", str(seed)], seed, directory / str(seed))


def run_plan(plan: Path, directory: Path) -> Result:
    """Run a plan that is in a file, likewise."""
    return _run(["--replay", str(plan)], -1, directory / plan.stem)


def _run(what: list[str], seed: int, own: Path) -> Result:
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.schedules.main"]
    with (own / "stderr.txt").open("wb") as err:
        process = subprocess.Popen(
            [*command, *what, "--directory", str(own)],
            stdout=subprocess.PIPE,
            stderr=err,
            cwd=ROOT,
            # What it started ends with it, however it ends.
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=_CUT_OFF)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    result = _result(seed, out, own)
    if result.violations:
        (own / "violations.txt").write_text("\n".join(result.violations) + "\n")
    else:
        shutil.rmtree(own)
    result.wall = time.monotonic() - began
    return result


def _result(seed: int, out: bytes, directory: Path) -> Result:
    try:
        told: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        tail = (directory / "stderr.txt").read_text(errors="replace")[-1500:]
        return Result(seed, "", [f"broken: it ended without a result: {tail}"])
    return Result.of(told)


def run_seeds(seeds: Iterable[int], directory: Path, jobs: int) -> Iterator[Result]:
    """Run schedules, so many side by side; in the order in which they end."""
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(run_seed, seed, directory) for seed in seeds]):
            yield done.result()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "schedules")
    parser.add_argument("--results", type=Path, help="a file of Markdown to write")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.count)
    results = Results(arguments.jobs)
    for result in run_seeds(seeds, arguments.directory, arguments.jobs):
        results.add(result)
        print(result, flush=True)
        for violation in result.violations:
            print(f"  {violation[:700]}", flush=True)
        if result.violations:
            kept = arguments.directory / str(result.seed)
            print(f"  repeat: scripts/prove --seed {result.seed}    logs: {kept}", flush=True)
        if arguments.results is not None:
            put_section(arguments.results, HEADING, results.markdown())
    print(results.summary(), flush=True)
    return 1 if results.violated else 0


if __name__ == "__main__":
    sys.exit(main())
