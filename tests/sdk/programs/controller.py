"""The SDK's own controller, without a task: submits one action, and says what came of it.

Arguments: the service's address, the run's name, the action's name.
"""

import asyncio
import json
import os
import sys

os.environ["_U_USE_ACTIONS"] = "1"

from flyte._internal.controllers.remote._action import Action
from flyte._internal.controllers.remote._client import ControllerClient
from flyte._internal.controllers.remote._core import Controller
from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier
from flyteidl2.core.tasks_pb2 import TaskTemplate
from flyteidl2.task.task_definition_pb2 import TaskSpec


async def main(address: str, run: str, name: str) -> None:
    controller = Controller(ControllerClient.for_endpoint(address, insecure=True), workers=2)
    identifier = RunIdentifier(org="o", project="p", domain="d", name=run)
    action = Action.from_task(
        "a0",
        ActionIdentifier(run=identifier, name=name),
        None,
        TaskSpec(task_template=TaskTemplate(type="python"), short_name="f"),
        "file:///in.pb",
        "file:///run",
    )
    print(json.dumps({"type": "SUBMITTING"}), flush=True)
    done = await controller.submit_and_wait_for_action(action)
    print(
        json.dumps(
            {
                "type": "DONE",
                "phase": done.phase,
                "outputs": done.realized_outputs_uri,
                "code": done.err.code if done.err is not None else None,
                "message": done.err.message if done.err is not None else None,
                "client_error": str(done.client_err) if done.client_err is not None else None,
            }
        ),
        flush=True,
    )
    # The interpreter's own end would wait for the controller's threads.
    os._exit(0)


asyncio.run(main(*sys.argv[1:]))
