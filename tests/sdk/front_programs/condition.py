"""A run that waits for somebody outside."""

import json
import time

import flyte
import flyte.remote
from hello import connect

env = flyte.TaskEnvironment(name="condition")


@env.task
async def main() -> str:
    approval = await flyte.new_condition.aio("approve", data_type=bool, prompt="Go on?")
    amount = await flyte.new_condition.aio("amount", data_type=int)
    return f"{await approval.wait.aio()} {await amount.wait.aio()}"


def wait_for(run: str, name: str) -> flyte.remote.Condition:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for each in flyte.remote.Condition.listall(run_name=run):
            if each.name == name and not each.pb2.status.HasField("end_time"):
                return each
        time.sleep(0.1)
    raise TimeoutError(name)


if __name__ == "__main__":
    connect()
    run = flyte.run(main)
    wait_for(run.name, "approve").signal(True)
    wait_for(run.name, "amount").signal(12)
    run.wait(quiet=True)
    print(json.dumps({"outputs": list(run.outputs())}))
