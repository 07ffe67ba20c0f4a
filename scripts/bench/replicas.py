"""Measures replicas of the service, their hand-over, and workers.

    .venv/bin/python -m scripts.bench.replicas [PART]... [--write]

The parts:

*replicas*: 1, 2, 4 and 8 processes of ``etcd-actions run`` follow one load. On few cores their
rates say nothing, so the table has the processor time of an event and the bytes of a replica.
*runs*: the same processes, while runs of one action each begin and end, with their records.
*handover*: actions end all the time, while the leader gets SIGTERM, or is killed; the longest time
from an end to its mark is the hand-over. *workers*: 1, 2, 4 and 8 processes of ``etcd-actions
worker`` run the same tasks, which are shells without the SDK. *service-workers*: the same with a
token of the service, and without etcd.

Everything is on one machine; the order of the sizes alternates between the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import trio

from etcd_actions import ActionId, ActionUpdate, Phase, open_actions_client, open_etcd
from etcd_actions.codecs import json as stored
from etcd_actions.etcd.api import Etcd, KeyRange, WatchCreate
from etcd_actions.model import FINALIZER_RECORD, LABEL_TERMINAL_STATUS_RECORDED, Keyspace
from scripts.bench.action_cost import etcd_metrics
from scripts.bench.load import Plan
from scripts.bench.machine import description
from scripts.bench.processes import (
    Server,
    child,
    etcd_binary,
    etcd_server,
    etcd_version,
    service,
    total_cpu_seconds,
    worker,
)
from scripts.bench.results import Figures
from scripts.bench.scaling_figures import keep_figures, replace_block, table
from scripts.bench.watching import HISTORY, PREFIX, preload
from scripts.bench.writer import ended_action
from tests.support import flyte

SIZES = (1, 2, 4, 8)
_RATE = 400.0
_SECONDS = 8.0
_KEYS = 8_000
_SENT = "etcd_network_client_grpc_sent_bytes_total"
_SETTLE_SECONDS = 240.0
_ENDS_A_SECOND = 25
_BEFORE = 3.0
_AFTER = 25.0
_RUNS = 500
_TASKS = 200
_TASK_SECONDS = 300.0
_NAMESPACE = "flyte"


def replicas(directory: Path, count: int, flags: Sequence[str]) -> Figures:
    """Some processes that follow a load, in a store of many keys."""
    with ExitStack() as stack:
        server = stack.enter_context(etcd_server(etcd_binary(None), directory))
        preload(server, directory, _KEYS, small=True)
        common = ("--blob-dir", str(directory / "blobs"), "--collect-orphans=false", *flags)
        running = [
            stack.enter_context(service(server.address, directory / f"{number}.log", *common))[1]
            for number in range(count)
        ]
        settle(server)
        etcd = psutil.Process(server.pid)
        # The first one that started is the leader, if there is one leader.
        before = [total_cpu_seconds(each) for each in (etcd, *running)]
        sent, revision = etcd_metrics(server)[_SENT], server.revision()
        plan = Plan(
            host=server.host, port=server.port, history=str(HISTORY), prefix=PREFIX,
            keys=2_000, rate=_RATE, batch=1, in_flight=4, events=1_000_000, seconds=_SECONDS,
            warm=0, rewrite=True, acks=str(directory / "acks"),
        )  # fmt: skip
        with child("load", plan.to_json(), directory / "load.log") as load:
            load.send("go")
            load.receive("done", 10 * _SECONDS)
        settle(server)
        events = server.revision() - revision
        spent = [
            1e6 * (total_cpu_seconds(each) - start) / events
            for each, start in zip((etcd, *running), before, strict=True)
        ]
        return {
            "events": float(events),
            "etcd_us": spent[0],
            "sum_us": sum(spent[1:]),
            "most_us": max(spent[1:]),
            "least_us": min(spent[1:]),
            "bytes": (etcd_metrics(server)[_SENT] - sent) / events / count,
            "megabytes": median(each.memory_full_info().uss for each in running) / 1e6,
        }


def runs(directory: Path, count: int, flags: Sequence[str]) -> Figures:
    """Some processes, while runs of one action each begin and end."""
    with ExitStack() as stack:
        server = stack.enter_context(etcd_server(etcd_binary(None), directory))
        common = ("--blob-dir", str(directory / "blobs"), "--collect-orphans=false", *flags)
        running = [
            stack.enter_context(service(server.address, directory / f"{number}.log", *common))[1]
            for number in range(count)
        ]
        settle(server)
        before = [total_cpu_seconds(each) for each in running]
        sent = etcd_metrics(server)[_SENT]
        trio.run(_play_runs, server.address)
        settle(server)
        spent = [
            1000 * (total_cpu_seconds(each) - start) / _RUNS
            for each, start in zip(running, before, strict=True)
        ]
        return {
            "sum_ms": sum(spent),
            "most_ms": max(spent),
            "bytes": (etcd_metrics(server)[_SENT] - sent) / _RUNS / count,
            "megabytes": median(each.memory_full_info().uss for each in running) / 1e6,
        }


async def _play_runs(address: str) -> None:
    async with open_etcd([address]) as etcd, open_actions_client(etcd) as client:
        for number in range(_RUNS):
            # As random as Flyte's names, so that they are in all shards.
            name = "r" + hashlib.sha256(b"%d" % number).hexdigest()[:19]
            action_id = ActionId("p", "d", name, "a0")
            await client.enqueue(flyte.task(action_id))
            for phase in (Phase.QUEUED, Phase.RUNNING, Phase.SUCCEEDED):
                await client.put_status(action_id, 1, flyte.status(phase))


def handover(directory: Path, how: int, flags: Sequence[str]) -> Figures:
    """The leader of two processes goes, while actions end; seconds from an end to its mark."""
    with ExitStack() as stack:
        server = stack.enter_context(etcd_server(etcd_binary(None), directory))
        common = ("--blob-dir", str(directory / "blobs"), "--collect-orphans=false", *flags)
        running = [
            stack.enter_context(service(server.address, directory / f"{number}.log", *common))[1]
            for number in range(2)
        ]
        settle(server)
        leader = running[0].pid
        waits = trio.run(_marked, server.address, lambda: os.kill(leader, how))
    quiet = [wait for at, wait in waits if at < _BEFORE - 1]
    return {"longest": max(wait for _, wait in waits), "usual": median(quiet)}


async def _marked(address: str, act: Callable[[], None]) -> list[tuple[float, float]]:
    """Ended actions, one after the other; for each when it was put, and how long its mark took."""
    tree = stored.decode_tree(ended_action())
    tree["metadata"]["finalizers"] = [FINALIZER_RECORD]
    prefix = Keyspace().prefix
    put: dict[bytes, float] = {}
    found: dict[bytes, tuple[float, float]] = {}
    total = int(_ENDS_A_SECOND * (_BEFORE + _AFTER))
    async with open_etcd([address]) as etcd, trio.open_nursery() as nursery:
        began = trio.current_time()

        async def watch(started: trio.Event) -> None:
            async with etcd.watch() as stream:
                stream.create(WatchCreate(1, KeyRange.of_prefix(prefix), 0))
                started.set()
                while True:
                    events = [e for each in await stream.receive() for e in each.events]
                    now = trio.current_time()
                    for event in events:
                        key = event.key
                        marked = LABEL_TERMINAL_STATUS_RECORDED.encode() in event.value
                        if key in put and key not in found and (marked or event.is_delete):
                            found[key] = (put[key] - began, now - put[key])
                    if len(found) == total:
                        nursery.cancel_scope.cancel("all are marked")

        started = trio.Event()
        nursery.start_soon(watch, started)
        await started.wait()
        nursery.start_soon(_act_after, _BEFORE, act)
        for number in range(total):
            # As random as Flyte's names, so that they are in all shards.
            name = "r" + hashlib.sha256(b"%d" % number).hexdigest()[:19]
            tree["metadata"] |= {"name": f"{name}-a0", "uid": f"uid-{number}"}
            tree["spec"] |= {"runName": name, "actionName": "a0", "parentActionName": ""}
            key = prefix + f"{_NAMESPACE}/{name}-a0".encode()
            put[key] = trio.current_time()
            await etcd.put(key, stored.encode_tree(tree))
            await trio.sleep_until(began + (number + 1) / _ENDS_A_SECOND)
        with trio.move_on_after(_SETTLE_SECONDS):
            await trio.sleep_forever()
    if len(found) != total:
        raise RuntimeError(f"{total - len(found)} of {total} are not marked")
    return sorted(found.values())


async def _act_after(seconds: float, act: Callable[[], None]) -> None:
    await trio.sleep(seconds)
    act()


def workers(
    directory: Path, count: int, flags: Sequence[str], *, over_service: bool = False
) -> Figures:
    """Some workers of two slots each, and as many tasks for all of them."""
    with ExitStack() as stack:
        server = stack.enter_context(etcd_server(etcd_binary(None), directory))
        common = ("--blob-dir", str(directory / "blobs"), *flags)

        def offered(number: int) -> tuple[str, ...]:
            return (
                *("--executor-slots", "2", "--python", sys.executable),
                *("--executor-fork-server=false",),
                *("--executor-state-dir", str(directory / f"state-{number}")),
            )

        own, accepted = directory / "token", directory / "tokens"
        own.write_text("worker-token\n")
        accepted.write_text("worker-token name=w role=worker\n")
        access = ("--token-file", str(accepted), "--worker-access") if over_service else ()
        # The service records and marks.
        address, serving = stack.enter_context(
            service(server.address, directory / "service.log", *common, *access)
        )
        where: tuple[str, ...] = ("--endpoints", server.address)
        if over_service:
            where = ("--service", address, "--service-token-file", str(own))
        running = [
            stack.enter_context(
                worker(where, directory / f"{number}.log", *common, *offered(number))
            )
            for number in range(count)
        ]
        settle(server)
        etcd = psutil.Process(server.pid)
        measured = (etcd, serving, *running)
        before = [total_cpu_seconds(each) for each in measured]
        revision = server.revision()
        seconds = trio.run(_run_tasks, server.address, directory)
        settle(server)
        spent = [
            1000 * (total_cpu_seconds(each) - start) / _TASKS
            for each, start in zip(measured, before, strict=True)
        ]
        return {
            "rate": _TASKS / seconds,
            "etcd_ms": spent[0],
            "service_ms": spent[1],
            "workers_ms": sum(spent[2:]),
            "writes": (server.revision() - revision) / _TASKS,
        }


async def _run_tasks(address: str, directory: Path) -> float:
    """Enqueue the roots of runs, and wait for their ends: seconds.

    Raises:
        RuntimeError: One did not succeed.
    """
    ended: dict[str, str] = {}
    base = directory / "outputs"
    async with (
        open_etcd([address]) as etcd,
        open_actions_client(etcd) as client,
        client.subscribe_all() as updates,
    ):
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_enqueue_tasks, etcd, base)
            with trio.fail_after(_TASK_SECONDS):
                async for update in updates:
                    if isinstance(update, ActionUpdate) and update.phase.is_terminal:
                        ended[update.action_id.run] = update.phase.name
                        if len(ended) == _TASKS:
                            break
        seconds = trio.current_time() - began
    if set(ended.values()) != {"SUCCEEDED"}:
        raise RuntimeError(f"tasks ended as {set(ended.values())}")
    return seconds


async def _enqueue_tasks(etcd: Etcd, base: Path) -> None:
    async with open_actions_client(etcd) as client:
        for number in range(_TASKS):
            action = flyte.task(ActionId("p", "d", f"t{number:04d}", "a0"))
            action.run_output_base = str(base / str(number))
            container = action.task.spec.task_template.container
            container.args[:] = ["/bin/sh", "-c", "exit 0"]
            action.task.spec.task_template.interface.Clear()
            await client.enqueue(action)


def settle(server: Server) -> None:
    """Wait until nothing is written for a second.

    Raises:
        RuntimeError: Something writes on and on.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    before = -1
    while (now := server.revision()) != before:
        if time.monotonic() > deadline:
            raise RuntimeError("something writes on and on")
        before = now
        time.sleep(1.0)


def rounds(
    sizes: Sequence[int], count: int, measure: Callable[[Path, int], Figures]
) -> dict[int, Figures]:
    """The medians of each size, over rounds that alternate the order."""
    found: dict[int, list[Figures]] = {size: [] for size in sizes}
    for number in range(count):
        for size in sizes if number % 2 == 0 else reversed(sizes):
            with tempfile.TemporaryDirectory() as name:
                figures = measure(Path(name), size)
            print(f"{size}: {figures}", file=sys.stderr)
            found[size].append(figures)
    return {
        size: {name: median(one[name] for one in taken) for name in taken[0]}
        for size, taken in found.items()
    }


def replicas_table(found: dict[int, Figures]) -> str:
    """The table of replicas."""
    rows = [
        [
            f"{size}",
            f"{one['most_us']:,.0f}",
            f"{one['least_us']:,.0f}" if size > 1 else "-",
            f"{one['sum_us']:,.0f}",
            f"{one['etcd_us']:,.0f}",
            f"{one['bytes']:,.0f}",
            f"{one['megabytes']:,.0f}",
        ]
        for size, one in found.items()
    ]
    head = [
        "replicas", "µs CPU an event, the busiest", "the least busy", "all together", "etcd",
        "bytes of an event, each", "MB, each",
    ]  # fmt: skip
    return table(head, rows)


def runs_table(found: dict[int, Figures]) -> str:
    """The table of runs of one action."""
    rows = [
        [
            f"{size}",
            f"{one['most_ms']:,.1f}",
            f"{one['sum_ms']:,.1f}",
            f"{one['bytes']:,.0f}",
            f"{one['megabytes']:,.0f}",
        ]
        for size, one in found.items()
    ]
    head = [
        "replicas", "CPU ms a run, the busiest", "all together", "bytes of a run, each", "MB, each",
    ]  # fmt: skip
    return table(head, rows)


def handover_table(found: dict[str, Figures]) -> str:
    """The table of hand-overs."""
    rows = [
        [name, f"{1000 * one['usual']:,.0f} ms", _seconds(one["longest"])]
        for name, one in found.items()
    ]
    return table(["the leader", "end to mark, usual", "end to mark, the longest"], rows)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:,.0f} ms"


def workers_table(found: dict[int, Figures]) -> str:
    """The table of workers."""
    rows = [
        [
            f"{size}",
            f"{one['rate']:,.1f}",
            f"{one['etcd_ms']:,.1f}",
            f"{one['service_ms']:,.1f}",
            f"{one['workers_ms']:,.1f}",
            f"{one['writes']:,.1f}",
        ]
        for size, one in found.items()
    ]
    head = [
        "workers",
        "tasks/s",
        "CPU ms of etcd a task",
        "of the service",
        "of all workers",
        "revisions a task",
    ]
    return table(head, rows)


def main() -> None:
    """Measure, and print or keep the tables."""
    parts = ("replicas", "runs", "handover", "workers", "service-workers")
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[[], *parts], default=list(parts[:-1]))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--run-flag", action="append", default=[], help="for etcd-actions run")
    parser.add_argument("--name", default="", help="of the blocks in docs/scaling.md, a suffix")
    parser.add_argument("--write", action="store_true", help="into docs/scaling.json and .md")
    options = parser.parse_args()
    flags = options.run_flag
    texts: dict[str, str] = {}
    for part in options.parts:
        if part == "replicas":
            sized = rounds(options.sizes, options.rounds, partial(replicas, flags=flags))
            texts[part] = replicas_table(sized)
        elif part == "runs":
            sized = rounds(options.sizes, options.rounds, partial(runs, flags=flags))
            texts[part] = runs_table(sized)
        elif part.endswith("workers"):
            over = part == "service-workers"
            sized = rounds(
                options.sizes, options.rounds, partial(workers, flags=(), over_service=over)
            )
            texts[part] = workers_table(sized)
        else:
            kinds = {"stops (SIGTERM)": signal.SIGTERM, "is killed": signal.SIGKILL}
            sized = rounds(list(kinds.values()), options.rounds, partial(handover, flags=flags))
            texts[part] = handover_table({name: sized[how] for name, how in kinds.items()})
        print(texts[part])
        if options.write:
            name = part + options.name
            keep_figures(name, {str(key): value for key, value in sized.items()})
            replace_block(name, f"{texts[part]}\n{conditions(options.rounds)}")


def conditions(count: int) -> str:
    """With what it was measured."""
    python = ".".join(map(str, sys.version_info[:3]))
    etcd = etcd_version(etcd_binary(None))
    often = "Measured once" if count == 1 else f"Medians of {count}"
    return f"{often}; etcd {etcd}, Python {python}, {description()}."


if __name__ == "__main__":
    main()
