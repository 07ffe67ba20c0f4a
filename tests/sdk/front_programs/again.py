"""A run that failed is run again."""

import asyncio
import json
import sys
import time
from pathlib import Path

import flyte
import flyte.remote
from hello import connect

env = flyte.TaskEnvironment(name="again")


@env.task
async def stamp(number: int) -> float:
    return time.time() + number


@env.task
async def fragile(flag: str) -> int:
    if not Path(flag).exists():
        raise ValueError("not yet")
    return 1


@env.task
async def main(number: int, flag: str) -> tuple[float, int]:
    first = await stamp(number)
    return first, await fragile(flag)


def stamped(run: flyte.remote.Run) -> float:
    """What the first task of a run gave."""
    name = next(
        each.name
        for each in flyte.remote.Action.listall(for_run_name=run.name)
        if each.task_name == "again.stamp"
    )
    details = flyte.remote.ActionDetails.get(run_name=run.name, name=name)
    outputs = asyncio.run(details.outputs())
    return float(outputs[0])


def failed(flag: Path) -> tuple[flyte.remote.Run, bool]:
    """A run that has failed, and whether it says why."""
    run = flyte.run(main, number=3, flag=str(flag))
    run.wait(quiet=True)
    failure = run.first_failure()
    return run, failure is not None and "not yet" in failure.error_message


if __name__ == "__main__":
    connect()
    flag = Path(sys.argv[3])
    run, why = failed(flag)
    flag.touch()
    again = flyte.rerun(run.name)
    again.wait(quiet=True)
    other = flyte.rerun(run.name, number=1000)
    other.wait(quiet=True)
    print(
        json.dumps(
            {
                "failed": why,
                "again": again.outputs()[1] == 1 and again.outputs()[0] != stamped(run),
                "other": 900 < other.outputs()[0] - again.outputs()[0] < 1200,
            }
        )
    )
