"""Many nested tasks, some of them for Ray, each of which notes its start.

A task that takes a while is running when something is killed.
"""

import asyncio
import os
from pathlib import Path

import flyte

env = flyte.TaskEnvironment(name="fleet")
ray = flyte.TaskEnvironment(name="ray", queue="ray")


def note(directory: str) -> None:
    """Leave a line for this start, with the network namespace that it is in."""
    name, attempt = os.environ["ACTION_NAME"], os.environ["FLYTE_ATTEMPT_NUMBER"]
    machine = os.readlink("/proc/self/ns/net")  # noqa: PTH115 - no path
    descriptor = os.open(Path(directory) / "starts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{name} {attempt} {machine}\n".encode())
    os.close(descriptor)


@flyte.trace
async def double(number: int) -> int:
    return 2 * number


@env.task
async def leaf(number: int, seconds: float, directory: str) -> int:
    note(directory)
    await asyncio.sleep(seconds)
    return await double(number)


# A head that is killed takes an attempt with it, which counts as the task's own failure.
@ray.task(retries=3)
async def job(number: int, seconds: float, directory: str) -> int:
    note(directory)
    await asyncio.sleep(seconds)
    return 2 * number


@env.task
async def branch(number: int, width: int, seconds: float, directory: str) -> int:
    note(directory)
    first = number * width
    leaves = [leaf(each, seconds, directory) for each in range(first, first + width)]
    return sum(await asyncio.gather(*leaves))


@env.task
async def jobs(first: int, count: int, seconds: float, directory: str) -> int:
    note(directory)
    below = [job(each, seconds, directory) for each in range(first, first + count)]
    return sum(await asyncio.gather(*below))


@env.task
async def tree(branches: int, width: int, on_ray: int, seconds: float, directory: str) -> int:
    note(directory)
    below = [branch(each, width, seconds, directory) for each in range(branches)]
    if on_ray:
        below.append(jobs(branches * width, on_ray, seconds, directory))
    return sum(await asyncio.gather(*below))
