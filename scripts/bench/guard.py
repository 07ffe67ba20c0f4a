"""Fails when the cost of something has doubled: ratios of processor time, measured side by side.

    scripts/bench/guard [CHECK ...]       # measures, and compares with limits.toml
    scripts/bench/guard --calibrate       # writes limits.toml: twice what is measured now

A busy machine changes times, and processor time, too, but hardly ratios: each side is measured
several times, in turns, and its median counts. A check that is above its limit is measured again,
twice, before it fails. The floors are grpcio's puts,
msgspec's decoder and the bare interpreter, none of which a change of this project makes cheaper.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import NamedTuple

import grpc
import msgspec
import psutil
import structlog
import trio

from etcd_actions import (
    ActionId,
    ActionUpdate,
    Phase,
    WatchingSettings,
    open_actions_client,
    open_etcd,
)
from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.etcd.api import KeyRange
from scripts.bench.bodies import DOMAIN, PARENT, PROJECT, bodies, run_name, stamp
from scripts.bench.load import Plan
from scripts.bench.processes import (
    Server,
    child,
    command_cost,
    cpu_seconds,
    etcd_binary,
    etcd_server,
    service,
)
from scripts.bench.reader_etcd_actions import Silence
from scripts.bench.service_load import ServiceLoad
from scripts.bench.watching import HISTORY
from scripts.bench.writer import put_ended
from tests.support import flyte

LIMITS = Path(__file__).with_name("limits.toml")
FACTOR = 1.7
"""The limit, times the ratio when it was calibrated: below 2, so that a doubling is above it."""

_ROUNDS = 3
_TRIES = 3
_CALIBRATIONS = 5
_TOGETHER = 64
_WRITES = 500
_MARKS = 1_500
_EVENTS = 3_000
_LISTED = 3_000
_CALLS_SECONDS = 0.5
_PROGRAM = str(Path(sys.executable).with_name("etcd-actions"))
# The load has no roots, and looking for them is not what is measured.
_NO_ORPHANS = WatchingSettings(collect_orphans=False)


class Place:
    """An etcd for the checks, a service on it, and unused prefixes."""

    def __init__(
        self, server: Server, directory: Path, address: str, process: psutil.Process
    ) -> None:
        self.server = server
        self.directory = directory
        self.service = address
        self.process = process
        self.numbers = count(1)

    def prefix(self) -> str:
        """One more."""
        return f"/guard/{next(self.numbers)}/"


Cost = Callable[[Place], float]
"""Processor time of one of something, in microseconds."""


@dataclass(frozen=True)
class Check:
    """A ratio: what it is of, and its two sides."""

    title: str
    ours: Cost
    floor: Cost


def grpcio_put(place: Place) -> float:
    """A put of 3 KB by grpcio, 64 in flight."""
    put = place.server.channel.unary_unary(
        "/etcdserverpb.KV/Put",
        request_serializer=pb.PutRequest.SerializeToString,
        response_deserializer=pb.PutResponse.FromString,
    )
    prefix = place.prefix().encode()
    value = _values(1)[0]
    free = threading.Semaphore(_TOGETHER)
    failed: list[object] = []

    def answered(future: grpc.Future) -> None:
        if future.exception() is not None:
            failed.append(future.exception())
        free.release()

    cpu = time.process_time()
    for number in range(_WRITES):
        free.acquire()
        future = put.future(pb.PutRequest(key=prefix + b"%d" % number, value=value), timeout=30)
        future.add_done_callback(answered)
    for _ in range(_TOGETHER):
        free.acquire()
    spent = time.process_time() - cpu
    if failed:
        raise RuntimeError(f"puts failed: {failed[0]}")
    return spent / _WRITES * 1e6


def put(place: Place) -> float:
    """The same by our transport."""

    async def measured() -> float:
        value = _values(1)[0]
        async with open_etcd([place.server.address]) as etcd:
            prefix = place.prefix().encode()

            async def one(number: int) -> None:
                await etcd.put(prefix + b"%d" % number, value)

            return await _each(one)

    return trio.run(measured)


def enqueue(place: Place) -> float:
    """An enqueue by the library, 64 in flight."""

    async def measured() -> float:
        async with (
            open_etcd([place.server.address]) as etcd,
            open_actions_client(etcd, prefix=place.prefix().encode()) as client,
        ):
            await client.enqueue(flyte.task(_child(PARENT)))

            async def one(number: int) -> None:
                await client.enqueue(flyte.task(_child(f"c{number}"), PARENT))

            return await _each(one)

    return trio.run(measured)


def status(place: Place) -> float:
    """A report by the library, 64 in flight, which goes by group commit."""

    async def measured() -> float:
        async with (
            open_etcd([place.server.address]) as etcd,
            open_actions_client(etcd, prefix=place.prefix().encode()) as client,
        ):
            await client.enqueue(flyte.task(_child(PARENT)))

            async def add(number: int) -> None:
                await client.enqueue(flyte.task(_child(f"c{number}"), PARENT))

            async def one(number: int) -> None:
                child_id = flyte.identifier(_child(f"c{number}"))
                await client.put_status(child_id, 1, flyte.status(Phase.RUNNING))

            await _each(add)
            return await _each(one)

    return trio.run(measured)


def marks(place: Place) -> float:
    """A mark by the library: listed, handled, with no run service, marked by group commit."""

    async def measured() -> float:
        prefix = place.prefix().encode()
        async with open_etcd([place.server.address]) as etcd:
            await put_ended(etcd, prefix, _MARKS)
            async with open_actions_client(etcd, prefix=prefix) as client:
                cpu = time.process_time()
                await client.start_watching()
                with trio.fail_after(60):
                    while sum(client.statistics().marks.values()) < _MARKS:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                return (time.process_time() - cpu) / _MARKS * 1e6

    return trio.run(measured)


def event(place: Place) -> float:
    """A put in a batch, to a subscriber."""
    prefix = place.prefix()
    plan = Plan(
        host=place.server.host,
        port=place.server.port,
        history=str(HISTORY),
        prefix=f"{prefix}flyte/",
        keys=_EVENTS,
        rate=0,
        batch=100,
        in_flight=4,
        events=_EVENTS,
        seconds=60,
        warm=0,
        rewrite=False,
        acks=str(place.directory / "acks"),
        per_run=_EVENTS,
    )

    async def measured() -> float:
        root = ActionId(PROJECT, DOMAIN, run_name(0), PARENT)
        seen = set()
        with child("load", plan.to_json(), place.directory / "load.log") as load:
            async with (
                open_etcd([place.server.address]) as etcd,
                open_actions_client(
                    etcd, prefix=prefix.encode(), run_service=Silence(), settings=_NO_ORPHANS
                ) as client,
            ):
                await client.start_watching()
                async with client.subscribe(root) as updates:
                    cpu = time.process_time()
                    load.send("go")
                    with trio.fail_after(60):
                        async for update in updates:
                            if isinstance(update, ActionUpdate):
                                seen.add(update.key)
                                if len(seen) == _EVENTS:
                                    break
                    return (time.process_time() - cpu) / _EVENTS * 1e6

    return trio.run(measured)


def listed(place: Place) -> float:
    """An object of the first list, until all are handled."""
    prefix = f"/guard/listed{_LISTED}/"

    async def measured() -> float:
        async with open_etcd([place.server.address]) as etcd:
            if not (await etcd.range(KeyRange.of_prefix(prefix.encode()), limit=1)).kvs:
                await put_ended(etcd, prefix.encode(), _LISTED)
            async with open_actions_client(
                etcd, prefix=prefix.encode(), run_service=Silence(), settings=_NO_ORPHANS
            ) as client:
                cpu = time.process_time()
                await client.start_watching()
                await client.stop_watching()
                return (time.process_time() - cpu) / _LISTED * 1e6

    return trio.run(measured)


def decoding(place: Place) -> float:
    """The decoder that all of it stands on, of the same values, into dicts."""
    values = _values(_EVENTS)
    cpu = time.process_time()
    for value in values:
        msgspec.json.decode(value)
    return (time.process_time() - cpu) / len(values) * 1e6


def connect_call(place: Place) -> float:
    """An Enqueue at the service's process, by Connect."""
    host, _, port = place.service.rpartition(":")
    service_load = ServiceLoad(
        kind="connect",
        host=host,
        port=int(port),
        together=16,
        seconds=_CALLS_SECONDS,
        first=next(place.numbers) * 100_000,
    )
    with child(
        "service_load", service_load.to_json(), place.directory / "service_load.log"
    ) as client:
        before = cpu_seconds(place.process)
        calls = int(client.receive("result", 60)["calls"])
        return (cpu_seconds(place.process) - before) / calls * 1e6


def version(place: Place) -> float:
    """``etcd-actions --version``."""
    return command_cost([_PROGRAM, "--version"], place.directory / "command.log")[0] * 1000


def interpreter(place: Place) -> float:
    """An interpreter that imports some of its own library."""
    command = [sys.executable, "-c", "import asyncio, json, logging"]
    return command_cost(command, place.directory / "command.log")[0] * 1000


CHECKS = {
    "put": Check("a put by our transport / by grpcio", put, grpcio_put),
    "enqueue": Check("an enqueue by the library / a put by grpcio", enqueue, grpcio_put),
    "status": Check("a status report by the library / a put by grpcio", status, grpcio_put),
    "marks": Check("a mark by the library / a put by grpcio", marks, grpcio_put),
    "event": Check("an event to its subscriber / decoding its value", event, decoding),
    "list": Check("an object of the first list, handled / decoding it", listed, decoding),
    "connect": Check(
        "a Connect Enqueue at the service / a put by grpcio", connect_call, grpcio_put
    ),
    "version": Check("etcd-actions --version / an interpreter", version, interpreter),
}


class Ratio(NamedTuple):
    """Two costs, in microseconds."""

    ours: float
    floor: float

    @property
    def value(self) -> float:
        """How often the floor goes into ours."""
        return self.ours / self.floor


def measured(place: Place, names: list[str], rounds: int) -> dict[str, Ratio]:
    """The ratio of each check: medians of both sides, measured in turns."""
    found: dict[Cost, list[float]] = {}
    for _ in range(rounds):
        # A floor before and after what stands on it.
        for cost in [
            *dict.fromkeys(CHECKS[name].floor for name in names),
            *(CHECKS[name].ours for name in names),
            *dict.fromkeys(CHECKS[name].floor for name in names),
        ]:
            found.setdefault(cost, []).append(cost(place))
    costs = {cost: median(values) for cost, values in found.items()}
    return {name: Ratio(costs[CHECKS[name].ours], costs[CHECKS[name].floor]) for name in names}


def compare(place: Place, names: list[str], limits: dict[str, float]) -> list[str]:
    """Measure, print, and return the checks that are above their limits each time."""
    left = names
    for number in range(_TRIES):
        ratios = measured(place, left, _ROUNDS)
        for name in left:
            ours, floor = ratios[name]
            value, limit = ratios[name].value, limits[name]
            said = "ok" if value <= limit else "ABOVE"
            costs = f"{ours:9,.0f} / {floor:6,.0f} µs"
            print(f"{name:8} {value:7.2f}  limit {limit:7.2f}  {costs}  {said}", flush=True)
        left = [name for name in left if ratios[name].value > limits[name]]
        if not left:
            break
        if number + 1 < _TRIES:
            print(f"measured again: {', '.join(left)}", flush=True)
    return left


def calibrate(place: Place) -> None:
    """Write the limits: medians of some measurements, times :data:`FACTOR`."""
    names = list(CHECKS)
    found = [measured(place, names, _ROUNDS) for _ in range(_CALIBRATIONS)]
    text = [
        "# Limits of scripts/bench/guard, by its --calibrate: ratios of processor time,",
        f"# {FACTOR} times the measured ratio; after each the least and the most of the rounds.",
    ]
    for name in names:
        ratios = sorted(one[name].value for one in found)
        print(f"{name:8} {' '.join(f'{ratio:.2f}' for ratio in ratios)}")
        text += [
            "",
            f"# {CHECKS[name].title}: {ratios[0]:.2f} to {ratios[-1]:.2f}",
            f"{name} = {FACTOR * median(ratios):.2f}",
        ]
    LIMITS.write_text("\n".join(text) + "\n", encoding="utf-8")


@contextmanager
def _place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="guard-") as name:
        directory = Path(name)
        with (
            etcd_server(etcd_binary(None), directory) as server,
            service(server.address, directory / "service.log") as (address, process),
        ):
            place = Place(server, directory, address, process)
            # Once unmeasured: what is imported on first use, here and in the service.
            connect_call(place)
            enqueue(place)
            yield place


def _values(total: int) -> list[bytes]:
    """Values as the load sends them."""
    values = [
        body.before + stamp(0) + body.after
        for states in bodies(HISTORY, "", min(total, 200))
        for body in states[:1]
    ]
    return [values[number % len(values)] for number in range(total)]


def _child(name: str) -> ActionId:
    return ActionId("p", "d", "r1", name)


async def _each(one: Callable[[int], Awaitable[object]]) -> float:
    """Microseconds of processor time of each of some calls."""
    left = iter(range(_WRITES))

    async def worker() -> None:
        for number in left:
            await one(number)

    cpu = time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(_TOGETHER):
            nursery.start_soon(worker)
    return (time.process_time() - cpu) / _WRITES * 1e6


def main() -> None:
    """Measure, and fail if something is above its limit."""
    parser = argparse.ArgumentParser(prog="scripts/bench/guard", description=__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)} (all)")
    parser.add_argument("--calibrate", action="store_true", help=f"write {LIMITS.name}")
    options = parser.parse_args()
    for name in options.checks:
        if name not in CHECKS:
            parser.error(f"no check {name!r}")
    errors = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=errors)
    began = time.monotonic()
    with _place() as place:
        if options.calibrate:
            calibrate(place)
            above = []
        else:
            limits = tomllib.loads(LIMITS.read_text(encoding="utf-8"))
            above = compare(place, options.checks or list(CHECKS), limits)
    print(f"{time.monotonic() - began:.0f} s in all")
    if above:
        print(
            f"guard: above the limit {_TRIES} times: {', '.join(above)}. Find what costs more, or,"
            f" where it is meant to, set {LIMITS.name} again by --calibrate on a quiet machine.",
            file=sys.stderr,
        )
        raise SystemExit(1)


if __name__ == "__main__":
    main()
