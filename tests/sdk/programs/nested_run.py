"""A task that starts a run of its own."""

import flyte

env = flyte.TaskEnvironment(name="nested_run")


@env.task
async def inner(text: str) -> str:
    return text[::-1]


@env.task
async def child(text: str) -> str:
    return text.upper()


@env.task
async def main() -> str:
    # A call of a task makes an action of this run, which is allowed.
    assert await child("abc") == "ABC"
    run = await flyte.run.aio(inner, text="abc")
    return run.name
