"""Several workers on one etcd, each with a state directory of its own."""

from __future__ import annotations

import errno
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import fsspec
import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument, ExecutionError
from flyteidl2.core.tasks_pb2 import Resources
from flyteidl2.task.run_pb2 import RunSpec

from etcd_actions import ActionId, ActionsClient, Phase
from etcd_actions.actions.status import ActionStatus
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import Etcd, Lease
from etcd_actions.executor import action_run, open_executor
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory, directory_of
from etcd_actions.executor.attempts.start_errors import not_started
from etcd_actions.executor.lost_attempts import WORKER_LOST, WORKER_STOPPED
from etcd_actions.model.earlier_attempts import earlier_attempts
from etcd_actions.storage.claims import Claims
from tests.executor.attempts import lives
from tests.executor.fakes import Bench
from tests.executor.tasks import ROOT, Machine, named, until
from tests.executor.workers import GIBIBYTE, FakeWorker, fake_worker, offer
from tests.support.waiting import eventually, eventually_holds

GPU = Resources.GPU


def requests(action: Action, name: Resources.ResourceName, value: str) -> None:
    action.task.spec.task_template.container.resources.requests.add(name=name, value=value)


def started(worker: FakeWorker) -> list[str]:
    return worker.attempts.begun


async def test_an_action_runs_where_it_fits(
    etcd: Etcd, prefix: bytes, bench: Bench, tmp_path: Path
) -> None:
    async with (
        fake_worker(etcd, prefix, tmp_path / "small") as small,
        fake_worker(etcd, prefix, tmp_path / "big", offer(gpus=1)) as big,
    ):
        for number in range(3):
            await bench.enqueue(
                ActionId("p", "d", f"r{number}", "a0", "o"),
                change=partial(requests, name=GPU, value="1"),
            )
            await eventually(lambda: len(started(big)) > number)  # noqa: B023 - waited for at once
            big.attempts.finish(f"r{number}-a0")
        assert started(small) == []
        assert small.executor.statistics().unplaced == 0


async def test_what_does_not_fit_now_waits_and_others_pass_it(
    etcd: Etcd, prefix: bytes, bench: Bench, tmp_path: Path
) -> None:
    async with fake_worker(etcd, prefix, tmp_path / "w", offer(memory=4 * GIBIBYTE)) as worker:
        three = partial(requests, name=Resources.MEMORY, value="3Gi")
        await bench.enqueue(ROOT, change=three)
        await eventually(lambda: started(worker) == ["r1-a0"])
        second, third = (ActionId("p", "d", run, "a0", "o") for run in ("r2", "r3"))
        await bench.enqueue(second, change=three)
        await eventually(lambda: worker.executor.statistics().queued == 1)
        await bench.enqueue(third, change=partial(requests, name=Resources.MEMORY, value="1Gi"))
        await eventually(lambda: started(worker) == ["r1-a0", "r3-a0"])
        worker.attempts.finish("r1-a0")
        await eventually(lambda: started(worker) == ["r1-a0", "r3-a0", "r2-a0"])
        assert worker.executor.statistics().queued == 0


async def test_an_action_that_began_a_moment_ago_is_not_begun_again(
    etcd: Etcd,
    prefix: bytes,
    bench: Bench,
    client: ActionsClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stays among the blocked ones until its work has read it."""
    other = ActionId("p", "d", "r2", "a0", "o")
    async with fake_worker(etcd, prefix, tmp_path / "w") as worker:
        await bench.enqueue(ROOT)
        await eventually(lambda: started(worker) == ["r1-a0"])
        with monkeypatch.context() as patched:
            patched.setattr(worker.executor.placement, "unblocked", lambda: ["flyte/r1-a0"])
            await bench.enqueue(other)
            await eventually(lambda: started(worker) == ["r1-a0", "r2-a0"])
        for name in ("r1-a0", "r2-a0"):
            worker.attempts.finish(name)
        for each in (ROOT, other):
            await until(client, each, Phase.SUCCEEDED)


async def test_what_fits_no_worker_says_so_until_one_joins(
    etcd: Etcd, prefix: bytes, bench: Bench, client: ActionsClient, tmp_path: Path
) -> None:
    async with fake_worker(etcd, prefix, tmp_path / "small", ttl=1) as small:
        await bench.enqueue(ROOT, change=partial(requests, name=GPU, value="2"))
        action = await until(client, ROOT, Phase.WAITING_FOR_RESOURCES)
        assert any("--gpus 2" in each.message for each in action.status.conditions)
        await eventually(lambda: small.executor.statistics().unplaced == 1)
        async with fake_worker(etcd, prefix, tmp_path / "big", offer(gpus=2)) as big:
            await eventually(lambda: started(big) == ["r1-a0"])
            big.attempts.finish("r1-a0")
            await until(client, ROOT, Phase.SUCCEEDED)
    assert started(small) == []


async def test_the_queue_of_a_run_and_of_a_task_is_a_pool(
    etcd: Etcd, prefix: bytes, bench: Bench, tmp_path: Path
) -> None:
    def in_queue(action: Action) -> None:
        action.task.queue = "own"

    async with (
        fake_worker(etcd, prefix, tmp_path / "a", offer(pools=("of-run",))) as of_run,
        fake_worker(etcd, prefix, tmp_path / "b", offer(pools=("own",))) as own,
    ):
        await bench.enqueue(ROOT, run_spec=RunSpec(queue="of-run"))
        await eventually(lambda: started(of_run) == ["r1-a0"])
        await bench.enqueue(named("c1"), "a0", change=in_queue)
        await bench.enqueue(named("c2"), "a0")
        await eventually(lambda: started(own) == ["r1-c1"])
        # A child of neither has the queue of its run.
        await eventually(lambda: started(of_run) == ["r1-a0", "r1-c2"])


async def test_each_action_starts_once_and_no_worker_starves(
    etcd: Etcd, prefix: bytes, bench: Bench, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                fake_worker(etcd, prefix, tmp_path / f"w{number}", offer(slots=3))
            )
            for number in range(3)
        ]
        nursery = await stack.enter_async_context(trio.open_nursery())

        async def finish_each(worker: FakeWorker) -> None:
            done = 0
            while True:
                for name in started(worker)[done:]:
                    await trio.sleep(0.01)
                    worker.attempts.finish(name)
                    done += 1
                await trio.sleep(0.005)

        for worker in workers:
            nursery.start_soon(finish_each, worker)
        for number in range(30):
            await bench.enqueue(ActionId("p", "d", f"r{number}", "a0", "o"))

        def ended() -> int:
            return sum(sum(w.executor.statistics().ended.values()) for w in workers)

        await eventually(lambda: ended() == 30)
        starts = Counter(name for worker in workers for name in started(worker))
        assert set(starts.values()) == {1}
        assert len(starts) == 30
        assert all(len(started(worker)) >= 3 for worker in workers)
        nursery.cancel_scope.cancel("all have ended")


async def test_another_worker_starts_the_next_attempt_of_a_lost_one(
    etcd: Etcd, prefix: bytes, bench: Bench, client: ActionsClient, tmp_path: Path
) -> None:
    dies = trio.Event()

    async def first_worker(task_status: trio.TaskStatus[FakeWorker]) -> None:
        async with fake_worker(etcd, prefix, tmp_path / "a") as worker:
            task_status.started(worker)
            await dies.wait()

    async with trio.open_nursery() as nursery:
        first: FakeWorker = await nursery.start(first_worker)
        await bench.enqueue(ROOT)
        await until(client, ROOT, Phase.RUNNING)
        async with fake_worker(etcd, prefix, tmp_path / "b", ttl=1) as other:
            dies.set()
            await eventually(lambda: started(other) == ["r1-a0"])
            assert started(first) == ["r1-a0"]
            action = await until(client, ROOT, Phase.RUNNING)
            assert action.status.attempts == 2
            assert [each.code for each in earlier_attempts(action)] == [WORKER_LOST]
            # The template allows one attempt: the lost one does not count.
            other.attempts.fail("r1-a0")
            action = await until(client, ROOT)
            assert (action.phase, action.status.attempts) == (Phase.FAILED, 2)


async def test_a_drained_worker_hands_over_what_does_not_end(
    etcd: Etcd, prefix: bytes, bench: Bench, client: ActionsClient, tmp_path: Path
) -> None:
    async with fake_worker(etcd, prefix, tmp_path / "a") as stops:
        await bench.enqueue(ROOT)
        await bench.enqueue(ActionId("p", "d", "r2", "a0", "o"))
        await eventually(lambda: len(started(stops)) == 2)
        await until(client, ROOT, Phase.RUNNING)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stops.executor.handover.drain, 1.0)
            await eventually(lambda: stops.executor.handover.draining)
            stops.attempts.finish("r2-a0")
            await until(client, ActionId("p", "d", "r2", "a0", "o"), Phase.SUCCEEDED)
        assert stops.attempts.ended == ["r1-a0"]
        action = await client.get_task_action(ROOT)
        assert (action.phase, action.status.attempts) == (Phase.QUEUED, 2)
        assert [each.code for each in earlier_attempts(action)] == [WORKER_STOPPED]

        async def unclaimed() -> bool:
            return await client.claimed_by(ROOT) == ""

        await eventually_holds(unclaimed)
        async with fake_worker(etcd, prefix, tmp_path / "b") as other:
            await eventually(lambda: started(other) == ["r1-a0"])


async def test_outputs_may_be_in_an_object_store(
    etcd: Etcd, prefix: bytes, bench: Bench, client: ActionsClient, tmp_path: Path
) -> None:
    def in_store(action: Action) -> None:
        action.run_output_base = "memory://bucket/r1"

    async with fake_worker(etcd, prefix, tmp_path / "w") as worker:
        await bench.enqueue(ROOT, change=in_store)
        await eventually(lambda: started(worker) == ["r1-a0"])
        error = ContainerError(code="Full", message="no", origin=ExecutionError.USER)
        document = ErrorDocument(error=error).SerializeToString()
        outputs = (await client.get_task_action(ROOT)).outputs_of(1)
        fsspec.filesystem("memory").pipe_file(f"{outputs}/error.pb", document)
        worker.attempts.end_now("r1-a0")
        action = await until(client, ROOT)
    assert action.status.error_state is not None
    assert action.status.error_state.code == "Full"


async def test_nothing_starts_while_the_claims_are_not_sure(
    etcd: Etcd,
    prefix: bytes,
    bench: Bench,
    client: ActionsClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What started then would be killed at once, by the clock of its own worker."""
    renew = etcd.lease_keep_alive
    lost = True

    async def lose_answer(lease: int) -> Lease:
        renewed = await renew(lease)
        if lost:
            raise Unavailable("the answer is lost")
        return renewed

    monkeypatch.setattr(etcd, "lease_keep_alive", lose_answer)
    async with fake_worker(etcd, prefix, tmp_path / "w", ttl=2) as worker:
        await eventually(lambda: worker.executor.handover.starts_nothing)
        await bench.enqueue(ROOT)
        await eventually(lambda: worker.executor.statistics().queued == 1)
        assert started(worker) == []
        lost = False
        await eventually(lambda: started(worker) == ["r1-a0"])
        action = await until(client, ROOT, Phase.RUNNING)
        assert action.status.attempts == 1


async def test_an_attempt_whose_claim_became_unsure_is_not_started(
    etcd: Etcd,
    prefix: bytes,
    bench: Bench,
    client: ActionsClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between its claim and its RUNNING it is left; after RUNNING the next attempt follows."""
    answers = iter([False, True, False])
    monkeypatch.setattr(Claims, "are_sure", property(lambda _: next(answers, True)))
    monkeypatch.setattr(action_run, "_ELSEWHERE_FIRST", 0.1)
    async with fake_worker(etcd, prefix, tmp_path / "w") as worker:
        monkeypatch.setattr(type(worker.executor.handover), "starts_nothing", False)
        await bench.enqueue(ROOT)
        await eventually(lambda: started(worker) == ["r1-a0"])
        action = await until(client, ROOT, Phase.RUNNING)
    assert action.status.attempts == 2
    [earlier] = earlier_attempts(action)
    assert (earlier.code, earlier.kind) == ("NotStarted", "SYSTEM")
    assert "could not renew its claims" in earlier.message


async def test_an_action_that_cannot_be_started_is_left_to_others(
    etcd: Etcd, prefix: bytes, bench: Bench, client: ActionsClient, tmp_path: Path
) -> None:
    def refuse(name: str) -> None:
        raise not_started(name, errno.ENOSPC, "no space", "state")

    async with fake_worker(etcd, prefix, tmp_path / "full") as full:
        full.attempts.on_begin = refuse
        await bench.enqueue(ROOT)
        await eventually(lambda: full.executor.statistics().retries == 1)
        async with fake_worker(etcd, prefix, tmp_path / "b") as other:
            await eventually(lambda: started(other) == ["r1-a0"])
            # The template allows one attempt: none of those that did not start counts.
            other.attempts.finish("r1-a0")
            action = await until(client, ROOT)
    assert action.phase is Phase.SUCCEEDED
    assert {each.code for each in earlier_attempts(action)} == {"NotStarted"}


@pytest.mark.slow
async def test_an_attempt_ends_before_its_claim_is_released(
    client: ActionsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected failure parks the action: its process must not run on without the claim."""
    machine = Machine(tmp_path)
    failures = iter([RuntimeError("a defect")])

    def note_start(place: AttemptDirectory, seconds: float) -> None:
        for failure in failures:
            while not machine.starts("a0"):
                time.sleep(0.01)
            raise failure

    monkeypatch.setattr(AttemptDirectory, "note_start", note_start)
    settings = replace(machine.settings(), offer=offer())
    script = 'if [ "$FLYTE_ATTEMPT_NUMBER" = 0 ]; then exec sleep 1000; fi'
    async with open_executor(client, settings):
        await client.enqueue(machine.task(ROOT, script))
        action = await until(client, ROOT)
        first, second = machine.starts("a0")
        assert not lives(int(first.rpartition(".")[2]))
    assert second.startswith("a0.1.")
    assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 2)
    assert [each.code for each in earlier_attempts(action)] == [WORKER_LOST]


@pytest.mark.slow
async def test_an_attempt_that_ended_with_its_machine_is_lost(
    client: ActionsClient, tmp_path: Path
) -> None:
    """Neither worker, guard nor supervisor was left to note that."""
    machine = Machine(tmp_path)
    settings = replace(machine.settings(), offer=offer())
    await client.enqueue(machine.task(ROOT, "exit 0"))
    action = await client.put_status(ROOT, 1, ActionStatus(Phase.RUNNING))
    place = directory_of(settings.state_dir, action.incarnation, 1)
    place.make()
    place.note_object()
    place.note_started()
    async with open_executor(client, settings):
        action = await until(client, ROOT)
    # The template allows one attempt.
    assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 2)
    assert [each.code for each in earlier_attempts(action)] == [WORKER_LOST]
