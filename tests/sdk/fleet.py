"""A program over workers on three machines, while each part is killed once.

A machine is a network namespace with a mount namespace for each process: a worker sees its own
state directory, etcd and the store, and no state directory of another one.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio
from flyteidl2.task.common_pb2 import Outputs

from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from tests.cli.command import Running, running
from tests.sdk.service import Site, free_port
from tests.support.attempt_oracle import (
    Reported,
    Start,
    is_recorded,
    lost_attempts,
    reported,
)
from tests.support.cluster import EtcdCluster
from tests.support.namespaces import Namespace, open_network
from tests.support.oracle import read_history
from tests.support.patient import patiently
from tests.support.ray_cluster import RayCluster
from tests.support.waiting import eventually, eventually_holds

RUN: Final = "rfleet"
PREFIX: Final = b"/registry/flyte.org/taskactions/"
MACHINES: Final = "abc"
CLAIM_TTL: Final = 5

_ROOT = PREFIX + f"flyte/{RUN}-a0".encode()
_EVERY = 0.1
# A machine's own directory, at the same path on each, hides the directories of all machines.
_MOUNTS = 'mount --bind "$1" "$2" && mount -t tmpfs none "$3" && shift 3 && exec "$@"'


class _Record(msgspec.Struct):
    """A line of a log."""

    level: str
    event: str


class _Claim(msgspec.Struct):
    """The value of a claim."""

    owner: str


@dataclass(frozen=True)
class Program:
    """A root with branches of leaves; with ``on_ray``, one more branch of so many jobs."""

    branches: int
    width: int
    on_ray: int = 0
    seconds: float = 0.2

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return 1 + self.branches * (1 + self.width) + (1 + self.on_ray if self.on_ray else 0)

    @property
    def result(self) -> int:
        """The sum of the double of each number."""
        numbers = self.branches * self.width + self.on_ray
        return numbers * (numbers - 1)

    def inputs(self, notes: Path) -> list[str]:
        """The inputs of the root."""
        return [
            f"branches={self.branches}",
            f"width={self.width}",
            f"on_ray={self.on_ray}",
            f"seconds={self.seconds}",
            f"directory={notes}",
        ]


@dataclass
class Outcome:
    """What a run of the program showed; ``problems`` are broken promises."""

    program: Program
    seconds: float
    value: int | None
    states: list[Reported]
    starts: list[Start]
    etcd: str
    faults: list[str]
    logged: Counter[str]
    problems: list[str] = field(default_factory=list)

    @property
    def attempts(self) -> int:
        """The number of attempts of all actions."""
        return sum({each.action: each.attempt for each in self.states}.values())

    @property
    def lost(self) -> Counter[str]:
        """The number of attempts that another one followed, by the code of their error."""
        return lost_attempts(self.states)

    @property
    def by_machine(self) -> list[int]:
        """The number of starts on each machine, most first."""
        return sorted(Counter(each.machine for each in self.starts).values(), reverse=True)

    def __str__(self) -> str:
        """Some lines."""
        lost = ", ".join(f"{times} {code}" for code, times in self.lost.most_common()) or "none"
        return "\n".join(
            [
                f"{self.program.tasks} tasks in {self.seconds:.0f} s on etcd {self.etcd}, "
                f"{self.attempts} attempts, lost: {lost}",
                f"starts by machine: {', '.join(map(str, self.by_machine))}",
                *(f"fault: {each}" for each in self.faults),
                *(f"logged {times} times: {event}" for event, times in self.logged.most_common()),
                f"result {self.value}, {len(self.problems)} problems",
                *self.problems,
            ]
        )


class Fleet(Site):
    """The machines, the service and etcd; :func:`open_fleet` makes it.

    Attributes:
        cluster: Three members of etcd.
        machines: The machines by name.
        faults: What was broken so far, with the seconds since the start of the program.
    """

    def __init__(
        self, directory: Path, cluster: EtcdCluster, machines: dict[str, Namespace], python: Path
    ) -> None:
        store = directory / "store"
        store.mkdir()
        super().__init__(store, ",".join(cluster.endpoints), PREFIX, python)
        self.cluster = cluster
        self.machines = machines
        self.faults: list[str] = []
        self.executor = ("--executor", "none", "--blob-dir", str(store / "blobs"))
        self.state_dir = directory / "state"
        self._ray_state = directory / "ray"
        self._logs = directory / "logs"
        self._machines = directory / "machines"
        self._began = 0.0
        for each in (self.state_dir, self._logs, *(self._machines / name for name in machines)):
            each.mkdir(parents=True)

    def service(self, port: int, *flags: str) -> AbstractContextManager[Running]:
        """The service, on this machine."""
        listen = ("--listen", f"127.0.0.1:{port}")
        return running(self._logs, "run", *self.common, *listen, *self.executor, *flags)

    def worker(self, name: str, *flags: str) -> AbstractContextManager[Running]:
        """The worker of a machine, for as long as the context lasts."""
        machine = self.machines[name]
        own = (self._machines / name, self.state_dir, self._machines)
        return running(
            self._logs,
            "worker",
            *self.common,
            *self.python,
            *("--executor-state-dir", self.state_dir),
            *("--executor-claim-ttl", str(CLAIM_TTL)),
            *("--blob-dir", self.directory / "blobs"),
            *flags,
            within=machine.command("sh", "-c", _MOUNTS, "sh", *own),
        )

    def ray_worker(self, cluster: RayCluster, python: Path) -> AbstractContextManager[Running]:
        """A worker on this machine that submits to a Ray cluster."""
        return running(
            self._logs,
            "worker",
            *self.common,
            *("--python", python),
            *("--executor-state-dir", self._ray_state),
            *("--executor-claim-ttl", str(CLAIM_TTL)),
            *("--blob-dir", self.directory / "blobs"),
            *("--pool", "ray", "--executor", "ray", "--ray-address", cluster.address),
            *("--tasks-listen", f"127.0.0.1:{free_port()}", "--executor-slots", "8"),
        )

    def jobs_started(self) -> int:
        """How many starts there were on this machine, which are those of Ray's jobs."""
        here = os.readlink("/proc/self/ns/net")  # noqa: PTH115 - no path
        return sum(each.machine == here for each in self.all_starts())

    def note(self, fault: str) -> None:
        """Note what is broken now."""
        self.faults.append(f"{time.monotonic() - self._began:.0f} s: {fault}")

    def begin(self) -> None:
        """Count the time of faults from now on."""
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the program began."""
        return time.monotonic() - self._began

    def all_starts(self) -> list[Start]:
        """The notes of the tasks, in order."""
        try:
            return [Start.of(line) for line in (self.notes / "starts").read_text().splitlines()]
        except FileNotFoundError:
            return []

    async def started(self, tasks: float, within: float = 240) -> None:
        """Return once so many tasks have started."""

        def are_started() -> bool:
            return len({each.action for each in self.all_starts()}) >= tasks

        try:
            await eventually(are_started, within=within, every=_EVERY)
        except trio.TooSlowError:
            started = len({each.action for each in self.all_starts()})
            raise AssertionError(
                f"{started} tasks have started, not {tasks:g}; logged: {self.logged()}"
            ) from None

    def logged(self) -> Counter[str]:
        """How often each warning and error was logged, by all processes together."""
        found: Counter[str] = Counter()
        for path in self._logs.glob("*.err"):
            for line in path.read_bytes().splitlines():
                with suppress(msgspec.DecodeError):
                    record = msgspec.json.decode(line, type=_Record)
                    if record.level not in ("debug", "info"):
                        found[f"{record.level} {record.event}"] += 1
        return found

    async def has_claims(self, etcd: Etcd, pid: int) -> bool:
        """Whether a process has claims in etcd."""
        claims = await patiently(etcd.range, KeyRange.of_prefix(Keyspace(PREFIX).claims))
        owners = [msgspec.json.decode(kv.value, type=_Claim).owner for kv in claims.kvs]
        return any(owner.endswith(f"/{pid}") for owner in owners)

    async def has_no_claims(self, etcd: Etcd, pid: int) -> bool:
        """Whether it has none."""
        return not await self.has_claims(etcd, pid)

    async def states(self, etcd: Etcd) -> list[Reported]:
        """The states of all actions so far, in order."""
        return reported(await read_history(etcd, KeyRange.of_prefix(PREFIX)))

    async def until_ended(self, etcd: Etcd, within: float) -> None:
        """Return once the root has ended, and all ends are recorded."""
        for prefix, every in ((_ROOT, _EVERY), (PREFIX, 1)):
            recorded = partial(patiently, self._is_recorded, etcd, KeyRange.of_prefix(prefix))
            await eventually_holds(recorded, within=within, every=every)

    async def _is_recorded(self, etcd: Etcd, keys: KeyRange) -> bool:
        found = (await etcd.range(keys)).kvs
        return bool(found) and all(is_recorded(kv) for kv in found)

    def value(self, output_uri: str) -> int | None:
        """The integer in an action's outputs; None if there are no outputs."""
        path = Path(output_uri.removeprefix("file://")) / "outputs.pb"
        if not path.exists():
            return None
        [named] = Outputs.FromString(path.read_bytes()).literals
        return int(named.value.scalar.primitive.integer)


@contextmanager
def open_fleet(directory: Path, python: Path) -> Iterator[Fleet]:
    """Three machines and three members of etcd; at the end all their processes are killed.

    Args:
        directory: Where data, logs and files of runs go.
        python: The interpreter of an environment with Flyte's SDK.

    Raises:
        RuntimeError: No network namespaces can be made here; see ``namespaces.why_not``.
    """
    with open_network() as (network, address), ExitStack() as stack:
        machines = {name: network.add(name) for name in MACHINES}
        # etcd's defaults: on a busy machine members must not take each other for dead.
        flags = ["--heartbeat-interval=100", "--election-timeout=1000"]
        cluster = EtcdCluster(directory / "etcd", size=3, host=address, flags=flags)
        stack.callback(cluster.stop)
        cluster.start()
        fleet = Fleet(directory, cluster, machines, python)
        stack.callback(fleet.end_all)
        for machine in machines.values():
            stack.callback(machine.kill_all)
        yield fleet
