"""The load of the service, in a process of its own: enqueues by a client that costs little.

Requests are built once; only the run's name changes. Connect goes over kept HTTP/1.1 connections,
one call at a time on each, as Flyte's SDK does it; gRPC goes over one HTTP/2 connection.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from array import array
from dataclasses import asdict, dataclass
from typing import Literal

from flyteidl2.actions import actions_service_pb2 as pb
from flyteidl2.core.tasks_pb2 import TaskTemplate

from etcd_actions import ActionId
from etcd_actions.model import flyte as conversions
from scripts.bench.calls import Calls
from scripts.bench.channel import Channel, serve

ENQUEUE = "/flyteidl2.actions.ActionsService/Enqueue"
_NAME = "r%08d"
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class ServiceLoad:
    """The calls of a load process.

    Attributes:
        kind: The protocol.
        host: The service's host.
        port: The service's port.
        together: Calls in flight.
        seconds: For how long.
        first: The number of the first run.
    """

    kind: Literal["connect", "grpc"]
    host: str
    port: int
    together: int
    seconds: float
    first: int

    def to_json(self) -> str:
        """For the command line of the process."""
        return json.dumps(asdict(self))


class Requests:
    """Enqueues of roots of new runs, whose bytes differ in nothing but the name."""

    def __init__(self, first: int) -> None:
        self._number = first
        self._before, self._after = _cut(first)

    def next(self) -> bytes:
        """One more."""
        self._number += 1
        return self._before + (_NAME % self._number).encode() + self._after


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


def by_connect(load: ServiceLoad) -> array[int]:
    """Send calls, and return how long each answer took, in nanoseconds.

    Raises:
        RuntimeError: The service refuses, or answers in a way that is not understood.
    """
    requests = Requests(load.first)
    waited = array("q")
    head = (
        f"POST {ENQUEUE} HTTP/1.1\r\nhost: {load.host}:{load.port}\r\n"
        "content-type: application/proto\r\nconnect-protocol-version: 1\r\ncontent-length: "
    ).encode()
    end = time.monotonic() + load.seconds
    started: dict[socket.socket, int] = {}
    received: dict[socket.socket, bytes] = {}

    def send(sock: socket.socket) -> None:
        body = requests.next()
        started[sock] = time.monotonic_ns()
        received[sock] = b""
        sock.sendall(head + str(len(body)).encode() + b"\r\n\r\n" + body)

    with selectors.DefaultSelector() as selector:
        for _ in range(load.together):
            sock = socket.create_connection((load.host, load.port), timeout=_ANSWER_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ, sock)
            send(sock)
        while started:
            ready = selector.select(_ANSWER_SECONDS)
            if not ready:
                raise RuntimeError(f"no answer within {_ANSWER_SECONDS:.0f} s")
            for key, _ in ready:
                sock = key.data
                data = sock.recv(1 << 16)
                if not data:
                    raise RuntimeError("the service closed a connection")
                received[sock] += data
                if not _is_complete(received[sock]):
                    continue
                waited.append(time.monotonic_ns() - started.pop(sock))
                if time.monotonic() < end:
                    send(sock)
                else:
                    selector.unregister(sock)
                    sock.close()
    return waited


def by_grpc(load: ServiceLoad) -> array[int]:
    """The same over gRPC."""
    requests = Requests(load.first)
    waited = array("q")
    refused = 0

    def answered(started: int, done: bool) -> None:
        nonlocal refused
        refused += not done
        waited.append(time.monotonic_ns() - started)

    calls = Calls(load.host, load.port, ENQUEUE, answered)
    end = time.monotonic() + load.seconds
    while time.monotonic() < end:
        while calls.in_flight < load.together:
            calls.send(requests.next())
        calls.wait(1)
    last = time.monotonic() + _ANSWER_SECONDS
    while calls.in_flight and time.monotonic() < last:
        calls.wait(0.1)
    unanswered = calls.in_flight
    calls.close()
    if refused or unanswered:
        raise RuntimeError(f"{refused} calls failed, {unanswered} were not answered")
    return waited


def _is_complete(answer: bytes) -> bool:
    """Whether a response is complete.

    Raises:
        RuntimeError: Its status is not 200, or it does not say how long it is.
    """
    head, gap, body = answer.partition(b"\r\n\r\n")
    if not gap:
        return False
    lines = head.lower().split(b"\r\n")
    if b" 200" not in lines[0]:
        raise RuntimeError(f"the service answered {answer[:300]!r}")
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(body) >= int(value)
        if name == b"transfer-encoding":
            return body.endswith(b"0\r\n\r\n")
    raise RuntimeError(f"a response without a length: {answer[:300]!r}")


def _cut(number: int) -> tuple[bytes, bytes]:
    name = _NAME % number
    request = pb.EnqueueRequest(action=action(name)).SerializeToString()
    before, found, after = request.partition(name.encode())
    if not found or name.encode() in after:
        raise ValueError("the run's name is not in the request once")
    return before, after


def _serve(channel: Channel, argument: str) -> None:
    load = ServiceLoad(**json.loads(argument))
    cpu, clock = time.process_time(), time.perf_counter()
    waited = sorted(by_grpc(load) if load.kind == "grpc" else by_connect(load))
    seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    channel.say(
        "result",
        calls=len(waited),
        rate=len(waited) / seconds,
        p50_ms=waited[len(waited) // 2] / 1e6,
        p99_ms=waited[len(waited) * 99 // 100] / 1e6,
        client_cpu_us=cpu / len(waited) * 1e6,
    )


if __name__ == "__main__":
    serve(_serve)
