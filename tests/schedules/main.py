"""One schedule in a process of its own: ``python -m tests.schedules.main --seed N``.

Prints what became of it as one line of JSON; ends with 1 where something was violated.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import traceback
from pathlib import Path

import msgspec
import structlog
import trio

from etcd_actions.testing import EtcdBinary
from etcd_actions.testing.etcd_process import best_binary
from tests.schedules import world
from tests.schedules.plan import Plan, draw

LONGEST = 240.0
"""Seconds after which a schedule is cut off, as a violation."""


def binaries() -> list[EtcdBinary]:
    """The etcds that may be killed: of ``ETCD_ACTIONS_TEST_BINARIES``, and the one on PATH."""
    named = os.environ.get("ETCD_ACTIONS_TEST_BINARIES", "").split(os.pathsep)
    found = [EtcdBinary.of(Path(each) / "etcd") for each in named if each]
    if best_binary().may_be_killed:
        found.append(best_binary())
    return found


def run_plan(plan: Plan, directory: Path) -> dict[str, object]:
    """Run one plan on the etcd that its seed says; never raises."""
    etcds = binaries()
    if not etcds:
        raise RuntimeError("there is no etcd that may be killed: put 3.4.22 or newer on PATH")
    binary = etcds[plan.seed % len(etcds)]

    async def bounded() -> world.Outcome:
        with trio.fail_after(LONGEST):
            return await world.run(plan, directory, binary)

    try:
        outcome = trio.run(bounded)
    except BaseException:
        text = traceback.format_exc()
        (directory / "failure.txt").write_text(text)
        return {
            "seed": plan.seed,
            "version": str(binary.version),
            "violations": [f"broken: the schedule itself failed: {text[-1500:]}"],
        }
    result: dict[str, object] = msgspec.json.decode(outcome.as_json())
    (directory / "result.json").write_bytes(outcome.as_json())
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int)
    what.add_argument("--replay", type=Path, help="a plan.txt, perhaps changed by hand")
    parser.add_argument("--directory", type=Path, help="where logs and data go, and stay")
    parser.add_argument("--show", action="store_true", help="print the plan only")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        plan = Plan.parse(arguments.replay.read_text())
    else:
        plan = draw(arguments.seed)
    if arguments.show:
        print(plan, end="")
        return
    structlog.configure(processors=[_drop])
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="schedule-"))
    directory.mkdir(parents=True, exist_ok=True)
    result = run_plan(plan, directory)
    print(msgspec.json.encode({**result, "directory": str(directory)}).decode(), flush=True)
    # Threads that read a stream may hang.
    os._exit(1 if result["violations"] else 0)


def _drop(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent


if __name__ == "__main__":
    main()
