"""A task that needs a package of its image, a package of the executor, and a secret."""

import importlib
import os

import flyte

environment = flyte.TaskEnvironment(
    name="packaged",
    image=flyte.Image.from_base(os.environ.get("IMAGE", "none")),
    secrets=flyte.Secret(key="api-key", as_env_var="API_KEY"),
)


@environment.task
async def value() -> str:
    made_here = importlib.import_module("made_here")
    return f"{made_here.VALUE} {len(os.environ['API_KEY'])} {os.environ['FROM_IMAGE']}"
