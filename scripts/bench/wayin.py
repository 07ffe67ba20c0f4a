"""The way in of two versions, in turns: enqueues and status reports; prints a markdown table.

    git worktree add /tmp/old main
    .venv/bin/python -m scripts.bench.wayin --old /tmp/old

Each figure is of a process of its own that runs this file over one of the two trees; both
processes use one etcd, under prefixes of their own, one after the other, beginning with the other
one in each round. CPU is that of the process, without etcd. Figures are medians of the rounds,
ratios medians of the ratios within a round: what else runs on the machine shows in both sides.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import trio

import etcd_actions
from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.etcd import open_etcd
from etcd_actions.testing import EtcdProcess
from tests.support import flyte

_ROOT = ActionId("p", "d", "r1", "a0")
_HERE = Path(__file__).resolve().parents[2]
_WARM = 200


async def _enqueues(together: int, client: ActionsClient, count: int) -> tuple[float, float]:
    """Children of one parent."""
    await client.enqueue(flyte.task(_ROOT))
    await _measured(functools.partial(_enqueue, client, "w"), together, _WARM)
    return await _measured(functools.partial(_enqueue, client, "c"), together, count)


async def _reports(together: int, client: ActionsClient, count: int) -> tuple[float, float]:
    """Each of another action, which was enqueued by the same client."""
    await client.enqueue(flyte.task(_ROOT))
    await _measured(functools.partial(_enqueue, client, "c"), 256, count)
    return await _measured(functools.partial(_report, client, Phase.RUNNING), together, count)


async def _seconds(together: int, client: ActionsClient, count: int) -> tuple[float, float]:
    """Each of another action, and its second."""
    await _reports(together, client, count)
    return await _measured(functools.partial(_report, client, Phase.SUCCEEDED), together, count)


async def _lookups(together: int, client: ActionsClient, count: int) -> tuple[float, float]:
    """Single actions, read again and again."""
    await client.enqueue(flyte.task(_ROOT))
    await _measured(functools.partial(_enqueue, client, "c"), 256, 256)

    async def look(number: int) -> None:
        await client.get_task_action(_child("c", number % 256))

    return await _measured(look, together, count)


_PARTS: dict[str, Callable[[ActionsClient, int], Awaitable[tuple[float, float]]]] = {
    "enqueue, 256 in flight": functools.partial(_enqueues, 256),
    "enqueue, 1 in flight": functools.partial(_enqueues, 1),
    "status, 64 in flight": functools.partial(_reports, 64),
    "second status, 64 in flight": functools.partial(_seconds, 64),
    "lookup, 64 in flight": functools.partial(_lookups, 64),
}


def _child(kind: str, number: int) -> ActionId:
    return ActionId("p", "d", "r1", f"{kind}{number}")


async def _enqueue(client: ActionsClient, kind: str, number: int) -> None:
    await client.enqueue(flyte.task(_child(kind, number), "a0"))


async def _report(client: ActionsClient, phase: Phase, number: int) -> None:
    await client.put_status(_child("c", number), 1, flyte.status(phase))


async def _measured(
    change: Callable[[int], Awaitable[None]], together: int, count: int
) -> tuple[float, float]:
    left: Iterable[int] = iter(range(count))

    async def worker() -> None:
        for number in left:
            await change(number)

    cpu, clock = time.process_time(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(together):
            nursery.start_soon(worker)
    seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return count / seconds, cpu / count * 1e6


async def _side(endpoint: str, prefix: str, part: str, count: int) -> tuple[float, float]:
    async with (
        open_etcd(endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix.encode()) as client,
    ):
        return await _PARTS[part](client, count)


def _run(tree: Path, endpoint: str, prefix: str, part: str, count: int) -> tuple[float, float]:
    """One side, in a process that imports from a tree."""
    command = [sys.executable, __file__, "--side", endpoint, prefix, part, str(count)]
    # Before what is installed, which is one of the trees.
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=True, text=True, cwd=tree
    )
    used, rate, cpu = json.loads(done.stdout.splitlines()[-1])
    if Path(used) != tree.resolve():
        raise RuntimeError(f"{used} was measured in the place of {tree}")
    return rate, cpu


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure two versions of the way in.")
    parser.add_argument("--old", type=Path, required=True, help="a tree of the other version")
    parser.add_argument("--new", type=Path, default=_HERE, help="a tree (that of this file)")
    parser.add_argument("--part", action="append", choices=_PARTS, help="only these (all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each figure (3)")
    parser.add_argument("--count", type=int, default=3000, help="calls a side (3000)")
    given = parser.parse_args(arguments)
    print("| | old 1/s | new 1/s | ratio | old µs CPU | new µs CPU | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for part in given.part or _PARTS:
        rounds = []
        for number in range(given.rounds):
            with tempfile.TemporaryDirectory() as data, EtcdProcess(Path(data)) as etcd:
                sides = [("old", given.old), ("new", given.new)]
                found = {
                    name: _run(tree, etcd.endpoint, f"/bench/{name}/", part, given.count)
                    for name, tree in (sides if number % 2 else sides[::-1])
                }
            rounds.append((*found["old"], *found["new"]))
        old_rate, old_cpu, new_rate, new_cpu = (
            median(one[at] for one in rounds) for at in range(4)
        )
        faster = median(one[2] / one[0] for one in rounds)
        cheaper = median(one[3] / one[1] for one in rounds)
        print(
            f"| {part} | {old_rate:,.0f} | {new_rate:,.0f} | {faster:.2f} "
            f"| {old_cpu:.0f} | {new_cpu:.0f} | {cheaper:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        endpoint, prefix, part, count = sys.argv[2:]
        measured = trio.run(_side, endpoint, prefix, part, int(count))
        print(json.dumps([str(Path(etcd_actions.__file__).parents[1]), *measured]))
    else:
        main()
