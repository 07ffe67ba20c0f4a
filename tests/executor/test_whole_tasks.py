"""What tasks do with their files and processes, seen from the action, on a real etcd."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action

from etcd_actions import ActionsClient, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor import ExecutorSettings, open_executor
from tests.executor.attempts import lives
from tests.executor.fakes import SetClock
from tests.executor.tasks import ROOT, Machine, named, until
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end_all()


@pytest.mark.parametrize("name", first_everyday(["error.pb", "outputs.pb"]))
@pytest.mark.parametrize("make", first_everyday(["mkfifo", "mkdir", "ln -s /dev/zero"]))
async def test_a_result_that_is_no_regular_file_fails_its_action_alone(
    client: ActionsClient, machine: Machine, name: str, make: str
) -> None:
    """A FIFO wedged the action, its slot and the end of the process."""
    async with machine.executor(client, machine.settings(slots=1)) as executor:
        await client.enqueue(machine.task(ROOT, f'{make} "$OUT/{name}"'))
        with trio.fail_after(20):
            action = await until(client, ROOT)
            await eventually(lambda: executor.statistics().running == 0)
    assert action.phase is Phase.FAILED
    assert action.status.error_state is not None
    assert action.status.error_state.kind == "USER"
    assert f"{machine.base}/a0/1/{name} is a" in action.status.error_state.message


@pytest.mark.slow
async def test_declared_outputs_have_to_be_there(client: ActionsClient, machine: Machine) -> None:
    def declares(action: Action) -> None:
        action.task.spec.task_template.interface.outputs.variables.add(key="o0")

    async with machine.executor(client):
        await client.enqueue(machine.task(ROOT, "exit 0", change=declares))
        action = await until(client, ROOT)
        assert action.phase is Phase.FAILED
        assert action.status.error_state is not None
        assert action.status.error_state.code == "OutputsNotFound"


@pytest.mark.slow
async def test_a_time_out_reaches_every_process(
    client: ActionsClient, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(action: Action) -> None:
        action.task.spec.task_template.metadata.timeout.seconds = 1000

    script = """
    trap "" TERM
    setsid sh -c 'trap "" TERM; echo $$ >"$RUNS/pid"; exec sleep 1000' </dev/null >/dev/null 2>&1 &
    sleep 1000
    """
    # Time passes when both processes are there to be ended: a busy machine may start them late.
    clock = SetClock()
    monkeypatch.setattr(sys.modules[open_executor.__module__], "Clock", lambda: clock)
    pid = machine.runs / "pid"
    async with machine.executor(client, machine.settings(kill_grace=0.5)) as executor:
        await client.enqueue(machine.task(ROOT, script, change=timed))
        await eventually(lambda: pid.exists() and pid.read_text().endswith("\n"))
        clock.passed += 1000
        action = await until(client, ROOT)
        await eventually(lambda: executor.statistics().running == 0)
        assert action.phase is Phase.TIMED_OUT
        assert not lives(int(pid.read_text()))


async def test_an_action_is_over_when_its_main_process_is(
    client: ActionsClient, machine: Machine
) -> None:
    async with machine.executor(client, machine.settings(slots=1)) as executor:
        await client.enqueue(machine.task(ROOT, "sleep 1000 & setsid sleep 1000 & exit 0"))
        with trio.fail_after(20):
            assert (await until(client, ROOT)).phase is Phase.SUCCEEDED
            await eventually(lambda: executor.statistics().running == 0)


@pytest.mark.slow
async def test_what_ended_long_ago_is_forgotten_and_what_runs_is_not(
    client: ActionsClient, machine: Machine
) -> None:
    def directories() -> set[str]:
        return {path.parent.name for path in machine.state_dir.glob("attempts/*/*")}

    settings = machine.settings()
    kept = ExecutorSettings(
        python=settings.python,
        service=settings.service,
        state_dir=settings.state_dir,
        claim_ttl=settings.claim_ttl,
        keep=1.0,
    )
    async with machine.executor(client, kept):
        await client.enqueue(machine.task(ROOT, "sleep 1000"))
        await until(client, ROOT, Phase.RUNNING)
        await client.enqueue(machine.task(named("c1"), "exit 0", "a0"))
        ended = (await until(client, named("c1"))).incarnation.path_component
        running = (await client.get_task_action(ROOT)).incarnation.path_component
        assert ended in directories()
        await eventually(lambda: ended not in directories())
        # Long after it began.
        place = machine.state_dir / "attempts" / running / "1"
        for path in (place, *place.iterdir()):
            os.utime(path, (0, 0))
        await trio.sleep(1.5)  # Longer than `keep`: what is kept has to outlast it.
        assert directories() == {running}
        await client.abort_action(ROOT)
    assert machine.state_dir.stat().st_mode & 0o777 == 0o700
