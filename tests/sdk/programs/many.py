"""Many small nested tasks, each of which notes that it was started."""

import asyncio
import os
from pathlib import Path

import flyte

env = flyte.TaskEnvironment(name="many")


def note(directory: str) -> None:
    """Leave a line for this start, whichever process it is."""
    name, attempt = os.environ["ACTION_NAME"], os.environ["FLYTE_ATTEMPT_NUMBER"]
    descriptor = os.open(Path(directory) / "starts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{name} {attempt}\n".encode())
    os.close(descriptor)


@flyte.trace
async def double(number: int) -> int:
    return 2 * number


@env.task
async def leaf(number: int, directory: str) -> int:
    note(directory)
    return await double(number)


@env.task
async def branch(number: int, width: int, directory: str) -> int:
    note(directory)
    leaves = [leaf(number * width + each, directory) for each in range(width)]
    return sum(await asyncio.gather(*leaves))


@env.task
async def tree(branches: int, width: int, directory: str) -> int:
    note(directory)
    below = [branch(each, width, directory) for each in range(branches)]
    return await double(sum(await asyncio.gather(*below)))
