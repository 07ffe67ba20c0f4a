"""Measures runs at the front door: creating them, waiting for their end, uploading their code.

    .venv/bin/python -m scripts.bench.front_runs [--runs 300] [--upload 256]

A process `etcd-actions run` serves an etcd and a folder; it runs no tasks. This client speaks
Connect over kept HTTP/1.1 connections. The time of a wait is from the report of the end: to the
end of the stream that `run.wait()` of the SDK reads, and, of the same run, to the mark in etcd.
With the SDK's environment (`scripts/_sdk-venv`) a program measures `flyte.run`, too.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import trio
from flyteidl2.actions import actions_service_pb2 as actions
from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier
from flyteidl2.dataproxy import dataproxy_service_pb2 as dataproxy
from flyteidl2.workflow import run_service_pb2 as runs
from google.protobuf.message import Message

from etcd_actions import open_etcd
from etcd_actions.etcd.api import KeyRange, WatchCreate
from etcd_actions.model import DEFAULT_KEY_PREFIX, LABEL_TERMINAL_STATUS_RECORDED
from etcd_actions.testing import EtcdProcess
from etcd_actions.testing.etcd_server import lasting_port

RUN_SERVICE = "/flyteidl2.workflow.RunService/"
DATA = "/flyteidl2.dataproxy.DataProxyService/"
ACTIONS = "/flyteidl2.actions.ActionsService/"
SUCCEEDED = 5
_PART = 1024 * 1024
_PROGRAM = """\
import sys, time
import flyte
env = flyte.TaskEnvironment(name="bench")
@env.task
async def main(number: int) -> int:
    return number
if __name__ == "__main__":
    flyte.init(endpoint=sys.argv[1], insecure=True, project="bench", domain="development")
    times = []
    for number in range(int(sys.argv[2])):
        began = time.perf_counter()
        flyte.run(main, number=number)
        times.append(time.perf_counter() - began)
    print(times[0], sorted(times[1:])[len(times) // 2])
"""


class Client:
    """One kept connection."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address)

    def call(self, path: str, request: Message) -> bytes:
        """The bytes of a method's answer."""
        headers = {"content-type": "application/proto"}
        self._connection.request("POST", path, request.SerializeToString(), headers)
        response = self._connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise SystemExit(f"{path}: {response.status} {data[:300]!r}")
        return data

    def follow(self, path: str, request: Message) -> http.client.HTTPResponse:
        """The answer to a method that gives a stream."""
        body = request.SerializeToString()
        headers = {"content-type": "application/connect+proto", "connect-protocol-version": "1"}
        framed = struct.pack(">BI", 0, len(body)) + body
        self._connection.request("POST", path, framed, headers)
        return self._connection.getresponse()


@contextmanager
def serving(endpoint: str, directory: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The service as a process: its address."""
    address = f"127.0.0.1:{lasting_port()}"
    with (directory / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "etcd_actions", "run", "--endpoints", endpoint),
                *("--listen", address, "--monitoring-listen", "127.0.0.1:0", "--rate-limit", "0"),
                *("--blob-dir", str(directory / "blobs"), "--stats-interval", "0"),
            ],
            stderr=log,
        )
    try:
        for _ in range(300):
            if b"serving" in (directory / "service.log").read_bytes():
                break
            time.sleep(0.1)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def run_id(name: str) -> RunIdentifier:
    """Which run."""
    return RunIdentifier(org="o", project="bench", domain="development", name=name)


def creation(name: str) -> runs.CreateRunRequest:
    """A run of a task whose template has the size of the SDK's."""
    request = runs.CreateRunRequest(run_id=run_id(name))
    template = request.task_spec.task_template
    template.type = "python"
    template.id.name, template.id.version = "bench.main", "v1"
    template.container.image = "none"
    template.container.args[:] = ["a0", *("x" * 50 for _ in range(30))]
    request.task_spec.short_name = "main"
    request.offloaded_input_data.uri = "/nowhere/inputs.pb"
    request.offloaded_input_data.inputs_hash = "aGFzaA=="
    return request


def cpu_of(process: psutil.Process) -> float:
    """Seconds."""
    user, system, *_ = process.cpu_times()
    return float(user + system)


def create_runs(address: str, process: psutil.Process, count: int, at_once: int) -> None:
    """Bare CreateRun, by some clients at once."""
    times: list[float] = []

    def create(first: int) -> None:
        client = Client(address)
        for number in range(first, count, at_once):
            began = time.perf_counter()
            client.call(RUN_SERVICE + "CreateRun", creation(f"c{at_once}-{number}"))
            times.append(time.perf_counter() - began)

    before, began = cpu_of(process), time.perf_counter()
    threads = [threading.Thread(target=create, args=(number,)) for number in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, cpu = time.perf_counter() - began, cpu_of(process) - before
    print(
        f"| CreateRun, {at_once} at once | {count / took:.0f}/s | p50 "
        f"{1000 * statistics.median(times):.1f} ms | {1000 * cpu / count:.1f} ms of CPU |",
        flush=True,
    )


async def wait_for_ends(endpoint: str, address: str, count: int) -> None:
    """From the report of an end to the end of the wait, and to the mark."""
    marked: dict[bytes, float] = {}
    seen: dict[bytes, trio.Event] = {}
    to_wait: list[float] = []
    to_mark: list[float] = []

    async def look() -> None:
        label = LABEL_TERMINAL_STATUS_RECORDED.encode()
        async with open_etcd(endpoint) as etcd, etcd.watch() as stream:
            stream.create(WatchCreate(1, KeyRange.of_prefix(DEFAULT_KEY_PREFIX), 0))
            while True:
                for response in await stream.receive():
                    now = time.perf_counter()
                    for event in response.events:
                        if label in (event.value or b""):
                            name = event.key.rpartition(b"/")[2]
                            marked[name] = now
                            seen.setdefault(name, trio.Event()).set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await trio.sleep(1)
        for number in range(count):
            name = f"w{number}"
            reported, ended = await trio.to_thread.run_sync(_end_one, address, name)
            key = f"{name}-a0".encode()
            with trio.fail_after(10):
                await seen.setdefault(key, trio.Event()).wait()
            to_wait.append(ended - reported)
            to_mark.append(marked[key] - reported)
        nursery.cancel_scope.cancel("measured")
    for what, times in (("end of the wait", to_wait), ("mark", to_mark)):
        deciles = statistics.quantiles(times, n=10)
        print(
            f"| report of the end → {what} | | p50 {1000 * statistics.median(times):.1f} ms | "
            f"p90 {1000 * deciles[8]:.1f} ms |",
            flush=True,
        )


def _end_one(address: str, name: str) -> tuple[float, float]:
    """Create a run, wait for it as the SDK does, and end it."""
    client = Client(address)
    client.call(RUN_SERVICE + "CreateRun", creation(name))
    action = ActionIdentifier(run=run_id(name), name="a0")
    stream = Client(address).follow(
        RUN_SERVICE + "WatchActionDetails", runs.WatchActionDetailsRequest(action_id=action)
    )
    _message(stream)
    ended: list[float] = []

    def read() -> None:
        while (message := _message(stream)) is not None:
            response = runs.WatchActionDetailsResponse.FromString(message)
            if response.details.status.phase == SUCCEEDED:
                ended.append(time.perf_counter())
                return

    reader = threading.Thread(target=read)
    reader.start()
    update = actions.UpdateRequest(action_id=action, attempt=1)
    update.status.phase = SUCCEEDED
    reported = time.perf_counter()
    client.call(ACTIONS + "Update", update)
    reader.join()
    return reported, ended[0]


def _message(stream: http.client.HTTPResponse) -> bytes | None:
    """The next message of a Connect stream; None at its end."""
    head = stream.read(5)
    if len(head) < 5:
        return None
    flags, size = struct.unpack(">BI", head)
    data = stream.read(size)
    return None if flags & 2 else data


def upload(address: str, megabytes: int) -> None:
    """A file up and down again."""
    block = bytes(range(256)) * (_PART // 256)
    digest = hashlib.md5(usedforsecurity=False)
    for _ in range(megabytes):
        digest.update(block)
    request = dataproxy.CreateUploadLocationRequest(
        project="bench", domain="development", filename="big.bin", content_md5=digest.digest()
    )
    request.content_length = megabytes * _PART
    answer = dataproxy.CreateUploadLocationResponse.FromString(
        Client(address).call(DATA + "CreateUploadLocation", request)
    )
    url = urllib.parse.urlsplit(answer.signed_url)
    connection = http.client.HTTPConnection(url.netloc)
    began = time.perf_counter()
    headers = {**dict(answer.headers), "content-length": str(megabytes * _PART)}
    connection.request("PUT", f"{url.path}?{url.query}", (block for _ in range(megabytes)), headers)
    response = connection.getresponse()
    response.read()
    if response.status >= 300:
        raise SystemExit(f"PUT: {response.status}")
    rate = megabytes / (time.perf_counter() - began)
    print(f"| upload of {megabytes} MiB | {rate:.0f} MiB/s | | |", flush=True)


def flyte_run(address: str, python: Path, count: int, directory: Path) -> None:
    """The SDK's own entry point, bundle and inputs included."""
    program = directory / "program.py"
    program.write_text(_PROGRAM)
    done = subprocess.run(
        [python, program, f"http://{address}", str(count)],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "HOME": str(directory)},
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    first, median = map(float, done.stdout.splitlines()[-1].split())
    print(
        f"| flyte.run | {1 / median:.1f}/s | p50 {1000 * median:.0f} ms | "
        f"the first {1000 * first:.0f} ms |",
        flush=True,
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--upload", type=int, default=256, help="MiB")
    options = parser.parse_args()
    print("| what | rate | time | |\n| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name, EtcdProcess(Path(name)) as own:
        directory = Path(name)
        with serving(own.endpoint, directory) as (address, process):
            parts: list[Callable[[], None]] = [
                lambda: create_runs(address, process, options.runs, 1),
                lambda: create_runs(address, process, options.runs, 16),
                lambda: trio.run(wait_for_ends, own.endpoint, address, options.runs // 3),
                lambda: upload(address, options.upload),
            ]
            python = Path(".venv-sdk/bin/python").absolute()
            if python.exists():
                parts.append(lambda: flyte_run(address, python, 20, directory))
            for part in parts:
                part()


if __name__ == "__main__":
    main()
