"""One schedule: starts everything, does what the plan says, heals, waits, and asks the oracle."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import trio

from etcd_actions import open_actions_client
from etcd_actions.etcd import ConnectionSettings, EtcdClient, open_connection
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.model import Keyspace
from etcd_actions.testing import EtcdBinary
from tests.cli.command import finish
from tests.schedules import letters as letters_
from tests.schedules import oracle, process_main, store_faults
from tests.schedules.disturbing import Disturber
from tests.schedules.observer import Observer
from tests.schedules.plan import Plan, Step
from tests.schedules.processes import GRACE, Process
from tests.schedules.readers import Reader
from tests.schedules.run_service import LoggingRunService
from tests.schedules.writers import DIRECT, Ways, Write, write
from tests.support.cluster import EtcdCluster
from tests.support.proxy import Proxy, open_proxy

PREFIX = "/schedule/taskactions/"
CALM = 60.0
"""Seconds that everything may take to come to its end, once all is healed."""
SETTLE = 1.5
"""Seconds for which the end has to stay: what a stopped process sends late lands in them."""
_READY = 30.0
_LOOK = 0.15
# A leader that was deposed behind its back may call until it knows, and its calls land within
# their deadline; the time for which machines stall is in it.
_LATE = process_main.ELECTION_TTL + process_main.CALL_DEADLINE + 1.5


@dataclass
class Outcome:
    """What became of a schedule.

    Attributes:
        plan: Which one.
        version: Of etcd.
        violations: What must not be.
        seconds: How long it took, in all.
        calm: Seconds from the healing until everything had come to its end.
        faults: How often which fault was really done.
        counts: How much happened.
        logged: How often our processes logged what, from warnings on.
    """

    plan: Plan
    version: str
    violations: list[oracle.Violation]
    seconds: float = 0.0
    calm: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    logged: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> bytes:
        """For the results of many."""
        return msgspec.json.encode(
            {
                "seed": self.plan.seed,
                "version": self.version,
                "violations": [str(each) for each in self.violations],
                "seconds": round(self.seconds, 2),
                "calm": round(self.calm, 2),
                "faults": dict(self.faults),
                "counts": dict(self.counts),
                "logged": dict(self.logged),
            }
        )


@dataclass
class World:
    """All that there is in a schedule."""

    plan: Plan
    keys: Keyspace
    cluster: EtcdCluster
    processes: list[Process]
    proxies: list[list[Proxy]]
    doors: list[Proxy]
    run_service: LoggingRunService
    observer: Observer
    direct: EtcdClient
    ways: Ways
    writes: list[Write] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    compactions: list[int] = field(default_factory=list)
    began: float = 0.0
    retried: bool = False

    @property
    def now(self) -> float:
        """Seconds since the first step could be."""
        return time.monotonic() - self.began

    def evidence(self) -> oracle.Evidence:
        """What the oracle is to look at."""
        with self.run_service._lock:
            landings = list(self.run_service.landings)
        return oracle.Evidence(
            facts=list(self.observer.facts),
            landings=landings,
            writes=list(self.writes),
            readers=list(self.readers),
            late=_LATE,
            compactions=list(self.compactions),
            letters=list(self.observer.letters),
            forgotten=list(self.run_service.forgotten),
            retried=self.retried,
        )


async def run(plan: Plan, directory: Path, binary: EtcdBinary) -> Outcome:
    """Do what a plan says, and judge it. Logs and data go to ``directory``."""
    began = time.monotonic()
    (directory / "plan.txt").write_text(str(plan))
    outcome = Outcome(plan, str(binary.version), [])
    async with _open_world(plan, directory, binary) as world:
        disturber = Disturber(world)
        await _play(world, disturber, outcome)
        await _end(world, outcome)
        outcome.faults += disturber.done
        _count(world, outcome)
        _keep(world, directory)
    outcome.seconds = time.monotonic() - began
    return outcome


@asynccontextmanager
async def _open_world(plan: Plan, directory: Path, binary: EtcdBinary) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        cluster = store_faults.plain_cluster(directory, plan.members, binary)
        stack.callback(cluster.stop)
        await trio.to_thread.run_sync(cluster.start)
        connection = ConnectionSettings(
            endpoints=parse_endpoints(cluster.endpoints), dial_timeout=0.5, request_timeout=1.5
        )
        direct = await enter(open_connection(connection))
        watched = await enter(open_connection(connection))
        keys = Keyspace(PREFIX.encode())
        library = await enter(open_actions_client(direct, prefix=keys.prefix, codec=plan.codec))
        run_service = stack.enter_context(LoggingRunService())
        proxies = [
            [await enter(open_proxy(member.port)) for member in cluster.members]
            for _ in range(plan.processes)
        ]
        doors = [await enter(open_proxy(run_service.port)) for _ in range(plan.processes)]
        processes = [
            Process(number, directory, _arguments(plan, proxies[number], doors[number]))
            for number in range(plan.processes)
        ]
        for process in processes:
            stack.callback(process.close)
        nursery = await enter(trio.open_nursery())
        observer = Observer(watched, keys)
        nursery.start_soon(observer.run)
        ways = Ways([process.address for process in processes], library, direct, keys)
        yield World(
            plan,
            keys,
            cluster,
            processes,
            proxies,
            doors,
            run_service,
            observer,
            direct,
            ways,
        )
        nursery.cancel_scope.cancel("the schedule is over")


def _arguments(plan: Plan, proxies: list[Proxy], door: Proxy) -> list[str]:
    return [
        "--endpoints=" + ",".join(proxy.endpoint for proxy in proxies),
        f"--run-service=http://{door.endpoint}",
        f"--prefix={PREFIX}",
        f"--codec={plan.codec}",
        f"--transport={plan.transport}",
        "--dial-timeout=500ms",
        "--command-timeout=1s",
        f"--grace={GRACE:g}s",
        "--stats-interval=0",
        *([f"--shards={plan.shards}"] if plan.shards else []),
        "--log-format=json",
    ]


async def _play(world: World, disturber: Disturber, outcome: Outcome) -> None:
    """Everything that the plan says; then heal, wait for the end, and judge it."""
    for process in world.processes:
        process.start()
    await _until_ready(world)
    world.began = time.monotonic()
    async with trio.open_nursery() as reading:
        for step in world.plan.readers:
            reading.start_soon(_read, world, step)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_write_all, world)
            for step in world.plan.faults:
                nursery.start_soon(disturber.disturb, step)
        await disturber.heal()
        healed = time.monotonic()
        await _until_ready(world)
        await _until_calm(world)
        outcome.calm = time.monotonic() - healed
        await _retry_letters(world, outcome)
        await trio.sleep(SETTLE)
        # A leader that was elected at the end may still be busy with what was a dead letter.
        await _until_calm(world)
        await world.observer.caught_up()
        evidence = world.evidence()
        outcome.violations += oracle.always(evidence) + oracle.finally_(evidence)
        outcome.counts["readers at the end"] += sum(each.is_there for each in world.readers)
        reading.cancel_scope.cancel("all is said")


async def _until_ready(world: World) -> None:
    """Return once each process says that it is ready, or patience ends: the oracle tells."""
    with trio.move_on_after(_READY):
        for process in world.processes:
            while not await trio.to_thread.run_sync(process.is_ready):
                process.look()
                if process.life.code is not None:
                    break
                await trio.sleep(0.05)


async def _until_calm(world: World) -> None:
    """Return once the end is as it must be, or patience ends: the oracle tells."""
    with trio.move_on_after(CALM):
        while True:
            await world.observer.caught_up()
            expected = sum("for" not in step.args for step in world.plan.readers)
            there = sum(each.is_there for each in world.readers) >= expected
            if there and not oracle.finally_(world.evidence()):
                return
            await trio.sleep(_LOOK)


async def _retry_letters(world: World, outcome: Outcome) -> None:
    """What was refused for good is told again, as an operator has it done; nothing is left."""
    letters = letters_.there(world.observer.letters)
    outcome.counts["dead letters at the end"] += len(letters)
    if letters:
        done = await trio.to_thread.run_sync(
            partial(
                finish,
                *("dead-letters", "retry", "--all", "--wait"),
                "--endpoints=" + ",".join(world.cluster.endpoints),
                f"--prefix={PREFIX}",
            )
        )
        if done.code:
            text = f"dead-letters retry ended with {done.code}: {done.err[-1000:]}"
            outcome.violations.append(oracle.Violation("retry", "operator", text))
    world.retried = True
    if letters:
        await _until_calm(world)


async def _end(world: World, outcome: Outcome) -> None:
    """End all processes in order; they must do it in time, and must not have died before."""
    async with trio.open_nursery() as nursery:
        for process in world.processes:
            process.look()
            nursery.start_soon(process.term)
    await world.observer.caught_up()
    outcome.violations += [
        each for each in oracle.always(world.evidence()) if each not in outcome.violations
    ]
    for text in world.observer.problems:
        outcome.violations.append(oracle.Violation("store", "etcd", text))
    for process in world.processes:
        for life in process.lives:
            for problem in life.problems():
                kind, _, text = problem.partition(": ")
                outcome.violations.append(oracle.Violation(kind, f"process {process.number}", text))


async def _read(world: World, step: Step) -> None:
    await _until(world, step.at)
    reader = Reader.of(step)
    world.readers.append(reader)
    address = world.processes[int(reader.via.partition(":")[2])].address
    if step.lasts:
        with trio.move_on_after(step.lasts):
            await reader.read(address)
        if step.args["again"] == "no":
            return
        await trio.sleep(step.lasts)
    await reader.read(address)


async def _write_all(world: World) -> None:
    """What is to be done to an action is done one after another, a child behind its parent."""
    chains: dict[tuple[str, str], list[Step]] = {}
    for step in world.plan.writes:
        chains.setdefault((step.args["run"], step.args["name"]), []).append(step)
    enqueued = {action: trio.Event() for action in chains}

    async def play(action: tuple[str, str], steps: list[Step]) -> None:
        try:
            for step in steps:
                await _until(world, step.at)
                above = enqueued.get((action[0], step.args.get("parent", "-")))
                if above is not None:
                    await above.wait()
                done = Write(step)
                world.writes.append(done)
                await write(world.ways, done)
                enqueued[action].set()
        finally:
            enqueued[action].set()

    async with trio.open_nursery() as nursery:
        for action, steps in chains.items():
            nursery.start_soon(play, action, steps)


async def _until(world: World, at: float) -> None:
    await trio.sleep(max(0.0, world.began + at - time.monotonic()))


def _count(world: World, outcome: Outcome) -> None:
    counts = outcome.counts
    counts["changes"] += len(world.observer.facts)
    counts["marks"] += sum(fact.recorded for fact in world.observer.facts)
    counts["compactions"] += len(world.compactions)
    for landing in world.run_service.landings:
        counts[f"run service {landing.what}"] += 1
        counts["run service not accepted"] += not landing.accepted
    for done in world.writes:
        counts[f"writes {done.outcome}"] += 1
        if done.step.what in DIRECT:
            counts[f"directly in etcd: {done.step.what}, {done.outcome}"] += 1
    for reader in world.readers:
        counts["streams"] += len(reader.streams)
        counts["states read"] += sum(map(len, reader.streams))
    for process in world.processes:
        counts["starts of ours"] += len(process.lives)
        for life in process.lives:
            for event, times in life.events().items():
                if not event.startswith(("info", "debug")):
                    outcome.logged[event] += times
                if event == "info elected":
                    counts["elections"] += times


def _keep(world: World, directory: Path) -> None:
    """Write down what happened, in the order of time, for those who look into a violation."""
    began = world.began
    lines: list[tuple[float, str]] = []
    for fact in world.observer.facts:
        lines.append((fact.seen, f"etcd {fact.key.decode()} {fact}"))
    for landing in world.run_service.landings:
        came = f"came {landing.arrived - began:.3f}"
        what = f"{landing.what} {'/'.join(landing.action)} {landing}"
        lines.append((landing.landed, f"run-service ({came}) {what}"))
    for letter in world.observer.letters:
        # Letters have no time: they stand where their revision was seen.
        seen = [fact.seen for fact in world.observer.facts if fact.revision <= letter.revision]
        lines.append((max(seen, default=began), f"etcd {letter}"))
    for done in world.writes:
        detail = f"{done.outcome} {done.detail} after {done.tries}"
        lines.append((done.sent, f"write {done.step}: {detail}"))
    for process in world.processes:
        for life in process.lives:
            ended = f"{life.how} {life.code} took {life.took:.3f}"
            lines.append((life.began, f"process {process.number} pid {life.pid}: {ended}"))
    with (directory / "history.txt").open("w") as out:
        for at, line in sorted(lines):
            out.write(f"{at - began:8.3f} {line}\n")
        for reader in world.readers:
            for stream in filter(None, reader.streams):
                out.write(f"reader {reader.number} {reader.via}: {' '.join(map(str, stream))}\n")
            out.write(f"reader {reader.number} errors: {Counter(reader.errors)}\n")
