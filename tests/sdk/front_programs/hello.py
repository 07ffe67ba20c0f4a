"""A run, its outputs, and what the SDK says of it."""

import json
import sys
from pathlib import Path
from typing import Literal

import flyte

env = flyte.TaskEnvironment(name="hello")


@env.task
async def double(number: int) -> int:
    return 2 * number


@env.task
async def main(count: int = 3) -> str:
    print(f"doubling {count} numbers")
    return ", ".join([str(await double(each)) for each in range(count)])


def connect(
    root: Path = Path(__file__).parent, image_builder: Literal["local", "remote"] = "local"
) -> None:
    endpoint, project = sys.argv[1:3]
    flyte.init(
        endpoint=endpoint,
        insecure=True,
        project=project,
        domain="development",
        root_dir=root,
        image_builder=image_builder,
    )


if __name__ == "__main__":
    connect()
    run = flyte.run(main, count=4)
    run.wait(quiet=True)
    details = run.details()
    told = {
        "outputs": list(run.outputs()),
        "inputs": dict(run.inputs()),
        "phase": str(run.phase),
        "task": details.task_name,
        "has_url": run.name in run.url,
        "failure": run.first_failure() is None,
        "done": details.done(),
        "attempts": details.action_details.attempts,
    }
    run.raise_for_status()
    print(json.dumps(told))
