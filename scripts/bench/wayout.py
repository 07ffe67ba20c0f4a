"""The way out of two versions, in turns: subscribers, snapshots, aborts; prints a markdown table.

    git worktree add /tmp/old main
    .venv/bin/python -m scripts.bench.wayout --old /tmp/old

Each figure is of a process of its own that runs this file over one of the two trees, with an etcd
of its own, beginning with the other one in each round. CPU is that of the process, without etcd.
Figures are medians of the rounds, ratios medians of the ratios within a round: what else runs on
the machine shows in both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import msgspec
import trio

import etcd_actions
from etcd_actions import ActionId, ActionsClient, Phase, WatchingSettings, open_actions_client
from etcd_actions.etcd import open_etcd
from etcd_actions.follow.subscriptions import SnapshotEnd, Subscriptions
from etcd_actions.model import ActionUpdate
from etcd_actions.testing import EtcdProcess
from tests.support import flyte

_ROOT = ActionId("p", "d", "r1", "a0")
_HERE = Path(__file__).resolve().parents[2]
_STREAMS = 20
_Figures = tuple[float, float]
"""Seconds, and seconds of CPU."""


async def _drain(etcd: str, count: int) -> _Figures:
    """A subscriber that reads as many updates as there are actions, all of which wait."""
    update = ActionUpdate(
        key=b"",
        namespace="flyte",
        name="r1-c",
        action_id=ActionId("p", "d", "r1", "c"),
        parent="a0",
        phase=Phase.RUNNING,
        attempts=1,
        cache_status=0,
        output_uri="",
        uid="u",
        create_revision=1,
        revision=1,
        recorded=False,
    )
    subscriptions = Subscriptions()
    subscription = subscriptions.subscribe(_ROOT)
    for number in range(count):
        subscriptions.notify(msgspec.structs.replace(update, key=b"%d" % number))
    began = time.perf_counter(), time.process_time()
    for _ in range(count):
        subscription.receive_nowait()
    return _since(began)


async def _leaf(etcd: str, count: int) -> _Figures:
    """A stream of one child of a run, by a client that watches; of one of several."""
    async with _grown(etcd, count) as client:
        return await _streams(client, ActionId("p", "d", "r1", "c7"), _STREAMS)


async def _root(etcd: str, count: int) -> _Figures:
    """A stream of the root of a run."""
    async with _grown(etcd, count) as client:
        return await _streams(client, _ROOT, 3)


async def _abort(etcd: str, count: int) -> _Figures:
    """An abort of all."""
    async with _grown(etcd, count) as client:
        began = time.perf_counter(), time.process_time()
        result = await client.abort_action(_ROOT, "why", "me")
        figures = _since(began)
        assert len(result.aborted) == count + 1
        return figures


_PARTS: dict[str, Callable[[str, int], Awaitable[_Figures]]] = {
    "a subscriber drains what waits": _drain,
    "open a stream on a leaf": _leaf,
    "open a stream on the root": _root,
    "abort": _abort,
}


async def _streams(client: ActionsClient, parent: ActionId, times: int) -> _Figures:
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter(), time.process_time()
        async with client.subscribe(parent, snapshot=True) as updates:
            while not isinstance(await updates.receive(), SnapshotEnd):
                pass
            seconds.append(_since(began))
    return median(each[0] for each in seconds[1:]), median(each[1] for each in seconds[1:])


def _since(began: tuple[float, float]) -> _Figures:
    return time.perf_counter() - began[0], time.process_time() - began[1]


@asynccontextmanager
async def _grown(endpoint: str, count: int) -> AsyncIterator[ActionsClient]:
    """A client that watches, and a root with children, which no process records."""
    settings = WatchingSettings(record=False)
    async with (
        open_etcd(endpoint) as etcd,
        open_actions_client(etcd, prefix=b"/bench/", settings=settings) as client,
    ):
        await client.start_watching()
        await client.enqueue(flyte.task(_ROOT))
        left = iter(range(count))

        async def enqueue() -> None:
            for number in left:
                await client.enqueue(flyte.task(ActionId("p", "d", "r1", f"c{number}"), "a0"))

        async with trio.open_nursery() as nursery:
            for _ in range(256):
                nursery.start_soon(enqueue)
        # The watch takes in the writes in flight.
        await trio.sleep(0.5)
        yield client


def _run(tree: Path, endpoint: str, part: str, count: int) -> _Figures:
    """One side, in a process that imports from a tree."""
    command = [sys.executable, __file__, "--side", endpoint, part, str(count)]
    # Before what is installed, which is one of the trees.
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=True, text=True, cwd=tree
    )
    used, seconds, cpu = json.loads(done.stdout.splitlines()[-1])
    if Path(used) != tree.resolve():
        raise RuntimeError(f"{used} was measured in the place of {tree}")
    return seconds, cpu


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure two versions of the way out.")
    parser.add_argument("--old", type=Path, required=True, help="a tree of the other version")
    parser.add_argument("--new", type=Path, default=_HERE, help="a tree (that of this file)")
    parser.add_argument("--part", action="append", choices=_PARTS, help="only these (all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each figure (3)")
    parser.add_argument("--count", type=int, default=10_000, help="actions of a run (10,000)")
    parser.add_argument("--etcd", type=Path, help="the etcd program (the best that is found)")
    given = parser.parse_args(arguments)
    print("| | old ms | new ms | ratio | old ms CPU | new ms CPU | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for part in given.part or _PARTS:
        rounds = []
        for number in range(given.rounds):
            sides = [("old", given.old), ("new", given.new)]
            found: dict[str, _Figures] = {}
            for name, tree in sides if number % 2 else sides[::-1]:
                with (
                    tempfile.TemporaryDirectory() as data,
                    EtcdProcess(Path(data), binary=given.etcd) as etcd,
                ):
                    found[name] = _run(tree, etcd.endpoint, part, given.count)
            rounds.append((*found["old"], *found["new"]))
        old, old_cpu, new, new_cpu = (1e3 * median(one[at] for one in rounds) for at in range(4))
        faster = median(one[2] / one[0] for one in rounds)
        cheaper = median(one[3] / one[1] for one in rounds)
        print(
            f"| {part} | {old:,.1f} | {new:,.1f} | {faster:.3f} "
            f"| {old_cpu:,.1f} | {new_cpu:,.1f} | {cheaper:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        endpoint, part, count = sys.argv[2:]
        measured = trio.run(_PARTS[part], endpoint, int(count))
        print(json.dumps([str(Path(etcd_actions.__file__).parents[1]), *measured]))
    else:
        main()
