"""A program with a trace of its own, whose task calls another one."""

import json
import os
import sys

import flyte
from hello import connect
from opentelemetry import context, propagate

env = flyte.TaskEnvironment(name="traced")


@env.task
async def inner(text: str) -> str:
    return f"{text} {os.environ.get('TRACEPARENT', '')}"


@env.task
async def main(text: str) -> str:
    return await inner(text)


if __name__ == "__main__":
    connect()
    context.attach(propagate.extract({"traceparent": sys.argv[3]}))
    run = flyte.run(main, text="in")
    run.wait(quiet=True)
    print(json.dumps({"run": run.name, "text": run.outputs()[0]}))
