"""A task that fails twice, and is to be put off before each retry."""

import os
import time
from datetime import timedelta
from pathlib import Path

import flyte

env = flyte.TaskEnvironment(name="retries")


@env.task(
    retries=flyte.RetryStrategy(
        count=2,
        backoff=flyte.Backoff(base=timedelta(seconds=2), factor=2.0, cap=timedelta(seconds=60)),
    )
)
async def flaky(directory: str) -> int:
    attempt = int(os.environ["FLYTE_ATTEMPT_NUMBER"])
    (Path(directory) / f"began-{attempt}").write_text(str(time.time()))
    if attempt < 2:
        raise ValueError("not yet")
    return attempt


@env.task
async def main(directory: str) -> int:
    return await flaky(directory)
