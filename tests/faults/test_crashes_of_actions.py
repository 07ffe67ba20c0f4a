"""Killed in the middle, by SIGKILL: the next start finishes the work."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from etcd_actions import ActionId, Phase, open_actions_client, open_etcd
from etcd_actions.etcd.api import KeyRange, KeyValue
from tests.record.test_outbox import SETTINGS, Scripted
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.recording import until_stored
from tests.support.scene import all_marked

pytestmark = pytest.mark.faults

ROOT = ActionId("p", "d", "r1", "a0")
HERE = Path(__file__).parents[2]


def named(name: str) -> ActionId:
    return ActionId("p", "d", "r1", name)


async def killed(server: EtcdServer, prefix: bytes, what: str, times: int) -> None:
    """Run a process that kills itself."""
    command = [sys.executable, "-m", "tests.support.crashing_actions"]
    arguments = [server.endpoint, prefix.decode(), what, str(times)]
    run = partial(subprocess.run, [*command, *arguments], cwd=HERE, timeout=60, check=False)
    done = await trio.to_thread.run_sync(run)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("times", [2, 3, 5])
async def test_in_the_middle_of_an_abort(
    shared_etcd: EtcdServer, prefix: bytes, times: int
) -> None:
    """The marker is there: the next elected process ends all below it."""
    async with open_etcd(shared_etcd.endpoint) as etcd:
        async with open_actions_client(etcd, prefix=prefix) as client:
            await client.enqueue(flyte.task(ROOT))
            for name, parent in (("c1", "a0"), ("c2", "a0"), ("g1", "c1"), ("g2", "c2")):
                await client.enqueue(flyte.task(named(name), parent))
        await killed(shared_etcd, prefix, "abort", times)
        service = Scripted()
        async with open_actions_client(
            etcd, prefix=prefix, run_service=service, settings=SETTINGS
        ) as client:
            before = (await client.list_run_actions(ROOT.run_id)).actions
            # What is below is ended side by side: of that some may have got through.
            if times == 2:
                assert any(action.phase is Phase.UNSPECIFIED for action in before)
            await client.start_watching()
            keys = KeyRange.of_prefix(prefix)
            with trio.fail_after(60):
                await until_stored(
                    etcd, keys, lambda stored: len(stored) == 5 and marked_all(stored)
                )
            after = (await client.list_run_actions(ROOT.run_id)).actions
            assert {action.phase for action in after} == {Phase.ABORTED}
        for name in ("a0", "c1", "c2", "g1", "g2"):
            assert service.of(name)[-1] is Phase.ABORTED


def marked_all(stored: dict[bytes, KeyValue]) -> bool:
    """Whether all is over and marked."""
    return all(b"terminal-status-recorded" in kv.value for kv in stored.values())


@pytest.mark.parametrize("times", [1, 2], ids=["record-and-status", "acceptance-and-mark"])
async def test_between_two_steps_of_telling(
    shared_etcd: EtcdServer, prefix: bytes, times: int
) -> None:
    """What is not marked is told again, from the record on."""
    async with open_etcd(shared_etcd.endpoint) as etcd:
        async with open_actions_client(etcd, prefix=prefix) as client:
            await client.enqueue(flyte.task(ROOT))
            await client.put_status(ROOT, 1, flyte.status(Phase.FAILED))
        await killed(shared_etcd, prefix, "tell", times)
        service = Scripted()
        # The dead one's lease has to run out first, unless it is not waited for.
        async with open_actions_client(
            etcd, prefix=prefix, run_service=service, settings=replace(SETTINGS, elect=False)
        ) as client:
            assert not (await client.get_task_action(ROOT)).is_recorded
            await client.start_watching()
            with trio.fail_after(60):
                await until_stored(etcd, KeyRange.of_prefix(prefix), all_marked)
        assert service.of("a0", "record")
        assert service.of("a0") == [Phase.FAILED]
