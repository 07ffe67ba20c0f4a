"""What becomes of actions, without processes: time-outs, back-off, a machine's trouble, rubbish."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from flyteidl2.actions.actions_service_pb2 import Action
from structlog.testing import capture_logs

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase
from etcd_actions.errors import RequestTooLarge
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.executor.attempts import outcome
from etcd_actions.executor.attempts.attempt_directory import CLOCK, STARTED, AttemptDirectory
from etcd_actions.executor.attempts.start_errors import NotStarted
from etcd_actions.executor.scheduling.board import Board
from etcd_actions.model import ErrorState
from tests.executor.fakes import Bench
from tests.executor.objects import an_object
from tests.executor.tasks import ROOT, named, until
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory(jumps=False)

DAYS = 86400.0
OTHER = ActionId("p", "d", "other", "a0", "o")


def limited(
    *, run: int = 0, queued: int = 0, deadline: int = 0, retries: int = 0, base: float = 0
) -> Callable[[Action], None]:
    def change(action: Action) -> None:
        metadata = action.task.spec.task_template.metadata
        metadata.timeout.seconds = run
        metadata.timeouts.queued_timeout.seconds = queued
        metadata.timeouts.deadline.seconds = deadline
        metadata.retries.retries = retries
        if base:
            metadata.retries.backoff.base.FromNanoseconds(int(base * 1e9))
            metadata.retries.backoff.factor = 2
            metadata.retries.backoff.cap.seconds = 100_000

    return change


async def alter(
    etcd: Etcd, prefix: bytes, name: str, change: Callable[[dict[str, Any]], None]
) -> None:
    """Write an object as nobody should."""
    key = prefix + b"flyte/" + name.encode()
    (kv,) = (await etcd.range(KeyRange.of_key(key))).kvs
    tree = json.loads(kv.value)
    change(tree)
    await etcd.put(key, json.dumps(tree, separators=(",", ":"), sort_keys=True).encode() + b"\n")


async def error_of(client: ActionsClient, action_id: ActionId) -> tuple[Phase, ErrorState]:
    action = await until(client, action_id)
    assert action.status.error_state is not None
    return action.phase, action.status.error_state


# What an attempt may take.


async def test_a_time_out_counts_from_when_the_attempt_began_across_restarts(
    bench: Bench,
) -> None:
    async with bench.executor():
        await bench.enqueue(ROOT, change=limited(run=1000))
        await until(bench.client, ROOT, Phase.RUNNING)
    # 990 s pass while nobody looks.
    place = next(iter(bench.attempts._places.values()))
    (place.path / CLOCK).unlink()
    place.note_start(990)
    async with bench.executor() as executor:
        await eventually(lambda: executor.statistics().adopted == 1)
        assert (await bench.client.get_task_action(ROOT)).phase is Phase.RUNNING
        bench.clock.passed += 11
        phase, error = await error_of(bench.client, ROOT)
    assert (phase, error.code) == (Phase.TIMED_OUT, "MAX_RUNTIME_EXCEEDED")
    assert bench.attempts.ended == ["r1-a0"]
    assert bench.attempts.started == 1


def test_for_how_long_an_attempt_runs_is_known_without_its_clock(tmp_path: Any) -> None:
    """Of another start of the machine, or without the file, the wall clock tells, from 0 on."""
    place = AttemptDirectory(tmp_path, an_object(), 1)
    assert place.running_for() is None
    place.make()
    (place.path / STARTED).write_text("1")
    for rubbish in (b"", b"1 another-boot", b"nan", b"\xff\xff", b"1e999 x", b"0" * 5000):
        (place.path / CLOCK).write_bytes(rubbish)
        os.utime(place.path / STARTED, (0, 0))
        ran = place.running_for()
        assert ran is not None
        assert ran > 1e9
        os.utime(place.path / STARTED, (4e9, 4e9))
        assert place.running_for() == 0
    (place.path / CLOCK).unlink()
    (place.path / CLOCK).mkdir()
    assert place.running_for() == 0
    place.note_start(5)
    (place.path / CLOCK).rmdir()
    os.mkfifo(place.path / CLOCK)
    assert place.running_for() == 0
    place.note_start(5)
    ran = place.running_for()
    assert ran is not None
    assert 4.9 < ran < 60
    # What is written down stays.
    place.note_start(500)
    assert place.running_for() < 60  # type: ignore[operator]
    boot = (place.path / CLOCK).read_text().split()[1]
    for number in ("nan", "inf", "-inf"):
        (place.path / CLOCK).write_text(f"{number} {boot}")
        assert place.running_for() == 0


@pytest.mark.parametrize("step", [-10 * DAYS, 10 * DAYS])
async def test_time_outs_survive_a_step_of_the_clock(bench: Bench, step: float) -> None:
    """Of what runs; before the step and after it they come in time."""
    async with bench.executor():
        await bench.enqueue(ROOT, change=limited(run=1800, deadline=7200))
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.clock.stepped = step
        bench.clock.passed += 850
        await bench.enqueue(OTHER, change=limited(deadline=100))
        await until(bench.client, OTHER, Phase.RUNNING)
        assert (await bench.client.get_task_action(ROOT)).phase is Phase.RUNNING
        bench.clock.passed += 120
        phase, error = await error_of(bench.client, OTHER)
        assert (phase, error.code) == (Phase.TIMED_OUT, "DEADLINE_EXCEEDED")
        assert (await bench.client.get_task_action(ROOT)).phase is Phase.RUNNING
        bench.clock.passed += 900
        phase, error = await error_of(bench.client, ROOT)
        assert (phase, error.code) == (Phase.TIMED_OUT, "MAX_RUNTIME_EXCEEDED")


@pytest.mark.parametrize("step", [-10 * DAYS, 10 * DAYS])
async def test_the_wait_for_a_slot_is_not_counted_by_the_wall_clock(
    bench: Bench, step: float
) -> None:
    async with bench.executor(slots=1):
        await bench.enqueue(ROOT)
        await until(bench.client, ROOT, Phase.RUNNING)
        await bench.enqueue(OTHER, change=limited(queued=1800))
        await until(bench.client, OTHER, Phase.QUEUED)
        bench.clock.stepped = step
        bench.clock.passed += 1700
        third = ActionId("p", "d", "third", "a0", "o")
        await bench.enqueue(third, change=limited(queued=50))
        await until(bench.client, third, Phase.QUEUED)
        assert (await bench.client.get_task_action(OTHER)).phase is Phase.QUEUED
        bench.clock.passed += 200
        phase, error = await error_of(bench.client, OTHER)
        assert (phase, error.code) == (Phase.TIMED_OUT, "QUEUED_TIMEOUT_EXCEEDED")
        assert bench.attempts.started == 1


# The back-off between attempts.


async def test_a_retry_waits_for_its_back_off_without_a_slot(bench: Bench) -> None:
    """Each longer than the one before; the wall clock does not count."""
    async with bench.executor(slots=1) as executor:
        await bench.enqueue(ROOT, change=limited(retries=2, base=1000))
        for attempt, wait in ((1, 1000), (2, 2000)):
            await until(bench.client, ROOT, Phase.RUNNING)
            bench.attempts.fail("r1-a0")
            await until(bench.client, ROOT, Phase.QUEUED)
            await eventually(lambda: executor.statistics().running == 0)
            bench.clock.stepped += 10 * DAYS
            bench.clock.passed += wait - 5
            other = ActionId("p", "d", f"other{attempt}", "a0", "o")
            await bench.enqueue(other)
            await until(bench.client, other, Phase.RUNNING)
            bench.attempts.finish(f"other{attempt}-a0")
            await until(bench.client, other)
            assert bench.attempts.begun.count("r1-a0") == attempt
            bench.clock.passed += 6
        await until(bench.client, ROOT, Phase.RUNNING)
        assert executor.statistics().retries == 2
        bench.attempts.fail("r1-a0")
        action = await until(bench.client, ROOT)
    assert (action.phase, action.status.attempts) == (Phase.FAILED, 3)
    assert bench.parked() == []


async def test_the_back_off_outlives_the_executor_and_ends_with_an_abort(bench: Bench) -> None:
    async with bench.executor():
        await bench.enqueue(ROOT, change=limited(retries=5, base=1000))
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.attempts.fail("r1-a0")
        await until(bench.client, ROOT, Phase.QUEUED)
    bench.clock.passed += 500
    async with bench.executor() as executor:
        await bench.enqueue(OTHER)
        await until(bench.client, OTHER, Phase.RUNNING)
        await eventually(lambda: executor.statistics().running == 1)
        assert bench.attempts.begun == ["r1-a0", "other-a0"]
        bench.clock.passed += 501
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.attempts.fail("r1-a0")
        await until(bench.client, ROOT, Phase.QUEUED)
        await bench.client.abort_action(ROOT)
        await eventually(lambda: executor.statistics().open_actions == 1)
        assert len(executor._shared.schedule) == 0


async def test_a_deadline_ends_the_back_off(bench: Bench) -> None:
    async with bench.executor():
        await bench.enqueue(ROOT, change=limited(retries=5, base=50_000, deadline=3000))
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.attempts.fail("r1-a0")
        await until(bench.client, ROOT, Phase.QUEUED)
        bench.clock.passed += 3001
        phase, error = await error_of(bench.client, ROOT)
    assert (phase, error.code) == (Phase.TIMED_OUT, "DEADLINE_EXCEEDED")


# The machine's trouble.


@pytest.mark.parametrize(
    "number", first_everyday([errno.ENOSPC, errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
)
async def test_what_the_machine_cannot_start_stays_queued(bench: Bench, number: int) -> None:
    """It is no attempt of the user's, others go on, and readiness tells while it lasts."""
    trouble = True

    def fail(name: str) -> None:
        if trouble and name == "r1-a0":
            raise OSError(number, os.strerror(number))

    bench.attempts.on_begin = fail
    async with bench.executor(slots=1) as executor:
        await bench.enqueue(ROOT)
        await eventually(lambda: ("action", "flyte/r1-a0") in bench.parked())
        (parked,) = bench.client.containment.parked
        assert os.strerror(number) in parked.error
        await bench.enqueue(OTHER)
        await until(bench.client, OTHER, Phase.RUNNING)
        bench.attempts.finish("other-a0")
        await until(bench.client, OTHER)
        action = await bench.client.get_task_action(ROOT)
        assert (action.phase, max(action.status.attempts, 1)) == (Phase.QUEUED, 1)
        assert executor.statistics().retries == 0
        trouble = False
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.attempts.finish("r1-a0")
        assert (await until(bench.client, ROOT)).phase is Phase.SUCCEEDED
        await eventually(lambda: not bench.parked())


@pytest.mark.parametrize(
    "number", first_everyday([errno.E2BIG, errno.ENOENT, errno.EACCES, errno.ENOTDIR], 2)
)
async def test_what_the_user_asked_for_and_cannot_be_started_fails(
    bench: Bench, number: int
) -> None:
    def fail(name: str) -> None:
        raise OSError(number, os.strerror(number))

    bench.attempts.on_begin = fail
    async with bench.executor():
        await bench.enqueue(ROOT, change=limited(retries=3))
        phase, error = await error_of(bench.client, ROOT)
    assert (phase, error.code, error.kind) == (Phase.FAILED, "NotStarted", "USER")
    assert bench.parked() == []


async def test_not_started_says_whose_fault_it_is(bench: Bench) -> None:
    state = ErrorState(code="Why", kind="SYSTEM", message="the fork server is gone")
    by_machine = True

    def fail(name: str) -> None:
        raise NotStarted(state, by_machine=by_machine)

    bench.attempts.on_begin = fail
    async with bench.executor():
        await bench.enqueue(ROOT)
        await eventually(lambda: ("action", "flyte/r1-a0") in bench.parked())
        assert (await bench.client.get_task_action(ROOT)).phase is Phase.QUEUED
        by_machine = False
        phase, error = await error_of(bench.client, ROOT)
    assert (phase, error) == (Phase.FAILED, state)


# What may be stored.


@pytest.mark.parametrize("uid", first_everyday(["../../x", "a/b", "", "..", "a\0b", "x" * 300], 3))
async def test_a_uid_may_be_anything(bench: Bench, etcd: Etcd, prefix: bytes, uid: str) -> None:
    await bench.enqueue(ROOT)
    await alter(etcd, prefix, "r1-a0", lambda tree: tree["metadata"].update(uid=uid))
    async with bench.executor():
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.attempts.finish("r1-a0")
        await until(bench.client, ROOT, Phase.SUCCEEDED)
    assert len(list((bench.state_dir / "attempts").iterdir())) == 1
    assert not (bench.state_dir.parent / "x").exists()


@pytest.mark.parametrize(
    "time",
    first_everyday(
        ["yesterday", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026"], 2
    ),
)
async def test_times_that_are_none_do_no_harm(
    bench: Bench, etcd: Etcd, prefix: bytes, time: str
) -> None:
    await bench.enqueue(ROOT)
    await bench.client.put_status(ROOT, 2, ActionStatus(Phase.QUEUED))

    def change(tree: dict[str, Any]) -> None:
        tree["metadata"]["creationTimestamp"] = time
        for entry in tree["status"]["phaseHistory"]:
            entry["occurredAt"] = time

    await alter(etcd, prefix, "r1-a0", change)
    async with bench.executor():
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.attempts.finish("r1-a0")
        assert (await until(bench.client, ROOT)).phase is Phase.SUCCEEDED
    assert bench.parked() == []


async def test_the_last_attempt_that_can_be_counted_is_the_last(
    bench: Bench, etcd: Etcd, prefix: bytes
) -> None:
    await bench.enqueue(ROOT, change=limited(retries=2**32 - 1))
    await bench.client.put_status(ROOT, 2**32 - 1, ActionStatus(Phase.QUEUED))
    async with bench.executor():
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.attempts.fail("r1-a0")
        assert (await until(bench.client, ROOT)).phase is Phase.FAILED


@pytest.mark.parametrize(
    ("spec", "slots"),
    first_everyday(
        [
            # What cannot even be read needs no slot to be told so.
            ({"taskTemplate": "%"}, 0),
            ({"taskTemplate": "/////w=="}, 0),
            ({"taskTemplate": ""}, 0),
            ({"envVars": {"a=b": "c"}}, 1),
            ({"inputUri": "a\0b"}, 1),
        ],
        2,
    ),
)
async def test_a_spec_that_cannot_be_run_fails(
    bench: Bench, etcd: Etcd, prefix: bytes, spec: dict[str, Any], slots: int
) -> None:
    await bench.enqueue(ROOT)
    await alter(etcd, prefix, "r1-a0", lambda tree: tree["spec"].update(spec))
    async with bench.executor(slots=slots):
        phase, error = await error_of(bench.client, ROOT)
    assert (phase, error.code, error.kind) == (Phase.FAILED, "InvalidSpec", "USER")
    assert bench.parked() == []


async def test_one_action_that_no_process_can_be_made_of_ends_alone(bench: Bench) -> None:
    """As callers enqueue them, and again at a restart."""

    def nul(action: Action) -> None:
        action.task.spec.task_template.container.args.append("a\0b")

    def equals(action: Action) -> None:
        action.task.spec.task_template.container.env.add(key="a=b", value="c")

    def container(action: Action) -> None:
        action.task.spec.task_template.type = "raw-container"

    def negative(action: Action) -> None:
        action.task.spec.task_template.metadata.timeouts.deadline.seconds = -(2**63)

    def endless(action: Action) -> None:
        action.task.spec.task_template.metadata.retries.backoff.factor = float("nan")

    changes = [nul, equals, container, negative, endless]
    for number, change in enumerate(changes[:3]):
        await bench.enqueue(ActionId("p", "d", f"run{number}", "a0", "o"), change=change)
    async with bench.executor():
        await bench.enqueue(OTHER)
        for number, change in enumerate(changes[3:], start=3):
            await bench.enqueue(ActionId("p", "d", f"run{number}", "a0", "o"), change=change)
        for number in range(len(changes)):
            action_id = ActionId("p", "d", f"run{number}", "a0", "o")
            phase, error = await error_of(bench.client, action_id)
            assert (phase, error.code, error.kind) == (Phase.FAILED, "InvalidSpec", "USER")
            assert error.message.startswith("spec.taskTemplate.")
        await until(bench.client, OTHER, Phase.RUNNING)
    assert bench.client.containment.failures == {}


async def test_a_time_that_overflows_is_no_limit(bench: Bench) -> None:
    """315576000000 s is what a Duration can hold."""
    most = 315_576_000_000
    async with bench.executor():
        await bench.enqueue(ROOT, change=limited(run=most, queued=most, deadline=most))
        condition = flyte.condition(named("w1"), "a0")
        condition.condition.timeout.seconds = most
        await bench.client.enqueue(condition)
        await until(bench.client, ROOT, Phase.RUNNING)
        await until(bench.client, named("w1"), Phase.PAUSED)
        bench.attempts.finish("r1-a0")
        assert (await until(bench.client, ROOT)).phase is Phase.SUCCEEDED
    assert bench.client.containment.failures == {}


async def test_a_condition_that_cannot_be_read_fails(
    bench: Bench, etcd: Etcd, prefix: bytes
) -> None:
    async with bench.executor():
        await bench.enqueue(ROOT)
        for name, change in (
            ("w1", {"conditionSpec": "%"}),
            ("w2", {"conditionSpec": "////"}),
        ):
            await bench.client.enqueue(flyte.condition(named(name), "a0"))
            await until(bench.client, named(name), Phase.PAUSED)
            await alter(etcd, prefix, f"r1-{name}", lambda tree: tree["spec"].update(change))  # noqa: B023
        late = flyte.condition(named("w3"), "a0")
        late.condition.timeout.seconds = -1
        await bench.client.enqueue(late)
        phase, error = await error_of(bench.client, named("w3"))
        assert (phase, error.code) == (Phase.FAILED, "InvalidSpec")
        assert "spec.conditionSpec.timeout" in error.message
    async with bench.executor():
        for name in ("w1", "w2"):
            phase, error = await error_of(bench.client, named(name))
            assert (phase, error.code) == (Phase.FAILED, "InvalidSpec")


async def test_an_object_that_says_that_it_is_another_is_refused_and_others_run(
    bench: Bench, etcd: Etcd, prefix: bytes
) -> None:
    key = prefix + b"flyte/r1-a0"
    await bench.enqueue(ROOT)
    await bench.enqueue(OTHER)
    await alter(etcd, prefix, "r1-a0", lambda tree: tree["spec"].update(actionName="c9"))
    with capture_logs() as logs:
        async with bench.executor():
            await until(bench.client, OTHER, Phase.RUNNING)
            refused = [line["key"] for line in logs if line["event"] == "action_refused"]
            assert refused == [key.decode()]
            assert bench.parked() == []
    assert bench.attempts.begun == ["other-a0"]


async def test_what_becomes_unreadable_is_parked_and_goes_on_when_it_is_readable(
    bench: Bench, etcd: Etcd, prefix: bytes
) -> None:
    key = prefix + b"flyte/r1-a0"
    async with bench.executor(slots=1):
        await bench.enqueue(OTHER)
        await until(bench.client, OTHER, Phase.RUNNING)
        await bench.enqueue(ROOT)
        await until(bench.client, ROOT, Phase.QUEUED)
        (kv,) = (await etcd.range(KeyRange.of_key(key))).kvs
        await etcd.put(key, b"{")
        bench.attempts.finish("other-a0")
        await eventually(lambda: ("action", "flyte/r1-a0") in bench.parked())
        await etcd.put(key, kv.value)
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.attempts.finish("r1-a0")
        await until(bench.client, ROOT)
        await eventually(lambda: bench.parked() == [])


async def test_an_error_of_any_size_and_content_is_reported(bench: Bench) -> None:
    async with bench.executor():
        await bench.enqueue(ROOT)
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.attempts.fail("r1-a0", "\0\x1b" * 2_000_000, recoverable=False)
        phase, error = await error_of(bench.client, ROOT)
    assert phase is Phase.FAILED
    assert len(error.message) <= 32 * 1024


@pytest.mark.parametrize(
    "error",
    first_everyday(
        [
            ValueError("65 is not a valid Signals"),
            OSError(errno.ELOOP, "links"),
            OverflowError("much"),
        ]
    ),
)
async def test_an_outcome_that_nobody_can_read_is_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It does not stay RUNNING; the machine's trouble is another matter."""
    troubles: list[Exception] = [OSError(errno.EMFILE, "descriptors"), error]

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise troubles.pop(0) if len(troubles) > 1 else troubles[0]

    monkeypatch.setattr(outcome, "outcome_of", fail)
    async with bench.executor():
        await bench.enqueue(ROOT, change=limited(retries=1))
        for attempt in (1, 2):
            await eventually(lambda: bench.attempts.started == attempt)  # noqa: B023
            bench.attempts.finish("r1-a0")
        phase, state = await error_of(bench.client, ROOT)
    assert (phase, state.code, state.kind) == (Phase.FAILED, "OutcomeUnreadable", "SYSTEM")
    assert str(error) in state.message


async def test_an_object_without_room_for_a_report_is_parked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that never fits is not made for ever while a slot is held."""
    put_status = bench.client.put_status

    async def refuse(action_id: Any, *args: Any, **kwargs: Any) -> Any:
        if action_id.run == "r1":
            raise RequestTooLarge("the object is full")
        return await put_status(action_id, *args, **kwargs)

    monkeypatch.setattr(bench.client, "put_status", refuse)
    async with bench.executor(slots=1):
        await bench.enqueue(ROOT)
        await eventually(lambda: ("action", "flyte/r1-a0") in bench.parked())
        await bench.enqueue(OTHER)
        await until(bench.client, OTHER, Phase.RUNNING)


async def test_another_incarnation_is_run_and_the_first_one_ended(
    bench: Bench, etcd: Etcd, prefix: bytes
) -> None:
    async with bench.executor():
        await bench.enqueue(ROOT)
        await until(bench.client, ROOT, Phase.RUNNING)
        first = await bench.client.get_task_action(ROOT)

        def again(tree: dict[str, Any]) -> None:
            tree["metadata"]["uid"] = "another"
            del tree["status"]

        # As if the deletion had never been told.
        await alter(etcd, prefix, "r1-a0", again)
        await eventually(lambda: bench.attempts.ended == ["r1-a0"])
        await eventually(lambda: bench.attempts.started == 2)
        second = await until(bench.client, ROOT, Phase.RUNNING)
        assert second.metadata.uid != first.metadata.uid


async def test_an_update_touches_its_own_entry_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait: with 10,000 in the queue as with one."""
    asked: list[str] = []
    order = Board.order

    def count(board: Board, name: str) -> tuple[int, int]:
        asked.append(name)
        return order(board, name)

    async with bench.executor(slots=0) as executor:
        await bench.enqueue(ROOT)
        await until(bench.client, ROOT, Phase.QUEUED)
        known = executor._shared.board.get("flyte/r1-a0")
        assert known is not None
        for number in range(10_000):
            executor._shared.board.note(
                msgspec.structs.replace(known.update, name=f"r2-c{number}", uid=str(number))
            )
            executor._shared.schedule.ready(f"r2-c{number}", (0, number))
        await executor._start_ready()
        monkeypatch.setattr(Board, "order", count)
        executor.intake.note(
            msgspec.structs.replace(known.update, revision=known.update.revision + 1)
        )
        await executor._start_ready()
        assert set(asked) <= {"flyte/r1-a0"}
        assert len(asked) <= 2
