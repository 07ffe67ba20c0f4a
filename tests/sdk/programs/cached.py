"""Tasks whose results are cached, each of which notes that it was started."""

import asyncio
import os
import time
import warnings
from pathlib import Path

import flyte

with warnings.catch_warnings():
    # The SDK's own, where warnings are errors.
    warnings.simplefilter("ignore")
    from flyte.io import File

env = flyte.TaskEnvironment(name="cached")


def note(directory: str, name: str) -> None:
    """Leave a line for this start, whichever process it is."""
    descriptor = os.open(Path(directory) / "starts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{name}\n".encode())
    os.close(descriptor)


@env.task(cache="auto")
async def double(number: int, directory: str) -> int:
    note(directory, f"double-{number}")
    return 2 * number


@env.task(cache=flyte.Cache("override", version_override="1", ignored_inputs=("greeting",)))
async def ignoring(number: int, greeting: str, directory: str) -> str:
    note(directory, f"ignoring-{number}")
    return f"{greeting} {number}"


@env.task(cache=flyte.Cache("override", version_override="1", serialize=True))
async def slow(number: int, directory: str) -> float:
    note(directory, f"slow-{number}")
    await asyncio.sleep(1)
    return time.time()


@env.task(cache=flyte.Cache("override", version_override="1"))
async def write(text: str, directory: str) -> File:
    note(directory, f"write-{text}")
    file = File.new_remote("text")
    async with file.open("wb") as stream:
        await stream.write(text.encode())
    return file


@env.task
async def main(greeting: str, directory: str) -> str:
    doubled, greeted, first, second, file = await asyncio.gather(
        double(4, directory),
        ignoring(5, greeting, directory),
        slow(6, directory),
        slow(6, directory),
        write("seven", directory),
    )
    async with file.open("rb") as stream:
        text = bytes(await stream.read()).decode()
    return f"{doubled}, {greeted}, {first == second}, {text}"


@env.task(cache=flyte.Cache("override", version_override="1"))
async def root(number: int, directory: str) -> int:
    note(directory, f"root-{number}")
    return number + 1
