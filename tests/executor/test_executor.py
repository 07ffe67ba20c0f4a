"""Actions that really run, as shell commands, on a real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument, ExecutionError

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.executor.tasks import ROOT, Machine, is_alive, named, until
from tests.support import flyte
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


Change = Callable[[Action], None]


def with_retries(count: int) -> Change:
    def change(action: Action) -> None:
        action.task.spec.task_template.metadata.retries.retries = count

    return change


def error_document(path: Path, message: str, *, recoverable: bool) -> Path:
    kind = ContainerError.RECOVERABLE if recoverable else ContainerError.NON_RECOVERABLE
    error = ContainerError(
        code="ValueError", message=message, kind=kind, origin=ExecutionError.USER
    )
    path.write_bytes(ErrorDocument(error=error).SerializeToString())
    return path


async def test_success(client: ActionsClient, machine: Machine) -> None:
    """What the environment and the command hold, and that it is over with its outputs."""
    script = """
    env >"$OUT/environment"; pwd >"$OUT/directory"
    touch "$OUT/outputs.pb"
    exit 3
    """
    async with machine.executor(client) as executor:
        await client.enqueue(machine.task(ROOT, script))
        action = await until(client, ROOT)
        assert action.phase is Phase.SUCCEEDED
        assert [each.phase for each in action.status.phase_history][-2:] == [
            "Executing",
            "Completed",
        ]
        await eventually(lambda: executor.statistics().running == 0)
        assert executor.statistics().ended == {"SUCCEEDED": 1}
    outputs = machine.base / "a0" / "1"
    assert action.output_uri == str(outputs)
    environment = dict(
        line.partition("=")[::2] for line in (outputs / "environment").read_text().splitlines()
    )
    wanted = {
        "ACTION_NAME": "a0",
        "RUN_NAME": "r1",
        "_U_RUN_BASE": str(machine.base),
        "_U_ORG_NAME": "o",
        "_U_USE_ACTIONS": "1",
        "_U_EP_OVERRIDE": "127.0.0.1:1",
        "FLYTE_INTERNAL_EXECUTION_PROJECT": "p",
        "FLYTE_INTERNAL_EXECUTION_DOMAIN": "d",
        "FLYTE_ATTEMPT_NUMBER": "0",
    }
    assert {name: environment.get(name) for name in wanted} == wanted
    assert not [name for name in environment if name.startswith(("ETCDCTL_", "ETCD_ACTIONS_"))]


@pytest.mark.slow
async def test_the_exit_code_decides_last(client: ActionsClient, machine: Machine) -> None:
    async with machine.executor(client):
        await client.enqueue(machine.task(ROOT, "exit 0"))
        await client.enqueue(machine.task(named("c1"), "echo oh no; exit 3", "a0"))
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED


async def test_a_process_that_fails(client: ActionsClient, machine: Machine) -> None:
    async with machine.executor(client):
        await client.enqueue(machine.task(ROOT, "echo oh no; exit 3"))
        action = await until(client, ROOT)
    assert action.phase is Phase.FAILED
    assert action.status.error_state is not None
    assert action.status.error_state.kind == "SYSTEM"
    assert action.status.error_state.message == (
        "the process exited with 3; its log ends with:\noh no"
    )


@pytest.mark.slow
async def test_retries_end_with_the_last_error(
    client: ActionsClient, machine: Machine, tmp_path: Path
) -> None:
    document = error_document(tmp_path / "error", "again", recoverable=True)
    script = f'cp {document} "$OUT/error.pb"; touch "$OUT/outputs.pb"'
    async with machine.executor(client) as executor:
        await client.enqueue(machine.task(ROOT, script, change=with_retries(2)))
        action = await until(client, ROOT)
        assert executor.statistics().retries == 2
    assert (action.phase, action.status.attempts) == (Phase.FAILED, 3)
    assert action.status.error_state is not None
    assert (action.status.error_state.code, action.status.error_state.message) == (
        "ValueError",
        "again",
    )
    assert [name.split(".")[1] for name in machine.starts("a0")] == ["0", "1", "2"]


@pytest.mark.slow
async def test_what_is_not_recoverable_is_not_tried_again(
    client: ActionsClient, machine: Machine, tmp_path: Path
) -> None:
    document = error_document(tmp_path / "error", "no", recoverable=False)
    async with machine.executor(client):
        script = f'cp {document} "$OUT/error.pb"'
        await client.enqueue(machine.task(ROOT, script, change=with_retries(2)))
        action = await until(client, ROOT)
    assert (action.phase, action.status.attempts) == (Phase.FAILED, 1)
    assert len(machine.starts("a0")) == 1


@pytest.mark.slow
async def test_a_second_attempt_knows_the_first_ones_checkpoint(
    client: ActionsClient, machine: Machine
) -> None:
    def change(action: Action) -> None:
        action.task.spec.task_template.container.args.append("{{.prevCheckpointPrefix}}")
        action.task.spec.task_template.metadata.retries.retries = 1

    script = 'echo "$2" >"$OUT/previous"; test "$FLYTE_ATTEMPT_NUMBER" = 1'
    async with machine.executor(client):
        await client.enqueue(machine.task(ROOT, script, change=change))
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED
    first, second = machine.base / "a0" / "1", machine.base / "a0" / "2"
    assert (first / "previous").read_text() == '""\n'
    assert (second / "previous").read_text() == f"{first}/_flytecheckpoints\n"


@pytest.mark.slow
async def test_what_cannot_run_here_fails_with_the_fields_name(
    client: ActionsClient, machine: Machine
) -> None:
    def elsewhere(action: Action) -> None:
        action.run_output_base = "s3://bucket/base"

    def nothing(action: Action) -> None:
        action.task.spec.task_template.ClearField("container")

    def unknown(action: Action) -> None:
        action.task.spec.task_template.container.args[0] = "/nowhere/program"

    async with machine.executor(client):
        await client.enqueue(machine.task(ROOT, "sleep 60"))
        for name, change, word in (
            ("c1", elsewhere, "spec.runOutputBase"),
            ("c2", nothing, "spec.taskTemplate.container"),
            ("c3", unknown, "/nowhere/program: No such file"),
        ):
            await client.enqueue(machine.task(named(name), "exit 0", "a0", change=change))
            action = await until(client, named(name))
            assert action.phase is Phase.FAILED
            assert action.status.error_state is not None
            assert word in action.status.error_state.message
        await client.abort_action(ROOT)


@pytest.mark.parametrize("stubborn", first_everyday([False, True]))
async def test_an_abort_ends_processes_and_all_that_they_started(
    client: ActionsClient, machine: Machine, tmp_path: Path, stubborn: bool
) -> None:
    pids = tmp_path / "pids"
    trap = "trap '' TERM;" if stubborn else ""
    script = f"{trap} (sleep 1000 & echo $! >>{pids}; wait) & echo $$ >>{pids}; wait; sleep 1000"
    settings = machine.settings(kill_grace=0.2 if stubborn else 5)
    async with machine.executor(client, settings) as executor:
        await client.enqueue(machine.task(ROOT, script))
        await eventually(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        await client.abort_action(ROOT, "enough")
        await eventually(lambda: executor.statistics().running == 0)
    assert (await client.get_task_action(ROOT)).phase is Phase.ABORTED
    numbers = [int(text) for text in pids.read_text().split()]
    await eventually(lambda: not any(is_alive(pid) for pid in numbers))


@pytest.mark.slow
async def test_the_children_of_a_failed_parent_are_aborted(
    client: ActionsClient, machine: Machine
) -> None:
    go = machine.runs / "go"
    async with machine.executor(client):
        await client.enqueue(machine.task(ROOT, f"until test -e {go}; do sleep 0.02; done; exit 1"))
        await client.enqueue(machine.task(named("c1"), "sleep 1000", "a0"))
        await client.enqueue(flyte.condition(named("w1"), "a0"))
        await until(client, named("c1"), Phase.RUNNING)
        await until(client, named("w1"), Phase.PAUSED)
        go.touch()
        assert (await until(client, ROOT)).phase is Phase.FAILED
        for name in ("c1", "w1"):
            assert (await until(client, named(name))).phase is Phase.ABORTED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "code"),
    [("timeout", "MAX_RUNTIME_EXCEEDED"), ("timeouts.deadline", "DEADLINE_EXCEEDED")],
)
async def test_what_takes_too_long_is_timed_out(
    client: ActionsClient, machine: Machine, field: str, code: str
) -> None:
    def change(action: Action) -> None:
        target = action.task.spec.task_template.metadata
        *path, last = field.split(".")
        for name in path:
            target = getattr(target, name)
        getattr(target, last).seconds = 1

    async with machine.executor(client) as executor:
        await client.enqueue(machine.task(ROOT, "sleep 1000", change=change))
        action = await until(client, ROOT)
        await eventually(lambda: executor.statistics().running == 0)
    assert action.phase is Phase.TIMED_OUT
    assert action.status.error_state is not None
    assert action.status.error_state.code == code


@pytest.mark.slow
async def test_who_waits_too_long_for_a_slot_is_timed_out(
    client: ActionsClient, machine: Machine
) -> None:
    def change(action: Action) -> None:
        action.task.spec.task_template.metadata.timeouts.queued_timeout.seconds = 1

    async with machine.executor(client, machine.settings(slots=1)):
        await client.enqueue(machine.task(ROOT, "sleep 1000"))
        await until(client, ROOT, Phase.RUNNING)
        # Not below the root, which would not need its slot then.
        root2 = ActionId("p", "d", "r2", "a0", "o")
        await client.enqueue(machine.task(root2, "exit 0", change=change))
        await until(client, root2, Phase.QUEUED)
        action = await until(client, root2)
        assert action.phase is Phase.TIMED_OUT
        assert action.status.error_state is not None
        assert action.status.error_state.code == "QUEUED_TIMEOUT_EXCEEDED"
        await client.abort_action(ROOT)


async def test_a_parent_that_waits_holds_no_slot(client: ActionsClient, machine: Machine) -> None:
    """With one slot a parent, its child and its grandchild run at the same time."""
    wait = "until test -e {}; do sleep 0.02; done"
    deepest, middle = machine.runs / "deepest", machine.runs / "middle"
    async with machine.executor(client, machine.settings(slots=1)) as executor:
        await client.enqueue(machine.task(ROOT, wait.format(middle)))
        await until(client, ROOT, Phase.RUNNING)
        await client.enqueue(
            machine.task(named("c1"), f"{wait.format(deepest)}; touch {middle}", "a0")
        )
        await until(client, named("c1"), Phase.RUNNING)
        await client.enqueue(machine.task(named("g1"), f"touch {deepest}", "c1"))
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED
        assert executor.statistics().started == 3


@pytest.mark.slow
async def test_no_more_run_than_there_are_slots(client: ActionsClient, machine: Machine) -> None:
    go = machine.runs / "go"
    async with machine.executor(client, machine.settings(slots=2)) as executor:
        await client.enqueue(machine.task(ROOT, f"until test -e {go}.root; do sleep 0.02; done"))
        await until(client, ROOT, Phase.RUNNING)
        names = [f"c{number}" for number in range(5)]
        for name in names:
            script = f"until test -e {go}; do sleep 0.02; done"
            await client.enqueue(machine.task(named(name), script, "a0"))
        for name in names[2:]:
            await until(client, named(name), Phase.QUEUED)
        statistics = executor.statistics()
        assert (statistics.running, statistics.waiting) == (3, 1)
        go.touch()
        for name in names:
            assert (await until(client, named(name))).phase is Phase.SUCCEEDED
        (machine.runs / "go.root").touch()
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED


@pytest.mark.slow
async def test_no_more_are_started_when_the_memory_is_used(
    client: ActionsClient, machine: Machine
) -> None:
    go = machine.runs / "go"
    async with machine.executor(client, machine.settings(memory=1)) as executor:
        script = f"until test -e {go}; do sleep 0.02; done"
        other = ActionId("p", "d", "r2", "a0", "o")
        await client.enqueue(machine.task(ROOT, script))
        await until(client, ROOT, Phase.RUNNING)
        await client.enqueue(machine.task(other, script))
        await until(client, other, Phase.QUEUED)
        assert executor.statistics().running == 1
        go.touch()
        assert (await until(client, other)).phase is Phase.SUCCEEDED


@pytest.mark.slow
async def test_conditions_wait_and_time_out(client: ActionsClient, machine: Machine) -> None:
    async with machine.executor(client):
        await client.enqueue(machine.task(ROOT, "sleep 1000"))
        await client.enqueue(flyte.condition(named("w1"), "a0"))
        late = flyte.condition(named("w2"), "a0")
        late.condition.timeout.seconds = 1
        await client.enqueue(late)
        await until(client, named("w1"), Phase.PAUSED)
        action = await until(client, named("w2"))
        assert action.phase is Phase.TIMED_OUT
        assert action.status.error_state is not None
        assert action.status.error_state.code == "ConditionTimedOut"
        await client.signal(named("w1"), flyte.boolean(True))
        assert (await until(client, named("w1"))).phase is Phase.SUCCEEDED
        await client.abort_action(ROOT)


async def test_a_new_executor_finds_what_runs(client: ActionsClient, machine: Machine) -> None:
    """The process outlives the executor that started it, and is started once."""
    go = machine.runs / "go"
    script = f'until test -e {go}; do sleep 0.02; done; touch "$OUT/outputs.pb"'
    async with machine.executor(client):
        await client.enqueue(machine.task(ROOT, script))
        await until(client, ROOT, Phase.RUNNING)
        await eventually(lambda: len(machine.starts("a0")) == 1)
    assert (await client.get_task_action(ROOT)).phase is Phase.RUNNING
    async with machine.executor(client) as executor:
        await eventually(lambda: executor.statistics().adopted == 1)
        go.touch()
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED
        assert executor.statistics().started == 0
    assert len(machine.starts("a0")) == 1


async def test_what_ended_unwatched_is_not_run_again(
    client: ActionsClient, machine: Machine
) -> None:
    go, done = machine.runs / "go", machine.runs / "done"
    script = f'until test -e {go}; do sleep 0.02; done; touch "$OUT/outputs.pb" {done}'
    async with machine.executor(client):
        await client.enqueue(machine.task(ROOT, script))
        await eventually(lambda: len(machine.starts("a0")) == 1)
    go.touch()
    await eventually(done.exists)
    async with machine.executor(client):
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED
    assert len(machine.starts("a0")) == 1


@pytest.mark.slow
async def test_two_executors_start_each_action_once(
    client: ActionsClient, machine: Machine
) -> None:
    async with machine.executor(client), machine.executor(client):
        await client.enqueue(machine.task(ROOT, "sleep 1000"))
        names = [f"c{number}" for number in range(20)]
        for name in names:
            await client.enqueue(machine.task(named(name), "exit 0", "a0"))
        for name in names:
            assert (await until(client, named(name))).phase is Phase.SUCCEEDED
        await client.abort_action(ROOT)
    assert [len(machine.starts(name)) for name in names] == [1] * len(names)


@pytest.mark.slow
async def test_what_somebody_else_ends_is_left_alone(
    client: ActionsClient, machine: Machine
) -> None:
    async with machine.executor(client) as executor:
        await client.enqueue(machine.task(ROOT, "sleep 1000"))
        await until(client, ROOT, Phase.RUNNING)
        await client.put_status(ROOT, 1, ActionStatus(Phase.SUCCEEDED))
        await eventually(lambda: executor.statistics().running == 0)
        with trio.fail_after(10):
            assert (await client.get_task_action(ROOT)).phase is Phase.SUCCEEDED
        assert executor.statistics().ended == {}


@pytest.mark.slow
async def test_children_outlive_a_parent_that_succeeded(
    client: ActionsClient, machine: Machine
) -> None:
    parent, child = machine.runs / "parent", machine.runs / "child"
    wait = "until test -e {}; do sleep 0.02; done"
    async with machine.executor(client):
        await client.enqueue(machine.task(ROOT, wait.format(parent)))
        await client.enqueue(machine.task(named("c1"), wait.format(child), "a0"))
        await until(client, named("c1"), Phase.RUNNING)
        parent.touch()
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED
        child.touch()
        assert (await until(client, named("c1"))).phase is Phase.SUCCEEDED
