"""The error of every attempt, whichever process is killed between two of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action

from etcd_actions import Phase, open_actions_client, open_etcd
from etcd_actions.model import Keyspace
from etcd_actions.runs.attempts import attempts
from etcd_actions.runs.reading import history_of_action
from etcd_actions.storage.store import Store
from tests.executor.tasks import ROOT, Machine, until
from tests.sdk.service import Site, free_port, kill
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually, eventually_holds

pytestmark = [pytest.mark.faults, pytest.mark.slow]

_SCRIPT = """
echo "attempt $FLYTE_ATTEMPT_NUMBER went wrong"
while [ ! -e "$RUNS/go$FLYTE_ATTEMPT_NUMBER" ]; do sleep 0.05; done
exit 7
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end_all()


async def test_the_error_of_every_attempt_outlives_its_executor_and_its_leader(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, machine: Machine
) -> None:
    """Each attempt ends while nobody looks; the next service finds that, and is killed, too."""
    site = Site(tmp_path, shared_etcd.endpoint, prefix, Path(sys.executable))
    # Where it is looked for when the test ends.
    site.state_dir = machine.state_dir

    def retried(action: Action) -> None:
        action.task.spec.task_template.metadata.retries.retries = 2

    flags = ("--executor-fork-server=false", "--monitoring-listen", "none")
    keys = Keyspace(prefix)

    async def begun(number: int) -> None:
        await eventually(
            lambda: any(name.startswith(f"a0.{number}.") for name in machine.starts("a0"))
        )

    async with (
        open_etcd(shared_etcd.endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix) as client,
    ):
        try:
            with trio.fail_after(120):
                await client.enqueue(machine.task(ROOT, _SCRIPT, change=retried))
                for number in range(3):
                    with site.service(free_port(), *flags) as service:
                        await begun(number)
                        kill(service)
                    (machine.runs / f"go{number}").touch()
                with site.service(free_port(), *flags):
                    action = await until(client, ROOT, Phase.FAILED)
                    store = Store(etcd)

                    async def is_kept() -> bool:
                        kept = await history_of_action(store, keys, ROOT)
                        return kept is not None and kept.attempts[-1].phase == Phase.FAILED

                    await eventually_holds(is_kept)
                    kept = await history_of_action(store, keys, ROOT)
        finally:
            site.end_all()
    assert kept is not None
    for found in (kept.attempts, attempts(action)):
        messages = [each.failure.message if each.failure else "" for each in found]
        assert [each.number for each in found] == [1, 2, 3]
        for number, message in enumerate(messages):
            assert f"attempt {number} went wrong" in message
