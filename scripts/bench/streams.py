"""Streams of the service: what they cost a reader in time, and the service in memory.

    .venv/bin/python -m scripts.bench.streams [--streams 1 100 1000] [--many 5000]

Service, etcd and this client share the machine. Each stream has an HTTP/1.1 connection of its own,
as Flyte's SDK has it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import struct
import tempfile
import time
from pathlib import Path

import psutil
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId, ActionStatus, Phase, open_actions_client, open_etcd
from etcd_actions.model import flyte as conversions
from scripts.bench.processes import etcd_binary, etcd_server, service
from scripts.bench.service_load import action

WATCH = "/flyteidl2.actions.ActionsService/WatchForUpdates"


class Stream:
    """A stream of updates over a connection of its own."""

    def __init__(self, parent: ActionId) -> None:
        self.parent = parent
        self.ready = trio.Event()
        self.seen: dict[int, float] = {}
        self.writing = trio.Lock()

    async def follow(self, address: str) -> None:
        """Note when each attempt of the root was seen."""
        host, _, port = address.partition(":")
        request = pb.WatchForUpdatesRequest(
            parent_action_id=conversions.action_identifier(self.parent)
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
    streams = [Stream(ActionId("p", "d", f"l{tag}x{number}", "a0", "o")) for number in range(count)]
    sent: list[tuple[Stream, int, float]] = []
    async with (
        open_etcd(etcd) as connection,
        open_actions_client(connection) as client,
        trio.open_nursery() as nursery,
    ):
        limit = trio.CapacityLimiter(50)

        async def begin(stream: Stream) -> None:
            async with limit:
                await client.enqueue(action(stream.parent.run))
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
                    await client.put_status(stream.parent, attempt, ActionStatus(Phase.RUNNING))

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
        streams = [Stream(ActionId("p", "d", f"m{number}", "a0", "o")) for number in range(count)]
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
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 100, 1000])
    parser.add_argument("--many", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with etcd_server(etcd_binary(None), directory) as own:
            with service(own.address, directory / "service.log") as (address, process):
                print("| streams | put to reader p50 ms | p99 ms |\n| ---: | ---: | ---: |")
                for count in options.streams:
                    runs = [
                        trio.run(
                            measure_latency,
                            own.address,
                            address,
                            count,
                            options.rate,
                            options.seconds,
                        )
                        for _ in range(3)
                    ]
                    p50, p99 = sorted(runs)[1]
                    print(f"| {count:,} | {p50:.2f} | {p99:.2f} |")
            with service(own.address, directory / "service.log") as (address, process):
                kilobytes, took = trio.run(measure_memory, address, process, options.many)
                print(
                    f"\n{options.many:,} streams: {kilobytes:.1f} KB each, opened in {took:.1f} s "
                    f"({1000 * took / options.many:.1f} ms each)"
                )


if __name__ == "__main__":
    main()
