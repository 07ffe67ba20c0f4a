"""A whole process under attack, with witnesses beside it that must notice nothing."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import grpc
import psutil
from flyteidl2.actions import actions_service_pb2 as pb
from grpc_health.v1 import health_pb2

from tests.cli.command import ROOT, Running, environment
from tests.server.clients import ConnectClient
from tests.support import flyte
from tests.support.cluster import Certificates
from tests.support.hostile_wire import HEALTH, SERVICE, Target
from tests.support.hostile_witnesses import (
    GOOD_ROOT,
    PATIENCE,
    Enqueuer,
    GrpcStream,
    Probe,
    Reader,
    Witness,
)

ANSWER_WITHIN: Final = 5.0
"""Seconds that a probe may take during an attack, besides waiting for a processor."""

DESCRIPTORS: Final = 256
_LINES: Final = 120
# What thousands of streams took once goes back to the system only in part.
_MORE_MEMORY: Final = 300 * 1024 * 1024
_MORE_DESCRIPTORS: Final = 8
_MORE_THREADS: Final = 24

_FLAGS: Final = (
    *("--max-streams", "100"),
    *("--max-request-bytes", "256KiB"),
    *("--rate-limit", "500"),
    *("--request-timeout", "30s"),
    *("--command-timeout", "30s"),
    *("--grace", "5s"),
)

T = TypeVar("T")


def until(look: Callable[[], T], *, within: float = PATIENCE, what: str = "") -> T:
    """Look again and again until there is something true; then return it."""
    give_up = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < give_up, what or "waited for in vain"
        time.sleep(0.02)
    return found


class Usage(NamedTuple):
    """What a process holds."""

    descriptors: int
    threads: int
    memory: int
    half_closed: int


class Attacker:
    """The process that attacks."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @contextmanager
    def attack(self, name: str, target: Target) -> Iterator[dict[str, Any]]:
        """Attack; the worst is reached inside the context, and it is over after it.

        Raises:
            AssertionError: What the attacker saw is not what must hold.
        """
        order = {"attack": name, "target": vars(target)}
        self._say(json.dumps(order))
        held = self._hear()
        assert held["stage"] == "held", held["error"]
        try:
            yield held["observed"]
        finally:
            self._say("")
            over = self._hear()
        assert over["stage"] == "over", over["error"]

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the attacker has ended"
        heard: dict[str, Any] = json.loads(line)
        return heard


@contextmanager
def open_attacker() -> Iterator[Attacker]:
    """Start a process that attacks on demand."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.hostile_main"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
    )
    try:
        yield Attacker(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


class Siege:
    """A process, its witnesses, and its attacker; made by :func:`besiege`."""

    def __init__(
        self, service: Running, attacker: Attacker, targets: dict[str, Target], ca: bytes | None
    ) -> None:
        self.service = service
        self._attacker = attacker
        self.targets = targets
        self._process = psutil.Process(service.pid)
        address = f"127.0.0.1:{targets['service'].port}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        if ca is None:
            self._channel = grpc.insecure_channel(address, options)
            self._client = ConnectClient(address, deadline=PATIENCE)
        else:
            credentials = grpc.ssl_channel_credentials(ca)
            self._channel = grpc.secure_channel(address, credentials, options)
            context = ssl.create_default_context(cadata=ca.decode())
            self._client = ConnectClient(address, tls=context, deadline=PATIENCE)
        self.probe = Probe(targets["monitoring"].port, service.pid)
        self.enqueuer = Enqueuer(self._client)
        stub = self._channel.unary_stream(
            f"/{SERVICE}/WatchForUpdates",
            request_serializer=pb.WatchForUpdatesRequest.SerializeToString,
            response_deserializer=pb.WatchForUpdatesResponse.FromString,
        )
        self._check = self._channel.unary_unary(
            f"/{HEALTH}/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self.readers = {
            "connect": Reader(self._client.stream),
            "grpc": Reader(lambda request: GrpcStream(stub(request))),
        }
        self.witnesses: list[Witness] = [self.probe, self.enqueuer, *self.readers.values()]
        self._before: Usage | None = None

    @property
    def lives(self) -> bool:
        """Whether the process goes on."""
        return self.service.process.poll() is None

    def usage(self) -> Usage:
        """What the process holds now."""
        with self._process.oneshot():
            half_closed = [
                each
                for each in self._process.net_connections("tcp")
                if each.status == psutil.CONN_CLOSE_WAIT
            ]
            return Usage(
                self._process.num_fds(),
                self._process.num_threads(),
                self._process.memory_info().rss,
                len(half_closed),
            )

    def metrics(self) -> dict[str, float]:
        """Each metric, with its labels, and its value."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.targets["monitoring"].port, timeout=PATIENCE
        )
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        values = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in values}

    def _total(self, beginnings: tuple[str, ...]) -> float:
        found = self.metrics() if beginnings else {}
        return sum(value for name, value in found.items() if name.startswith(beginnings))

    def start(self) -> None:
        """Start the witnesses; returns once all have seen something."""
        for witness in self.witnesses:
            witness.start()
        self.until_all_see(3)
        until(lambda: self.probe.ask("/readyz") == 200)
        self._check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        self.metrics()
        self._before = self.usage()

    def until_all_see(self, more: int) -> None:
        """Return once so many more actions ended, and both readers were told of all."""
        wanted = len(self.enqueuer.ended) + more
        until(
            lambda: len(self.enqueuer.ended) >= wanted or self.enqueuer.problem or not self.lives,
            what=f"no endings: {self.enqueuer.failed[-3:]}",
        )
        assert self.lives, self.tail()
        assert self.enqueuer.problem is None
        ended = set(self.enqueuer.ended)
        for name, reader in self.readers.items():
            until(
                lambda reader=reader: reader.seen >= ended or reader.problem,  # type: ignore[misc]
                what=f"{name}: misses {len(ended - reader.seen)} of {len(ended)}: {reader.cuts}",
            )
            assert reader.problem is None

    @contextmanager
    def attacked(
        self,
        name: str,
        target: str,
        *,
        allowed: tuple[str, ...] = (),
        counted: tuple[str, ...] = (),
    ) -> Iterator[dict[str, Any]]:
        """Attack, and see that nobody notices: in the middle of it and after it.

        Args:
            name: Of the attack.
            target: Which port.
            allowed: Of ``probe``, ``enqueuer`` and ``reader``, who may notice.
            counted: Beginnings of metrics, of which one at least must tell of the attack.
        """
        before = self._total(counted)
        for failures in (self.probe.failed, self.enqueuer.failed):
            failures.clear()
        for reader in self.readers.values():
            reader.cuts.clear()
        self.probe.slowest, asked = 0.0, self.probe.asked
        lines = self.service.err.count("\n")
        with self._attacker.attack(name, self.targets[target]) as observed:
            assert self.lives, self.tail()
            yield observed
            self.until_all_see(3)
            if counted:
                # What an idle connection is closed for takes its time.
                told = f"one of {counted} tells of it"
                until(lambda: self._total(counted) > before, what=told)
        assert self.lives, self.tail()
        self.until_all_see(1)
        self.check_recovered()
        assert self.probe.asked > asked
        if "probe" not in allowed:
            assert not self.probe.failed, self.probe.failed[:5]
        assert self.probe.slowest < ANSWER_WITHIN, f"a probe took {self.probe.slowest:.1f} s"
        if "enqueuer" not in allowed:
            assert not self.enqueuer.failed, self.enqueuer.failed[:5]
        if "reader" not in allowed:
            assert not (
                cuts := {key: each.cuts for key, each in self.readers.items() if each.cuts}
            ), cuts
        written = self.service.err.count("\n") - lines
        assert written <= _LINES, f"{written} lines: {self.tail()}"

    @contextmanager
    def held(self, name: str, target: str) -> Iterator[None]:
        """Attack; nothing is looked at."""
        with self._attacker.attack(name, self.targets[target]):
            yield

    def check_recovered(self) -> None:
        """All that an attack took is free again, and somebody new is served."""
        before = self._before
        assert before is not None

        def is_as_before() -> bool:
            now = self.usage()
            return (
                now.descriptors <= before.descriptors + _MORE_DESCRIPTORS
                and now.threads <= before.threads + _MORE_THREADS
                and now.memory <= before.memory + _MORE_MEMORY
                and now.half_closed == 0
            )

        give_up = time.monotonic() + PATIENCE
        while not (recovered := is_as_before()) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert recovered, f"{before} before, {self.usage()} now"
        self._client.call("Enqueue", pb.EnqueueRequest(action=flyte.task(GOOD_ROOT)))
        self._check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)

    def tail(self) -> str:
        """The last of the log."""
        return f"exit {self.service.process.poll()}: {self.service.err[-6000:]}"

    def close(self) -> None:
        """Stop the witnesses."""
        for witness in self.witnesses:
            witness.stop()
        self._channel.close()


@contextmanager
def few_descriptors(directory: Path, *arguments: str) -> Iterator[Running]:
    """Run a command that may have no more than :data:`DESCRIPTORS` open files."""
    number = len(list(directory.glob("*.err")))
    out, err = directory / f"{number}.out", directory / f"{number}.err"
    script = f'ulimit -n {DESCRIPTORS}; exec "$@"'
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(
            ["sh", "-c", script, "sh", sys.executable, "-m", "etcd_actions", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
            env=environment(),
        )
    try:
        yield Running(process, out, err)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextmanager
def besiege(
    directory: Path, endpoint: str, prefix: str, *more: str, tls: bool = False
) -> Iterator[Siege]:
    """Start a process with few descriptors, its witnesses and an attacker."""
    certificates = None
    flags = ["--endpoints", endpoint, "--prefix", prefix, *_FLAGS, *more]
    if tls:
        certificates = Certificates(directory / "ca")
        pair = certificates.issue("server", "127.0.0.1", "localhost")
        flags += ["--listen-cert", str(pair.cert), "--listen-key", str(pair.key)]
    with ExitStack() as stack:
        service = stack.enter_context(few_descriptors(directory, "run", *flags))
        ports = {}
        for event in ("serving", "monitoring"):
            until(
                lambda event=event: service.logs(event) or service.process.poll() is not None,  # type: ignore[misc]
                what=service.err,
            )
            assert service.logs(event), service.err
            ports[event] = int(service.logs(event)[0]["listen"].rpartition(":")[2])
        targets = {
            "service": Target(ports["serving"], tls=tls),
            "monitoring": Target(ports["monitoring"], kind="monitoring"),
        }
        attacker = stack.enter_context(open_attacker())
        ca = None if certificates is None else certificates.ca.read_bytes()
        siege = Siege(service, attacker, targets, ca)
        stack.callback(siege.close)
        siege.start()
        yield siege
