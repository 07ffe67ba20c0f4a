"""Measures an update in the executor's scheduling while many actions wait for a slot.

    .venv/bin/python -m scripts.bench.scheduling [--queued 1000 10000]

No etcd and no processes: waiting actions are updated again and again, and after each the
executor looks for what it can start.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import trio

from etcd_actions import ActionId, ActionUpdate, Phase
from etcd_actions._internal.clock import Clock
from etcd_actions._internal.containment import Containment
from etcd_actions.errors import NotFound
from etcd_actions.executor import ExecutorSettings
from etcd_actions.executor.executor import Executor
from etcd_actions.shards import EVERYTHING, ShardRange


class _Client:
    """Knows nothing: only the scheduling is measured."""

    namespace = "flyte"

    def __init__(self) -> None:
        self.containment = Containment()
        self.work = self

    def ranges(self) -> frozenset[ShardRange]:
        """There are no shards."""
        return frozenset({EVERYTHING})

    async def get_task_action(self, action_id: ActionId) -> Any:
        """There is none."""
        raise NotFound("no test reads it")


def _update(number: int, revision: int) -> ActionUpdate:
    name = f"c{number}"
    return ActionUpdate(
        key=f"/x/flyte/r1-{name}".encode(),
        namespace="flyte",
        name=f"r1-{name}",
        action_id=ActionId("p", "d", "r1", name),
        parent="",
        phase=Phase.QUEUED,
        attempts=1,
        cache_status=0,
        output_uri="",
        uid=name,
        create_revision=number + 1,
        revision=revision,
        recorded=False,
        action_type="task",
    )


async def measure(queued: int, updates: int) -> list[float]:
    """Milliseconds of processor time of each of some updates, with so many actions queued."""
    with tempfile.TemporaryDirectory() as directory:
        settings = ExecutorSettings(
            python=Path(sys.executable),
            service="127.0.0.1:1",
            state_dir=Path(directory),
            slots=0,
        )
        async with trio.open_nursery() as nursery:
            client = cast(Any, _Client())
            executor = Executor(
                client,
                cast(Any, None),
                cast(Any, None),
                settings,
                nursery,
                Clock(),
                cast(Any, None),
            )
            executor.own.is_synced = True
            for number in range(queued):
                executor.intake.note(_update(number, number + 1), live=True)
            await executor._start_ready()
            took = []
            for revision in range(updates):
                update = msgspec.structs.replace(
                    _update(revision * 7919 % queued, 0), revision=queued + revision + 1
                )
                began = time.thread_time()
                executor.intake.note(update, live=True)
                await executor._start_ready()
                took.append(1000 * (time.thread_time() - began))
            nursery.cancel_scope.cancel("measured")
    return took


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--queued", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--updates", type=int, default=1_000)
    options = parser.parse_args()
    print("| queued | CPU ms an update, p50 | p99 | most |")
    print("| ---: | ---: | ---: | ---: |")
    for queued in options.queued:
        took = sorted(trio.run(measure, queued, options.updates))
        p99 = took[int(len(took) * 0.99)]
        print(f"| {queued:,} | {statistics.median(took):.3f} | {p99:.3f} | {took[-1]:.3f} |")


if __name__ == "__main__":
    main()
