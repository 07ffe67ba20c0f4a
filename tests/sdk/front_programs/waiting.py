"""A run that lasts until somebody outside says so, and a client that waits for it."""

import asyncio
import json
import sys
from pathlib import Path

import flyte
from hello import connect

env = flyte.TaskEnvironment(name="waiting")


@env.task
async def hold(folder: str) -> str:
    (Path(folder) / "holds").touch()
    while not (Path(folder) / "go").exists():  # noqa: ASYNC110 (a file tells nobody)
        await asyncio.sleep(0.05)
    return "held"


@env.task
async def main(folder: str) -> str:
    return f"{await hold(folder)} and done"


if __name__ == "__main__":
    connect()
    run = flyte.run(main, folder=sys.argv[3])
    run.wait(quiet=True)
    print(json.dumps({"outputs": list(run.outputs()), "phase": run.phase.value}))
