"""A task that is deployed, found, and run by its name."""

import json

import flyte
import flyte.remote
from hello import connect

env = flyte.TaskEnvironment(name="deployed")


@env.task
async def add(left: int, right: int = 5) -> int:
    return left + right


@env.task
async def main(left: int) -> int:
    task = flyte.remote.Task.get("deployed.add", auto_version="latest")
    return await task(left=left)


if __name__ == "__main__":
    connect()
    flyte.deploy(env, version="v1")
    flyte.deploy(env, version="v1")
    flyte.deploy(env, version="v2")
    task = flyte.remote.Task.get("deployed.add", version="v1")
    run = flyte.run(task, left=1)
    run.wait(quiet=True)
    within = flyte.run(main, left=10)
    within.wait(quiet=True)
    listed = flyte.remote.Task.listall(by_task_name="deployed.add")
    print(
        json.dumps(
            {
                "sum": run.outputs()[0],
                "within": within.outputs()[0],
                "listed": [each.version for each in listed],
                "latest": flyte.remote.Task.get("deployed.add", auto_version="latest")
                .fetch()
                .version,
            }
        )
    )
