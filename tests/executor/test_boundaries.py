"""Whatever goes wrong with one action, the others go on, and so does the executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from etcd_actions import ActionId, ActionUpdate, Phase
from etcd_actions.etcd import session
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.executor import action_run
from etcd_actions.executor.attempts import attempt_command, outcome
from etcd_actions.executor.reports import Reports
from etcd_actions.executor.scheduling import capacity
from etcd_actions.executor.scheduling.board import Board
from etcd_actions.executor.visits import Visits
from etcd_actions.pipeline.processor import Processor
from tests._internal.test_containment import UNEXPECTED
from tests.executor.fakes import Bench
from tests.executor.tasks import named, until
from tests.support import flyte
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory(jumps=False)

VICTIM = ActionId("p", "d", "victim", "a0", "o")
OTHER = ActionId("p", "d", "other", "a0", "o")
IDENTITY = "flyte/victim-a0"


class Fault:
    """Raises for one action, as long as it is switched on."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.on = True
        self.raised = 0

    def __call__(self, name: str) -> None:
        if self.on and name == "victim-a0":
            self.raised += 1
            raise self.error


async def other_goes_on(bench: Bench) -> None:
    """Another action comes, and is run to its end."""
    await bench.enqueue(OTHER)
    await until(bench.client, OTHER, Phase.RUNNING)
    bench.attempts.finish("other-a0")
    assert (await until(bench.client, OTHER)).phase is Phase.SUCCEEDED


def of_victim(function: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    """A function that fails where one of its arguments is about the victim."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for each in args:
            name = getattr(each, "metadata", each)
            if getattr(name, "name", name) == "victim-a0":
                fault("victim-a0")
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("error", UNEXPECTED)
@pytest.mark.parametrize("where", ["begin", "wait", "build", "outcome", "report"])
async def test_whatever_is_raised_while_an_action_runs_parks_it_alone(
    bench: Bench, error: BaseException, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot is free for others, its claim is let go, and it goes on when the fault is over."""
    fault = Fault(error)
    if where == "begin":
        bench.attempts.on_begin = fault
    elif where == "wait":
        bench.attempts.on_wait = fault
    elif where == "build":
        build = of_victim(attempt_command.build_command, fault)
        monkeypatch.setattr(action_run, "build_command", build)
    elif where == "outcome":

        def look(place: Any, outputs: Any, **kwargs: Any) -> Any:
            if outputs.parent.parent.name == "victim":
                fault("victim-a0")
            return found(place, outputs, **kwargs)

        found = outcome.outcome_of
        monkeypatch.setattr(outcome, "outcome_of", look)
    else:
        report = of_victim(Reports.report, fault)
        monkeypatch.setattr(Reports, "report", report)
    async with bench.executor(slots=1) as executor:
        await bench.enqueue(VICTIM)
        if where == "outcome":
            await until(bench.client, VICTIM, Phase.RUNNING)
            bench.attempts.finish("victim-a0")
        await eventually(lambda: fault.raised >= 2)
        await eventually(lambda: ("action", IDENTITY) in bench.parked())
        await other_goes_on(bench)
        fault.on = False
        if where != "outcome":
            await until(bench.client, VICTIM, Phase.RUNNING)
            bench.attempts.finish("victim-a0")
        assert (await until(bench.client, VICTIM)).phase is Phase.SUCCEEDED
        await eventually(lambda: not bench.parked())
        await eventually(lambda: executor.statistics().running == 0)
    assert bench.client.containment.failures["action"] == fault.raised


async def test_what_is_parked_and_then_aborted_is_parked_no_more(bench: Bench) -> None:
    """Its process, which nobody follows then, is ended."""
    fault = Fault(RuntimeError("no"))
    bench.attempts.on_wait = fault
    async with bench.executor():
        await bench.enqueue(VICTIM)
        await eventually(lambda: ("action", IDENTITY) in bench.parked())
        await bench.client.abort_action(VICTIM)
        await eventually(lambda: bench.attempts.ended[-1:] == ["victim-a0"])
        await eventually(lambda: not bench.parked())
    assert (await bench.client.get_task_action(VICTIM)).phase is Phase.ABORTED


@pytest.mark.parametrize("error", UNEXPECTED)
async def test_a_state_that_cannot_be_taken_in_is_tried_again(
    bench: Bench, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, note = Fault(error), Board.note

    def fail(board: Board, update: ActionUpdate) -> bool:
        fault(update.action_id.object_name)
        return note(board, update)

    monkeypatch.setattr(Board, "note", fail)
    async with bench.executor(slots=1):
        await bench.enqueue(VICTIM)
        await eventually(lambda: ("update", IDENTITY) in bench.parked())
        await other_goes_on(bench)
        fault.on = False
        await until(bench.client, VICTIM, Phase.RUNNING)
        assert bench.parked() == []


@pytest.mark.parametrize("error", UNEXPECTED)
async def test_a_condition_that_cannot_be_served_is_tried_again(
    bench: Bench, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, serve = Fault(error), Visits.serve_condition

    async def fail(conditions: Visits, action_id: ActionId) -> None:
        if action_id.name == "w1":
            fault("victim-a0")
        await serve(conditions, action_id)

    monkeypatch.setattr(Visits, "serve_condition", fail)
    async with bench.executor():
        await bench.enqueue(named("a0"))
        for name in ("w1", "w2"):
            await bench.client.enqueue(flyte.condition(named(name), "a0"))
        await until(bench.client, named("w2"), Phase.PAUSED)
        await eventually(lambda: ("action", "flyte/r1-w1") in bench.parked())
        fault.on = False
        await until(bench.client, named("w1"), Phase.PAUSED)
        await eventually(lambda: not bench.parked())


@pytest.mark.parametrize("error", UNEXPECTED)
async def test_an_action_that_cannot_be_queued_is_tried_again(
    bench: Bench, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(error)
    get = bench.client.get_task_action

    async def fail(action_id: Any) -> Any:
        if action_id.run == "victim":
            fault("victim-a0")
        return await get(action_id)

    async with bench.executor(slots=1):
        await bench.enqueue(OTHER)
        await until(bench.client, OTHER, Phase.RUNNING)
        monkeypatch.setattr(bench.client, "get_task_action", fail)
        await bench.enqueue(VICTIM)
        await eventually(lambda: ("action", IDENTITY) in bench.parked())
        fault.on = False
        await until(bench.client, VICTIM, Phase.QUEUED)
        bench.attempts.finish("other-a0")
        assert (await until(bench.client, OTHER)).phase is Phase.SUCCEEDED
        await until(bench.client, VICTIM, Phase.RUNNING)


@pytest.mark.parametrize("error", UNEXPECTED)
@pytest.mark.parametrize("loop", ["schedule", "claims", "updates"])
async def test_a_loop_that_fails_goes_on(
    bench: Bench, error: BaseException, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[int] = []

    def fail_once() -> None:
        if not failed:
            failed.append(1)
            raise error

    async with bench.executor() as executor:
        if loop == "schedule":
            take_due = executor._shared.schedule.take_due

            def due(now: float) -> Any:
                fail_once()
                return take_due(now)

            monkeypatch.setattr(executor._shared.schedule, "take_due", due)
        elif loop == "claims":

            def free(taken: set[str]) -> list[str]:
                fail_once()
                return []

            monkeypatch.setattr(executor._shared.schedule, "keep_elsewhere", free)
        else:
            place_of = executor.intake.note

            def note(update: ActionUpdate, *, live: bool = False) -> None:
                fail_once()
                place_of(update, live=live)

            monkeypatch.setattr(executor.intake, "note", note)
        await bench.enqueue(VICTIM)
        await eventually(lambda: bool(failed))
        await other_goes_on(bench)
        await until(bench.client, VICTIM, Phase.RUNNING)
    assert bench.client.containment.failures == {"executor": 1}


async def test_updates_that_end_are_asked_for_again(bench: Bench) -> None:
    """What came and went in between is noticed."""
    async with bench.executor() as executor:
        await bench.enqueue(VICTIM)
        await until(bench.client, VICTIM, Phase.RUNNING)
        (subscription,) = bench.client._subscribing.processors
        await bench.client.unsubscribe(subscription)
        await other_goes_on(bench)
        # A state that was never told: the snapshot lacks it.
        known = executor._shared.board.get("flyte/victim-a0")
        assert known is not None
        stale = named("gone")
        executor.intake.note(
            msgspec.structs.replace(
                known.update,
                key=known.update.key.replace(b"victim-a0", b"r1-gone"),
                name="r1-gone",
                action_id=stale,
                uid="gone",
            )
        )
        assert executor._shared.board.get("flyte/r1-gone") is not None
        subscription = next(
            each
            for each in bench.client._subscribing.processors
            if not each._ended and not each._closed
        )
        await bench.client.unsubscribe(subscription)
        await eventually(lambda: executor._shared.board.get("flyte/r1-gone") is None)
        assert executor._shared.board.get("flyte/victim-a0") is not None


async def test_a_measurement_that_fails_is_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(groups: set[int]) -> int:
        raise OSError("/proc is not what it was")

    monkeypatch.setattr(capacity, "memory_of", fail)
    async with bench.executor() as executor:
        monkeypatch.setattr(executor._shared.capacity, "_memory", 1)
        for name in ("one", "two"):
            await bench.enqueue(ActionId("p", "d", name, "a0", "o"))
        for name in ("one", "two"):
            await until(bench.client, ActionId("p", "d", name, "a0", "o"), Phase.RUNNING)
    assert bench.client.containment.failures["measurement"] >= 1


@pytest.mark.parametrize("error", UNEXPECTED)
async def test_a_renewal_of_the_claims_that_fails_is_done_again(
    bench: Bench, etcd: Etcd, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewals: list[int] = []
    keep_alive = etcd.lease_keep_alive

    async def fail_once(lease: int) -> Any:
        renewals.append(lease)
        if len(renewals) == 1:
            raise error
        return await keep_alive(lease)

    monkeypatch.setattr(session, "_RENEWALS", 100)
    monkeypatch.setattr(etcd, "lease_keep_alive", fail_once)
    async with bench.executor():
        await bench.enqueue(VICTIM)
        await until(bench.client, VICTIM, Phase.RUNNING)
        await eventually(lambda: len(renewals) >= 2)
        bench.attempts.finish("victim-a0")
        assert (await until(bench.client, VICTIM)).phase is Phase.SUCCEEDED
    assert bench.client.containment.failures == {"task": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((b"", b""), "'victim-a0', which has another key"),
        ((b'"project":"p"', b'"project":""'), "action_id.run.project: '' is not a valid name"),
        ((b'"domain":"d"', b'"domain":"a/b"'), "action_id.run.domain: 'a/b' is not a valid name"),
    ],
)
async def test_an_object_that_no_request_reads_is_refused(
    bench: Bench, etcd: Etcd, change: tuple[bytes, bytes], reason: str
) -> None:
    """It is logged once with its key; nothing is parked, and the key's own action runs later."""
    async with bench.executor() as executor:
        await bench.enqueue(VICTIM)
        await until(bench.client, VICTIM, Phase.RUNNING)
        (found,) = (await etcd.range(KeyRange.of_key(bench.client.key_of(VICTIM)))).kvs
        key, value = bench.client.key_of(OTHER), found.value
        if change[0]:
            value = value.replace(b"victim", b"other").replace(*change)
        with capture_logs() as lines:
            for _ in range(2):
                revision = (await etcd.put(key, value)).revision
                await eventually(lambda: key_is_at(bench, key, revision))  # noqa: B023
            refused = [each for each in lines if each["event"] == "action_refused"]
        assert [each["key"] for each in refused] == [key.decode()]
        assert reason in refused[0]["reason"]
        assert bench.client.containment.failures == {}
        assert bench.parked() == []
        assert executor._shared.board.get("flyte/other-a0") is None
        await etcd.delete(KeyRange.of_key(key))
        await other_goes_on(bench)
    assert bench.client.containment.failures == {}


def key_is_at(bench: Bench, key: bytes, revision: int) -> bool:
    """Whether the client has received a revision of a key."""
    processor = bench.client._processor
    assert isinstance(processor, Processor)
    return processor.index.revision_of(key) == revision
