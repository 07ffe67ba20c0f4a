"""The complete program over three machines, for ``scripts/prove --machines``.

``python -m tests.sdk.fleet_main [--branches N] [--width N] [--on-ray N] [--results FILE]``
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import trio

from etcd_actions import __version__
from tests.schedules.sections import put_section
from tests.sdk.fleet import Outcome, Program, open_fleet
from tests.sdk.fleet_chaos import Ray, run_program
from tests.support.namespaces import why_not
from tests.support.ray_cluster import open_ray_cluster

ROOT = Path(__file__).parents[2]
HEADING = "## A program over three machines"


def markdown(outcome: Outcome) -> str:
    """The part of docs/proof.md about the program."""
    program = outcome.program
    branches = f"a root, {program.branches} branches of {program.width} tasks each"
    machines = "starts on each machine"
    if program.on_ray:
        machines += ", and on Ray"
        branches += f", and one of {program.on_ray} jobs on a Ray cluster of a head and two nodes"
    lost = ", ".join(f"{times} `{code}`" for code, times in outcome.lost.most_common())
    faults = [each.replace(" s: ", " s | ", 1) for each in outcome.faults]
    return "\n".join(
        [
            HEADING,
            "",
            f"{program.tasks} tasks in {outcome.seconds:.0f} s, {len(outcome.problems)} problems.",
            "",
            "| | |",
            "| --- | --- |",
            f"| date | {datetime.datetime.now(datetime.UTC):%Y-%m-%d} |",
            f"| etcd-actions | {__version__} |",
            f"| etcd | {outcome.etcd}, three members |",
            f"| program | {branches} |",
            f"| attempts | {outcome.attempts} |",
            f"| lost attempts, each followed by the next one | {lost or 'none'} |",
            f"| {machines} | {', '.join(map(str, outcome.by_machine))} |",
            "",
            "| after | fault |",
            "| ---: | --- |",
            *(f"| {each} |" for each in faults),
            "",
            "| what the processes logged, from warnings on | times |",
            "| --- | ---: |",
            *(f"| {name} | {times} |" for name, times in sorted(outcome.logged.items())),
            "",
        ]
    )


def _python(script: str) -> Path:
    """The interpreter of an environment, which a script makes if it is missing."""
    command = [ROOT / "scripts" / script]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Path(made.stdout.strip())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--branches", type=int, default=40)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--on-ray", type=int, default=38, help="the jobs for Ray; 0 needs no Ray")
    parser.add_argument("--results", type=Path, help="a file of Markdown to write")
    parser.add_argument("--directory", type=Path, help="an empty directory to keep")
    arguments = parser.parse_args()
    if reason := why_not():
        print(f"scripts/prove: {reason}", file=sys.stderr)
        return 1
    program = Program(arguments.branches, arguments.width, arguments.on_ray)
    with ExitStack() as stack:
        directory = arguments.directory
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fleet = stack.enter_context(open_fleet(directory, _python("_sdk-venv")))
        ray = None
        if program.on_ray:
            python = _python("_ray-venv")
            ray = Ray(stack.enter_context(open_ray_cluster(python)), python)
        outcome = trio.run(run_program, fleet, program, ray)
    print(outcome, flush=True)
    if arguments.results is not None:
        put_section(arguments.results, HEADING, markdown(outcome))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
