"""How soon a stream of a run's actions begins, and for how long it keeps others waiting.

The client is a process of its own. The longest step is the processor time of the task of the
service that ran longest without letting another one run; the collector of garbage is in it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Final

import structlog
import trio

from etcd_actions import open_etcd
from etcd_actions.testing import EtcdProcess
from tests.support.page_data import Run
from tests.support.page_runs import large_run
from tests.support.page_site import PageSite, open_page_site

ROUNDS: Final = 7

# Reads messages until it has all actions: prints the milliseconds to the first and to the last one.
_CLIENT: Final = """
import http.client, json, struct, sys, time
from flyteidl2.workflow import run_service_pb2 as pb
address, project, domain, name, count = sys.argv[1:]
request = pb.WatchActionsRequest()
request.run_id.project, request.run_id.domain, request.run_id.name = project, domain, name
body = request.SerializeToString()
connection = http.client.HTTPConnection(address)
connection.connect()
began = time.perf_counter()
connection.request(
    "POST", "/flyteidl2.workflow.RunService/WatchActions", struct.pack(">BI", 0, len(body)) + body,
    {"connect-protocol-version": "1", "content-type": "application/connect+proto"},
)
response = connection.getresponse()
names, messages, first = set(), 0, 0
while len(names) < int(count):
    size = struct.unpack(">BI", response.read(5))[1]
    message = pb.WatchActionsResponse.FromString(response.read(size))
    first = first or time.perf_counter() - began
    messages += 1
    names.update(each.action.id.name for each in message.enriched_actions)
print(json.dumps([first * 1000, (time.perf_counter() - began) * 1000, messages]))
"""


class Steps(trio.abc.Instrument):
    """The longest step of a task, in milliseconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, (time.thread_time() - self._began) * 1000)


async def _measure(endpoint: str, sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            open_etcd(endpoint) as etcd,
            open_page_site(etcd, b"/bench/", Path(folder)) as site,
        ):
            print("| actions | first message | all actions | messages | longest step | CPU |")
            print("| ---: | ---: | ---: | ---: | ---: | ---: |")
            for size in sizes:
                run = large_run(datetime.now(UTC) - timedelta(hours=1), size, f"large-{size}")
                await site.put(run)
                # The watch has all of it before the first stream.
                await trio.sleep(2)
                await _one_size(site, run)


async def _one_size(site: PageSite, run: Run) -> None:
    loads: list[tuple[float, ...]] = []
    for _ in range(ROUNDS):
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        cpu = time.process_time()
        command = [sys.executable, "-c", _CLIENT, str(site.server.address)]
        named = [run.project, run.domain, run.name, str(len(run.steps))]
        done = await trio.run_process([*command, *named], capture_stdout=True)
        loads.append((*json.loads(done.stdout), steps.longest, (time.process_time() - cpu) * 1000))
        trio.lowlevel.remove_instrument(steps)
    first, all_, messages, longest, cpu = (median(each) for each in zip(*loads, strict=True))
    print(
        f"| {len(run.steps):,} | {first:.0f} ms | {all_:.0f} ms | {messages:.0f} "
        f"| {longest:.0f} ms | {cpu:.0f} ms |"
    )


def main(sizes: list[int]) -> int:
    """Print a line for each number of actions."""
    structlog.configure(processors=[_drop])
    with tempfile.TemporaryDirectory() as folder, EtcdProcess(Path(folder)) as etcd:
        etcd.start()
        trio.run(_measure, etcd.endpoint, sizes)
    return 0


def _drop(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main([int(each) for each in sys.argv[1:]] or [100, 10_000]))
