"""What a run is given besides inputs: labels, annotations, variables, a name."""

import json
import os
import sys

import flyte
import flyte.remote
from hello import connect

env = flyte.TaskEnvironment(name="context")


@env.task(retries=1)
async def main() -> str:
    if os.environ["FLYTE_ATTEMPT_NUMBER"] == "0":
        raise flyte.errors.RuntimeSystemError("Weather", "it rained")
    return os.environ["COLOUR"]


def refusal(name: str) -> str:
    try:
        flyte.with_runcontext(name=name).run(main)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    connect()
    name = sys.argv[3]
    run = flyte.with_runcontext(
        name=name,
        labels={"team": "blue"},
        annotations={"why": "a test"},
        env_vars={"COLOUR": "green"},
    ).run(main)
    run.wait(quiet=True)
    taken, long = refusal(name), refusal("n" * 31)
    details = run.details()
    print(
        json.dumps(
            {
                "outputs": list(run.outputs()),
                "name": run.name == name,
                "labelled": [
                    each.name for each in flyte.remote.Run.listall(with_labels={"team": "blue"})
                ]
                == [name],
                "other": list(flyte.remote.Run.listall(with_labels={"team": "red"})) == [],
                "attempts": [
                    each.error_info.message if each.HasField("error_info") else ""
                    for each in details.action_details.pb2.attempts
                ],
                "taken": taken,
                "long": long,
            }
        )
    )
