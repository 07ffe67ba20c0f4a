"""A run that is aborted in the middle."""

import asyncio
import json
import time

import flyte
import flyte.errors
import flyte.remote
from hello import connect

env = flyte.TaskEnvironment(name="abort")


@env.task
async def for_ever() -> None:
    await asyncio.sleep(3600)


@env.task
async def main() -> None:
    await for_ever()


def children(run: str) -> list[flyte.remote.Action]:
    found = flyte.remote.Action.listall(for_run_name=run, in_phase=("running",))
    return [each for each in found if each.name != "a0"]


if __name__ == "__main__":
    connect()
    run = flyte.run(main)
    until = time.monotonic() + 60
    while not children(run.name) and time.monotonic() < until:
        time.sleep(0.1)
    run.abort(reason="enough")
    run.wait(quiet=True)
    details = run.details()
    info = details.action_details.abort_info
    try:
        run.raise_for_status()
    except Exception as error:
        raised = type(error).__name__
    else:
        raised = ""
    phases = {str(each.phase) for each in flyte.remote.Action.listall(for_run_name=run.name)}
    print(
        json.dumps(
            {
                "phase": str(run.sync().phase),
                "reason": info.reason if info else None,
                "raised": bool(raised),
                "phases": sorted(phases),
            }
        )
    )
