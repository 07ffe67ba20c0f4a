"""Many actions at once, in groups."""

import asyncio
import json

import flyte
from hello import connect

env = flyte.TaskEnvironment(name="fan_out")


@env.task
async def square(number: int) -> int:
    return number * number


@env.task
async def main(count: int) -> int:
    with flyte.group("squares"):
        return sum(await asyncio.gather(*(square(each) for each in range(count))))


if __name__ == "__main__":
    import sys

    count = int(sys.argv[3])
    connect()
    run = flyte.run(main, count=count)
    run.wait(quiet=True)
    actions = list(flyte.remote.Action.listall(for_run_name=run.name))
    print(
        json.dumps(
            {
                "sum": run.outputs()[0],
                "actions": len(actions),
                "phases": sorted({str(each.phase) for each in actions}),
                "groups": sorted({each.pb2.metadata.group for each in actions}),
            }
        )
    )
