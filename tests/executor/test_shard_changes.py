"""Random changes of shards and processes, while actions are enqueued: each of them is run."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from etcd_actions import ActionId, Phase
from etcd_actions.errors import EtcdActionsError
from etcd_actions.etcd.api import Etcd
from etcd_actions.shards.shard_range import split_boundary
from tests.executor.fakes import Bench
from tests.executor.tasks import until
from tests.executor.test_shards import process
from tests.pipeline.sharding import root, sharing
from tests.pipeline.test_reshaping import reshaper, run_of
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory(jumps=False)

LETTERS = "1ajrstxz"
STEPS = 14


class World:
    """Processes with executors, and the actions that they are to run."""

    def __init__(self, etcd: Etcd, prefix: bytes, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.actions: list[ActionId] = []
        self._etcd, self._prefix, self._directory = etcd, prefix, directory
        self._benches: dict[int, Bench] = {}
        self._stops: dict[int, trio.Event] = {}

    async def run_process(self, *, task_status: trio.TaskStatus[None]) -> None:
        """A process, until it is stopped; its tasks take a while each."""
        number, stop = len(self._stops), trio.Event()
        self._stops[number] = stop
        directory = self._directory / str(number)
        slots = self.random.choice([1, 2])
        async with process(self._etcd, self._prefix, directory, slots=slots) as (bench, _):
            self._benches[number] = bench
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._finish_tasks, bench)
                await stop.wait()
                nursery.cancel_scope.cancel("stopped")
            del self._benches[number]

    async def _finish_tasks(self, bench: Bench) -> None:
        while True:
            await trio.sleep(0.02 + self.random.random() * 0.3)
            running = [name for name in bench.attempts.begun if not bench.attempts.is_over(name)]
            if running:
                bench.attempts.finish(self.random.choice(running))

    async def enqueue(self) -> None:
        bench = self.random.choice(list(self._benches.values()))
        run = f"r{self.random.choice(LETTERS)}{self.random.choice(LETTERS)}"
        action = root(run)
        if action in self.actions:
            action = ActionId("p", "d", run, f"c{len(self.actions)}")
        # The parent may have ended: then a child is refused.
        with suppress(EtcdActionsError):
            await bench.enqueue(action, "" if action == root(run) else "a0")
            self.actions.append(action)

    async def join(self, nursery: trio.Nursery) -> None:
        if len(self._benches) < 3:
            await nursery.start(self.run_process)

    async def leave(self) -> None:
        if len(self._benches) > 1:
            number = self.random.choice(list(self._benches))
            self._stops[number].set()
            while number in self._benches:  # noqa: ASYNC110 - its end takes its time
                await trio.sleep(0.01)

    async def reshape(self) -> None:
        """Split an owned shard, or merge two neighbours, if there are such."""
        client = self.random.choice(list(self._benches.values())).client
        watches = sorted(run_of(client).watches.values(), key=lambda each: each.shard.range)
        owned = [each for each in watches if each.leads and each.is_to_stay]
        with suppress(EtcdActionsError):
            if self.random.random() < 0.6 and owned:
                one = self.random.choice(owned)
                suffixes = [f"flyte/r{a}{b}-a0".encode() for a in LETTERS for b in LETTERS]
                if (cut := split_boundary(one.shard.range, suffixes)) is not None:
                    await reshaper(client)._replace([one], [cut])
                return
            for one, other in pairwise(owned):
                if one.shard.range.end == other.shard.range.start:
                    await reshaper(client)._replace([one, other], [])
                    return

    def stop_all(self) -> None:
        for stop in self._stops.values():
            stop.set()


@pytest.mark.parametrize("seed", first_everyday([2, 4, 0, 1, 3, 5, 6, 7], 1))
async def test_each_action_is_run_whatever_becomes_of_its_shard(
    etcd: Etcd, prefix: bytes, tmp_path: Path, seed: int
) -> None:
    world = World(etcd, prefix, tmp_path, seed)
    async with sharing(etcd, prefix, starts=False) as reader, trio.open_nursery() as nursery:
        await nursery.start(world.run_process)
        steps: list[Callable[[], Awaitable[None]]] = [
            world.enqueue,
            world.reshape,
            partial(world.join, nursery),
            world.leave,
        ]
        for _ in range(STEPS):
            for _ in range(3):
                await world.enqueue()
            await world.random.choice(steps)()
            await trio.sleep(world.random.random() * 0.5)
        for action in world.actions:
            with trio.fail_after(60):
                assert (await until(reader, action)).phase is Phase.SUCCEEDED, action
        world.stop_all()
