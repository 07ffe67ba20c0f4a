"""Tasks of two pools, each of which calls one of the other; a file of the test lets them end."""

import asyncio
import os
from pathlib import Path

import flyte

here = flyte.TaskEnvironment(name="here")
there = flyte.TaskEnvironment(name="there", queue="ray")


def note(directory: str) -> None:
    """Leave a line for this start, and where it is."""
    name, attempt = os.environ["ACTION_NAME"], os.environ["FLYTE_ATTEMPT_NUMBER"]
    descriptor = os.open(Path(directory) / "starts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{name} {attempt}\n".encode())
    os.close(descriptor)


def place() -> str:
    """Which kind of worker runs this: Ray tells each job the address of its cluster."""
    return "ray" if "RAY_ADDRESS" in os.environ else "local"


@here.task
async def last(directory: str) -> str:
    note(directory)
    return f"last:{place()}"


@there.task
async def middle(directory: str) -> str:
    note(directory)
    while not (Path(directory) / "go").exists():  # noqa: ASYNC110 - a file rings no bell
        await asyncio.sleep(0.1)
    return f"middle:{place()} {await last(directory)}"


@here.task
async def main(directory: str) -> str:
    note(directory)
    return f"main:{place()} {await middle(directory)}"
