"""A task whose code is in several packages."""

import flyte
from library.deep.words import shout

env = flyte.TaskEnvironment(name="packages")


@env.task
async def main(text: str) -> str:
    return shout(text)
