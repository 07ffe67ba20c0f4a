"""A task that starts a run of its own."""

import json

import flyte
import flyte.remote
from hello import connect

env = flyte.TaskEnvironment(name="nested")


@env.task
async def inner(text: str) -> str:
    return text[::-1]


@env.task
async def main(text: str) -> tuple[str, str]:
    run = await flyte.run.aio(inner, text=text)
    await run.wait.aio(quiet=True)
    return run.name, (await run.outputs.aio())[0]


if __name__ == "__main__":
    connect()
    run = flyte.run(main, text="abc")
    run.wait(quiet=True)
    name, text = run.outputs()
    runs = [each.name for each in flyte.remote.Run.listall(limit=10)]
    print(json.dumps({"text": text, "own": name != run.name, "listed": name in runs}))
