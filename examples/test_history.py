"""Record what a run did, and replay it in a test, on an etcd of the test's own.

    pytest examples/test_history.py

A record of a production run makes a test of everything that reads actions: it has each state
that etcd had, in order.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier
from flyteidl2.core.tasks_pb2 import TaskTemplate
from flyteidl2.task.task_definition_pb2 import TaskSpec
from flyteidl2.workflow.run_definition_pb2 import TaskAction

from etcd_actions import ActionStatus, Phase, open_actions_client, open_etcd
from etcd_actions.testing import EtcdFactory, EtcdServer

RUN = RunIdentifier(project="flytesnacks", domain="development", name="r1")
ROOT = ActionIdentifier(run=RUN, name="a0")


def etcd_actions(*arguments: str) -> None:
    """Run the command."""
    subprocess.run([sys.executable, "-m", "etcd_actions", *arguments], check=True)


async def make_history(endpoint: str, prefix: bytes) -> None:
    """Three states of one action; in earnest this is what production did."""
    spec = TaskSpec(task_template=TaskTemplate(type="python"), short_name="main")
    root = Action(
        action_id=ROOT,
        input_uri="s3://bucket/inputs.pb",
        run_output_base="s3://bucket/r1",
        task=TaskAction(spec=spec),
    )
    async with open_etcd(endpoint) as etcd, open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(root)
        for phase in (Phase.RUNNING, Phase.SUCCEEDED):
            await client.put_status(ROOT, 1, ActionStatus(phase))


@pytest.mark.trio
async def test_a_recorded_run(
    etcd: EtcdServer, etcd_prefix: bytes, etcd_factory: EtcdFactory, tmp_path: Path
) -> None:
    """The replayed action ends as the recorded one did, over the same phases."""
    await make_history(etcd.endpoint, etcd_prefix)
    record, prefix = str(tmp_path / "run.rec"), etcd_prefix.decode()
    where = ("--endpoints", etcd.endpoint, "--prefix", prefix)
    etcd_actions("record", record, "--history", "--until-synced", *where)

    fresh = etcd_factory()
    etcd_actions("replay", record, "--endpoints", fresh.endpoint, "--prefix", prefix)

    async with (
        open_etcd(fresh.endpoint) as connection,
        open_actions_client(connection, prefix=etcd_prefix) as client,
    ):
        action = await client.get_task_action(ROOT)
    assert action.phase is Phase.SUCCEEDED
    assert [each.phase for each in action.status.phase_history] == ["Executing", "Completed"]
