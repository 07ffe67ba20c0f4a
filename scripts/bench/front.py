"""Measures lists of runs and of deployed tasks.

    .venv/bin/python -m scripts.bench.front [--runs 1000 100000] [--tasks 1000]

Each number of runs has an etcd and a server of its own, which share the machine with this client:
Connect over one kept HTTP/1.1 connection, one call after another. CPU is the server's process, all
of a call: HTTP, filters, messages. A page has 100 runs, as the SDK requests them.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import trio
from flyteidl2.common.identifier_pb2 import ProjectIdentifier
from flyteidl2.common.list_pb2 import Filter, ListRequest, Sort
from flyteidl2.task import task_service_pb2
from flyteidl2.workflow import run_service_pb2
from google.protobuf.message import Message

from etcd_actions import ActionId, open_actions_client, open_etcd
from etcd_actions.etcd.api import Put, Txn
from etcd_actions.model import Keyspace
from etcd_actions.registry.registry import open_registry
from etcd_actions.registry.task_record import TaskRecord, task_key
from etcd_actions.registry.task_record import encode as encode_task
from etcd_actions.runs.run_index import open_run_index
from etcd_actions.runs.run_record import RunRecord, RunStatus, TaskName, encode
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.storage.store import Store
from etcd_actions.testing import EtcdProcess
from etcd_actions.web import Bind

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
PROJECT = ProjectIdentifier(name="p", domain="d")
LIST_RUNS = "/flyteidl2.workflow.RunService/ListRuns"
LIST_TASKS = "/flyteidl2.task.TaskService/ListTasks"
KEYS = Keyspace()


def run_put(number: int) -> Put:
    """A run with a spec of 500 bytes; ten of each version of a task, 100 tasks."""
    name = f"r{number * 7919 % 10_000_019:08}"
    created = BEGIN + timedelta(seconds=number)
    record = RunRecord(
        org="o",
        project="p",
        domain="d",
        name=name,
        run_spec=b"x" * 500,
        task=TaskName("o", "p", "d", f"env.task{number % 100}", f"v{number // 1000}"),
        short_name=f"task{number % 100}",
        environment="env",
        task_type="python",
        source=2,
        created=created,
        creator="someone",
        labels={"team": f"t{number % 7}"},
        input_uri=f"s3://bucket/{name}/inputs.pb",
        inputs_hash="c29tZSBoYXNo",
        status=RunStatus(
            create_revision=1,
            revision=2,
            phase=(4, 5, 5, 5, 6)[number % 5],
            attempts=1,
            started=created,
            ended=created + timedelta(seconds=30),
            updated=created + timedelta(seconds=31),
        ),
    )
    return Put(KEYS.run_record(ActionId("p", "d", name, "a0", "o")), encode(record))


def task_put(number: int) -> Put:
    """A task with a spec of 3 KB; two versions of each."""
    at = BEGIN + timedelta(seconds=number)
    record = TaskRecord(
        org="o",
        project="p",
        domain="d",
        name=f"env.task{number // 2}",
        version=f"v{number % 2}",
        deployed=at,
        updated=at,
        short_name=f"task{number // 2}",
        environment="env",
        task_type="python",
        spec=b"x" * 3000,
    )
    return Put(task_key(KEYS.tasks, record.id), encode_task(record))


async def fill(endpoint: str, runs: int, tasks: int) -> None:
    """Write the records, a hundred a transaction."""
    puts = [run_put(number) for number in range(runs)]
    puts += [task_put(number) for number in range(2 * tasks)]
    async with open_etcd(endpoint) as etcd:
        for start in range(0, len(puts), 100):
            await etcd.txn(Txn((), puts[start : start + 100]))


async def serve(endpoint: str) -> None:
    """Serve lists; say the address, and what the index took."""
    process = psutil.Process()
    async with open_etcd(endpoint) as etcd, open_actions_client(etcd) as client:
        before, began = process.memory_info().rss, time.process_time()
        async with (
            open_run_index(etcd, KEYS) as index,
            open_registry(etcd, Store(etcd), KEYS) as registry,
        ):
            await index.ready(600)
            await registry.index.ready(600)
            took = time.process_time() - began
            size = process.memory_info().rss - before
            front = FrontDoor(client=client, keepalive=5, index=index, registry=registry)
            settings = ServerSettings(bind=Bind("127.0.0.1", 0), rate=0)
            async with open_actions_server(client, settings, front=front) as server:
                print(server.address, size, took, flush=True)
                await trio.sleep_forever()


@contextmanager
def serving(endpoint: str) -> Iterator[tuple[str, psutil.Process, int, float]]:
    """A server as a process: its address, its size and the CPU seconds of its start."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.bench.front", "--serve", endpoint],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        # Logs may come first.
        for line in process.stdout:
            parts = line.split()
            if len(parts) == 3 and parts[0].startswith("127.0.0.1:"):
                yield parts[0], psutil.Process(process.pid), int(parts[1]), float(parts[2])
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait()


def measure(
    address: str, process: psutil.Process, path: str, request: Message, calls: int
) -> tuple[float, float]:
    """Milliseconds of a call, the median, and of the server's CPU, the mean."""
    body = request.SerializeToString()
    connection = http.client.HTTPConnection(address)
    times = []
    before = 0.0
    for number in range(calls + 3):
        if number == 3:
            before = sum(process.cpu_times()[:2])
        began = time.perf_counter()
        connection.request("POST", path, body, {"content-type": "application/proto"})
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        times.append(time.perf_counter() - began)
    cpu = sum(process.cpu_times()[:2]) - before
    connection.close()
    return 1000 * statistics.median(times[3:]), 1000 * cpu / calls


def requests() -> dict[str, tuple[str, Message]]:
    """The measured requests."""

    def runs(**fields: object) -> tuple[str, Message]:
        request = ListRequest(limit=100, **fields)
        return LIST_RUNS, run_service_pb2.ListRunsRequest(project_id=PROJECT, request=request)

    def only(field: str, value: str) -> list[Filter]:
        return [Filter(function=Filter.EQUAL, field=field, values=[value])]

    oldest = Sort(key="created_at", direction=Sort.ASCENDING)
    tasks = task_service_pb2.ListTasksRequest(
        project_id=PROJECT, request=ListRequest(limit=100, sort_by=oldest)
    )
    return {
        "the newest runs": runs(),
        "the oldest runs": runs(sort_by=oldest),
        "runs of a phase": runs(filters=only("phase", "6")),
        "runs of a label that none has": runs(filters=only("labels.none", "x")),
        "runs sorted by their end": runs(sort_by=Sort(key="ended_at")),
        "tasks": (LIST_TASKS, tasks),
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, nargs="*", default=[1_000, 100_000])
    parser.add_argument("--tasks", type=int, default=1_000)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--serve", default="")
    options = parser.parse_args()
    if options.serve:
        trio.run(serve, options.serve)
        return
    print("| runs | page of 100 of | p50 ms | CPU of the server, ms a call |")
    print("| ---: | --- | ---: | ---: |")
    for runs in options.runs:
        with tempfile.TemporaryDirectory() as directory, EtcdProcess(Path(directory)) as own:
            own.start()
            trio.run(fill, own.endpoint, runs, options.tasks)
            with serving(own.endpoint) as (address, process, size, took):
                for name, (path, request) in requests().items():
                    p50, cpu = measure(address, process, path, request, options.calls)
                    print(f"| {runs:,} | {name} | {p50:.1f} | {cpu:.1f} |", flush=True)
                print(
                    f"\n{runs:,} runs, {options.tasks:,} tasks of two versions: read in "
                    f"{took:.2f} s of CPU, {size / runs:,.0f} bytes a run\n",
                    flush=True,
                )


if __name__ == "__main__":
    main()
