"""What every release of the SDK can: run, wait, outputs, inputs, logs, deploy, abort."""

import asyncio
import json
import sys
import time
from pathlib import Path

import flyte
import flyte.remote

env = flyte.TaskEnvironment(name="essential")


@env.task
async def double(number: int) -> int:
    return 2 * number


@env.task
async def main(count: int = 3) -> str:
    print(f"doubling {count} numbers", flush=True)
    return ", ".join([str(await double(each)) for each in range(count)])


@env.task
async def for_ever() -> None:
    await asyncio.sleep(3600)


def aborted() -> str:
    run = flyte.run(for_ever)
    until = time.monotonic() + 60
    while flyte.remote.Run.get(run.name).phase.value != "running" and time.monotonic() < until:
        time.sleep(0.1)
    run.abort()
    run.wait()
    return flyte.remote.Run.get(run.name).phase.value


if __name__ == "__main__":
    endpoint, project = sys.argv[1:3]
    flyte.init(
        endpoint=endpoint,
        insecure=True,
        project=project,
        domain="development",
        root_dir=Path(__file__).parent,
        image_builder="remote",
    )
    run = flyte.run(main, count=4)
    run.wait()
    run.show_logs(raw=True)
    flyte.deploy(env, version="v1")
    deployed = flyte.run(flyte.remote.Task.get("essential.main", version="v1"), count=2)
    deployed.wait()
    told = {
        "outputs": run.outputs()[0],
        "inputs": dict(run.inputs()),
        "actions": len(list(flyte.remote.Action.listall(for_run_name=run.name))),
        "deployed": deployed.outputs()[0],
        "aborted": aborted(),
    }
    print(json.dumps(told))
