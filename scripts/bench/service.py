"""What the service costs: calls a second, latency and memory of streams.

    .venv/bin/python -m scripts.bench.service [--streams 1 100 1000] [--many 5000]

Service, etcd and this client share the machine. Clients speak Connect over HTTP/1.1, as Flyte's
SDK does, or gRPC over one HTTP/2 connection.
"""

from __future__ import annotations

import argparse
import http.client
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import trio
from flyteidl2.actions import actions_service_pb2 as pb
from flyteidl2.core.tasks_pb2 import TaskTemplate

from etcd_actions import ActionId, ActionStatus, Phase, open_actions_client, open_etcd
from etcd_actions.model import flyte as conversions
from etcd_actions.testing import EtcdProcess

ENQUEUE = "/flyteidl2.actions.ActionsService/Enqueue"
WATCH = "/flyteidl2.actions.ActionsService/WatchForUpdates"


def action(run: str, name: str = "a0", parent: str = "") -> pb.Action:
    """A task with a template of about 2 KB."""
    made = pb.Action(
        action_id=conversions.action_identifier(ActionId("p", "d", run, name, "o")),
        input_uri="s3://bucket/in",
        run_output_base="s3://bucket/out",
    )
    if parent:
        made.parent_action_name = parent
    template = TaskTemplate(type="python")
    template.container.args[:] = ["a0", "--inputs", "x" * 2000]
    made.task.spec.task_template.CopyFrom(template)
    made.task.spec.short_name = "f"
    return made


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def service(etcd: str) -> Iterator[tuple[str, psutil.Process]]:
    """``etcd-actions run``: its address, and its process."""
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "etcd_actions", "run", "--endpoints", etcd,
            "--listen", f"127.0.0.1:{port}", "--monitoring-listen", "none",
            "--rate-limit", "0", "--log-level", "error", "--max-streams", "100000",
        ],
    )  # fmt: skip
    try:
        for _ in range(400):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def measure_calls(address: str, kind: str, seconds: float, threads: int) -> float:
    """Enqueues a second, by so many threads."""
    done = [0] * threads
    end = time.monotonic() + seconds
    tag = f"{random.getrandbits(24):x}"

    def by_connect(number: int) -> None:
        connection = http.client.HTTPConnection(address)
        while time.monotonic() < end:
            body = pb.EnqueueRequest(action=action(f"r{tag}{number}x{done[number]}"))
            connection.request(
                "POST", ENQUEUE, body.SerializeToString(), {"content-type": "application/proto"}
            )
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
            done[number] += 1
        connection.close()

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            ENQUEUE,
            request_serializer=pb.EnqueueRequest.SerializeToString,
            response_deserializer=pb.EnqueueResponse.FromString,
        )

        def by_grpc(number: int) -> None:
            while time.monotonic() < end:
                call(pb.EnqueueRequest(action=action(f"r{tag}{number}x{done[number]}")))
                done[number] += 1

        target: Callable[[int], None] = by_grpc if kind == "grpc" else by_connect
        workers = [threading.Thread(target=target, args=(number,)) for number in range(threads)]
        began = time.monotonic()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(done) / (time.monotonic() - began)


class Stream:
    """A stream of updates over a connection of its own."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.ready = trio.Event()
        self.seen: dict[int, float] = {}
        self.writing = trio.Lock()

    async def follow(self, address: str) -> None:
        """Note when each attempt of the root was seen."""
        host, _, port = address.partition(":")
        request = pb.WatchForUpdatesRequest(
            parent_action_id=conversions.action_identifier(ActionId("p", "d", self.run, "a0", "o"))
        ).SerializeToString()
        body = struct.pack(">BI", 0, len(request)) + request
        head = (
            f"POST {WATCH} HTTP/1.1\r\nhost: {address}\r\n"
            "content-type: application/connect+proto\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            await stream.send_all(head.encode() + body)
            data = b""
            while b"\r\n\r\n" not in data:
                data += await stream.receive_some()
            data = data.partition(b"\r\n\r\n")[2]
            plain = b""
            while True:
                while b"\r\n" in data:
                    size_text, _, rest = data.partition(b"\r\n")
                    size = int(size_text, 16)
                    if len(rest) < size + 2:
                        break
                    plain, data = plain + rest[:size], rest[size + 2 :]
                while len(plain) >= 5:
                    (size,) = struct.unpack(">I", plain[1:5])
                    if len(plain) < 5 + size:
                        break
                    self._take(pb.WatchForUpdatesResponse.FromString(plain[5 : 5 + size]))
                    plain = plain[5 + size :]
                received = await stream.receive_some()
                if not received:
                    return
                data += received

    def _take(self, message: pb.WatchForUpdatesResponse) -> None:
        if message.HasField("control_message"):
            self.ready.set()
        else:
            attempt = int(message.action_update.output_uri.rpartition("/")[2])
            self.seen[attempt] = time.perf_counter()


async def measure_latency(
    etcd: str, address: str, count: int, rate: float, seconds: float
) -> tuple[float, float]:
    """Milliseconds from a put to its reader, p50 and p99, with so many streams."""
    tag = f"{random.getrandbits(24):x}"
    streams = [Stream(f"l{tag}x{number}") for number in range(count)]
    sent: list[tuple[Stream, int, float]] = []
    async with (
        open_etcd(etcd) as connection,
        open_actions_client(connection) as client,
        trio.open_nursery() as nursery,
    ):
        limit = trio.CapacityLimiter(50)

        async def begin(stream: Stream) -> None:
            async with limit:
                await client.enqueue(action(stream.run))
                nursery.start_soon(stream.follow, address)
                await stream.ready.wait()

        async with trio.open_nursery() as beginning:
            for stream in streams:
                beginning.start_soon(begin, stream)
        attempts = dict.fromkeys(streams, 1)
        began = trio.current_time()
        for number in range(int(rate * seconds)):
            await trio.sleep_until(began + number / rate)
            stream = random.choice(streams)

            async def put(stream: Stream) -> None:
                async with stream.writing:
                    attempts[stream] += 1
                    attempt = attempts[stream]
                    sent.append((stream, attempt, time.perf_counter()))
                    action_id = ActionId("p", "d", stream.run, "a0", "o")
                    await client.put_status(action_id, attempt, ActionStatus(Phase.RUNNING))

            nursery.start_soon(put, stream)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    times = [
        1000 * (stream.seen[attempt] - at) for stream, attempt, at in sent if attempt in stream.seen
    ]
    quantiles = statistics.quantiles(times, n=100)
    return statistics.median(times), quantiles[98]


async def measure_memory(address: str, process: psutil.Process, count: int) -> tuple[float, float]:
    """Kilobytes a stream, and seconds to open all of them."""
    before = process.memory_info().rss
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        streams = [Stream(f"m{number}") for number in range(count)]
        for number, stream in enumerate(streams):
            nursery.start_soon(stream.follow, address)
            if number % 50 == 49:
                await stream.ready.wait()
        for stream in streams:
            await stream.ready.wait()
        took = time.monotonic() - began
        used = process.memory_info().rss - before
        nursery.cancel_scope.cancel()
    return used / count / 1024, took


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 100, 1000])
    parser.add_argument("--many", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, EtcdProcess(Path(directory)) as own:
        own.start()
        with service(own.endpoint) as (address, process):
            print("| Enqueue | calls a second | CPU of the service, ms a call |")
            print("| --- | ---: | ---: |")
            for kind in ("connect", "grpc"):
                figures: list[tuple[float, float]] = []
                for _ in range(3):
                    before = sum(process.cpu_times()[:2])
                    rate = measure_calls(address, kind, options.seconds, options.threads)
                    cpu = sum(process.cpu_times()[:2]) - before
                    figures.append((rate, 1000 * cpu / (rate * options.seconds)))
                rate, cpu = sorted(figures)[1]
                print(f"| {kind} | {rate:,.0f} | {cpu:.2f} |")
            print("\n| streams | put to reader p50 ms | p99 ms |\n| ---: | ---: | ---: |")
            for count in options.streams:
                runs = [
                    trio.run(
                        measure_latency, own.endpoint, address, count, options.rate, options.seconds
                    )
                    for _ in range(3)
                ]
                p50, p99 = sorted(runs)[1]
                print(f"| {count:,} | {p50:.2f} | {p99:.2f} |")
        with service(own.endpoint) as (address, process):
            kilobytes, took = trio.run(measure_memory, address, process, options.many)
            print(
                f"\n{options.many:,} streams: {kilobytes:.1f} KB each, opened in {took:.1f} s "
                f"({1000 * took / options.many:.1f} ms each)"
            )


if __name__ == "__main__":
    main()
