"""A result that is used again, by another run."""

import json
import time

import flyte
from hello import connect

env = flyte.TaskEnvironment(name="cached")


@env.task(cache=flyte.Cache(behavior="override", version_override="1"))
async def now(number: int) -> float:
    return time.time() + number


@env.task
async def main(number: int) -> float:
    return await now(number)


if __name__ == "__main__":
    connect()
    results = []
    for overwrite in (False, False, True):
        run = flyte.with_runcontext(overwrite_cache=overwrite).run(main, number=7)
        run.wait(quiet=True)
        results.append(run.outputs()[0])
    print(json.dumps({"hit": results[0] == results[1], "overwritten": results[1] != results[2]}))
