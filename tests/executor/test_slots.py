"""Who gets a slot of a real executor: runs take turns, and keep to limits of their own."""

from __future__ import annotations

import pytest
from flyteidl2.task.run_pb2 import RunSpec

from etcd_actions import ActionId, Phase
from tests.executor.fakes import Bench
from tests.executor.tasks import until
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory(jumps=False)


def of(run: str, name: str) -> ActionId:
    return ActionId("p", "d", run, name, "o")


async def test_a_late_run_begins_before_the_rest_of_a_wide_one(bench: Bench) -> None:
    async with bench.executor(slots=2):
        await bench.enqueue(of("wide", "a0"))
        await eventually(lambda: bench.attempts.begun == ["wide-a0"])
        for number in range(6):
            await bench.enqueue(of("wide", f"c{number}"), "a0")
        await eventually(lambda: len(bench.attempts.begun) == 3)
        await bench.enqueue(of("late", "a0"))
        await until(bench.client, of("late", "a0"), Phase.QUEUED)
        bench.attempts.finish(bench.attempts.begun[1])
        await eventually(lambda: len(bench.attempts.begun) == 4)
        assert bench.attempts.begun[3] == "late-a0"


async def test_a_run_keeps_to_the_limit_that_its_root_was_given(bench: Bench) -> None:
    async with bench.executor(slots=4) as executor:
        await bench.enqueue(of("r1", "a0"), run_spec=RunSpec(max_action_concurrency=1))
        await eventually(lambda: bench.attempts.begun == ["r1-a0"])
        for number in range(2):
            await bench.enqueue(of("r1", f"c{number}"), "a0")
        await eventually(lambda: len(bench.attempts.begun) == 2)
        # The root waits and holds none: one of the two has the only slot of the run.
        for name in ("c0", "c1"):
            action = await bench.client.get_task_action(of("r1", name))
            assert action.metadata.annotations["etcd-actions.io/max-action-concurrency"] == "1"
        await bench.enqueue(of("r2", "a0"))
        await eventually(lambda: bench.attempts.begun[2:] == ["r2-a0"])
        assert executor.statistics().running == 3
        bench.attempts.finish(bench.attempts.begun[1])
        await eventually(lambda: len(bench.attempts.begun) == 4)
        assert set(bench.attempts.begun) == {"r1-a0", "r1-c0", "r1-c1", "r2-a0"}
