"""A run that is run again, and one that is recovered."""

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


if __name__ == "__main__":
    connect()
    flag = Path(sys.argv[3])
    run = flyte.run(main, number=3, flag=str(flag))
    run.wait(quiet=True)
    failure = run.first_failure()
    stamped = [
        each
        for each in flyte.remote.Action.listall(for_run_name=run.name)
        if each.task_name == "again.stamp"
    ]
    before = flyte.remote.ActionDetails.get(run_name=run.name, name=stamped[0].name).outputs()[0]
    flag.touch()
    recovered = flyte.rerun(run.name, recover=True)
    recovered.wait(quiet=True)
    again = flyte.rerun(run.name)
    again.wait(quiet=True)
    print(
        json.dumps(
            {
                "failed": failure is not None and "not yet" in failure.error_message,
                "recovered": recovered.outputs()[0] == before,
                "again": again.outputs()[0] != before,
            }
        )
    )
