"""Prints the templates that the SDK makes of some tasks, a JSON object of base64."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path

import flyte
from flyte._internal.runtime.task_serde import translate_task_to_wire
from flyte.extras import ContainerTask
from flyte.models import SerializationContext

env = flyte.TaskEnvironment(name="env")


@env.task
async def plain() -> None:
    """A Python task."""


@env.task(
    retries=flyte.RetryStrategy(
        count=5,
        backoff=flyte.Backoff(base=timedelta(seconds=10), factor=2.0, cap=timedelta(seconds=60)),
    ),
    timeout=flyte.Timeout(
        max_runtime=timedelta(seconds=1.5),
        max_queued_time=timedelta(seconds=20),
        deadline=timedelta(hours=1),
    ),
)
async def limited() -> None:
    """One with all limits."""


container = ContainerTask(
    name="container", image="alpine:3", command=["/bin/sh", "-c", "echo x"], outputs={"x": str}
)
disguised = ContainerTask(
    name="disguised", image="alpine:3", command=["a0", "--outputs-path", "/var/outputs"]
)
flyte.TaskEnvironment.from_task("containers", container, disguised)

context = SerializationContext(
    version="1", project="p", domain="d", org="o", root_dir=Path(__file__).parent
)
print(
    json.dumps(
        {
            name: base64.b64encode(
                translate_task_to_wire(task, context).task_template.SerializeToString()
            ).decode()
            for name, task in (
                ("plain", plain),
                ("limited", limited),
                ("container", container),
                ("disguised", disguised),
            )
        }
    )
)
