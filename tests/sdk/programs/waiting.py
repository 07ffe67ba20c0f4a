"""Tasks with retries that wait for a file of the test, so that something is killed meanwhile."""

import asyncio
import os
from pathlib import Path

import flyte

env = flyte.TaskEnvironment(name="waiting")


def note(directory: str) -> None:
    """Leave a line for this start, whichever process it is."""
    name, attempt = os.environ["ACTION_NAME"], os.environ["FLYTE_ATTEMPT_NUMBER"]
    descriptor = os.open(Path(directory) / "starts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{name} {attempt}\n".encode())
    os.close(descriptor)


@env.task(retries=3)
async def leaf(number: int, directory: str) -> int:
    note(directory)
    while not (Path(directory) / "go").exists():  # noqa: ASYNC110 - a file rings no bell
        await asyncio.sleep(0.1)
    return 2 * number


@env.task(retries=3)
async def main(width: int, directory: str) -> int:
    note(directory)
    return sum(await asyncio.gather(*(leaf(each, directory) for each in range(width))))
