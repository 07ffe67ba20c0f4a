"""A report that is looked at when the task is over."""

import json

import flyte
import flyte.report
from hello import connect

env = flyte.TaskEnvironment(name="report")


@env.task(report=True)
async def main() -> int:
    await flyte.report.replace.aio("<h1>All is well</h1>")
    await flyte.report.flush.aio()
    return 1


if __name__ == "__main__":
    connect()
    run = flyte.run(main)
    run.wait(quiet=True)
    print(json.dumps({"report": "All is well" in run.get_report()}))
