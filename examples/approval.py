"""A run that waits for the approval of a person: a condition, and the signal that ends it.

    python approval.py HOST:PORT

It prints the command that approves, and waits for it. The actions have a prefix of their own,
so that no executor takes them.
"""

import secrets
import sys

import structlog
import trio
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier
from flyteidl2.core.tasks_pb2 import TaskTemplate
from flyteidl2.core.types_pb2 import LiteralType, SimpleType
from flyteidl2.task.task_definition_pb2 import TaskSpec
from flyteidl2.workflow.run_definition_pb2 import ConditionAction, TaskAction

from etcd_actions import ActionStatus, ActionUpdate, Phase, open_actions_client, open_etcd
from etcd_actions.errors import FailedPrecondition

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

PREFIX = "/examples/taskactions/"


def action(action_id: ActionIdentifier, parent: str | None = None) -> Action:
    """What a task and a condition have in common."""
    base = f"s3://bucket/{action_id.run.name}"
    return Action(
        action_id=action_id,
        parent_action_name=parent,
        input_uri=f"{base}/{action_id.name}/inputs.pb",
        run_output_base=base,
    )


async def main(endpoint: str) -> None:
    """Start a run, wait for the approval, and end the run."""
    run = RunIdentifier(
        project="flytesnacks", domain="development", name=f"r{secrets.token_hex(5)}"
    )
    root = ActionIdentifier(run=run, name="a0")
    approval = ActionIdentifier(run=run, name="approval")
    async with (
        open_etcd(endpoint) as etcd,
        open_actions_client(etcd, prefix=PREFIX.encode()) as client,
    ):
        task = action(root)
        spec = TaskSpec(task_template=TaskTemplate(type="python"), short_name="release")
        task.task.CopyFrom(TaskAction(spec=spec))
        await client.enqueue(task)
        await client.put_status(root, 1, ActionStatus(Phase.RUNNING))
        condition = action(approval, parent="a0")
        boolean = LiteralType(simple=SimpleType.BOOLEAN)
        condition.condition.CopyFrom(
            ConditionAction(name="approval", type=boolean, prompt="Release this version?")
        )
        await client.enqueue(condition)
        await client.put_status(approval, 1, ActionStatus(Phase.PAUSED))
        name = f"{run.project}/{run.domain}/{run.name}/approval"
        print(
            f"etcd-actions signal {name} true --endpoints {endpoint} --prefix {PREFIX}",
            flush=True,
        )
        async with client.subscribe(root, snapshot=True) as updates:
            approved = False
            async for update in updates:
                if isinstance(update, ActionUpdate) and update.signal_value is not None:
                    approved = update.signal_value is True
                    break
        print("approved" if approved else "rejected")
        phase = Phase.SUCCEEDED if approved else Phase.ABORTED
        await client.put_status(root, 1, ActionStatus(phase))
        try:
            await client.put_status(root, 1, ActionStatus(Phase.RUNNING))
        except FailedPrecondition as error:
            print("an action that has ended keeps its phase:", error)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
