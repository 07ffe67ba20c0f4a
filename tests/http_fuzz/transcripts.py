"""What good clients send, recorded: http.client, grpcio, and HTTP/2 frame by frame."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

import grpc
from flyteidl2.actions import actions_service_pb2 as pb
from grpc_reflection.v1alpha import reflection_pb2

from etcd_actions import ActionId
from tests.server.clients import SENTINEL, ConnectClient, GrpcClient, short
from tests.support import flyte
from tests.support.hostile_http1 import H2C_SETTINGS, upgrade
from tests.support.hostile_wire import HEALTH, REFLECTION, Http2, Target, read_to_end, reset

_ROOT: Final = ActionId("p", "d", "recorded", "a0", "o")
_DEADLINE: Final = 20.0
_AFTERWARDS: Final = 0.2


class Transcript(NamedTuple):
    """The bytes that a client sent on one connection, and to which port."""

    kind: str
    data: bytes


def record(targets: Mapping[str, Target]) -> list[Transcript]:
    """Let each client of :data:`CLIENTS` talk to the server, and keep what it sends."""
    found = []
    for kind, talk in CLIENTS:
        with _relay(targets[kind].port) as (port, sent):
            talk(Target(port, kind, source=""))
        found.append(Transcript(kind, b"".join(sent)))
        assert found[-1].data
    return found


@contextmanager
def _relay(port: int) -> Iterator[tuple[int, list[bytes]]]:
    """A port that leads to another one; keeps what comes by."""
    sent: list[bytes] = []
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def pipe(source: socket.socket, sink: socket.socket, keep: list[bytes] | None) -> None:
            try:
                while data := source.recv(65536):
                    if keep is not None:
                        keep.append(data)
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)
            except OSError:
                return

        def serve() -> None:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            with near, socket.create_connection(("127.0.0.1", port)) as far:
                back = threading.Thread(target=pipe, args=(far, near, None))
                back.start()
                pipe(near, far, sent)
                back.join(_AFTERWARDS)
                reset(far)
                back.join(_DEADLINE)

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        try:
            yield listening.getsockname()[1], sent
        finally:
            threads[0].join(_DEADLINE)


def _address(target: Target) -> str:
    return f"127.0.0.1:{target.port}"


def _probes(target: Target) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=_DEADLINE)
    for path in ("/healthz", "/readyz", "/nowhere"):
        connection.request("GET", path)
        connection.getresponse().read()
    connection.close()


def _connect_unary(target: Target) -> None:
    ConnectClient(_address(target), codec="json").call(
        "Enqueue", pb.EnqueueRequest(action=flyte.task(_ROOT))
    )


def _connect_gzip(target: Target) -> None:
    ConnectClient(_address(target), compress=True).call(
        "Enqueue", pb.EnqueueRequest(action=flyte.task(_ROOT))
    )


def _connect_stream(target: Target) -> None:
    stream = ConnectClient(_address(target)).stream(
        pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(_ROOT))
    )
    assert SENTINEL in map(short, stream)
    stream.close()


def _chunked(target: Target) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=_DEADLINE)
    headers = {"content-type": "application/json", "expect": "100-continue"}
    body = iter([b"{", b"}"])
    connection.request("POST", f"/{HEALTH}/Check", body, headers, encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()


def _grpc_unary(target: Target) -> None:
    client = GrpcClient(_address(target))
    client.call("Enqueue", pb.EnqueueRequest(action=flyte.task(_ROOT)))
    client.close()


def _grpc_streams(target: Target) -> None:
    with grpc.insecure_channel(_address(target)) as channel:
        reflect = channel.stream_stream(
            f"/{REFLECTION}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        questions = [reflection_pb2.ServerReflectionRequest(list_services="*")] * 3
        assert len(list(reflect(iter(questions), timeout=_DEADLINE))) == 3
        watch = channel.unary_stream(
            "/flyteidl2.actions.ActionsService/WatchForUpdates",
            request_serializer=pb.WatchForUpdatesRequest.SerializeToString,
            response_deserializer=pb.WatchForUpdatesResponse.FromString,
        )
        call = watch(pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(_ROOT)))
        next(iter(call))
        call.cancel()


def _frames(target: Target) -> None:
    with Http2(target) as http2:
        for stream in (1, 3, 5):
            http2.send(http2.request(stream, target.good_path, method=b"GET"))
        http2.read(lambda: all(map(http2.is_over, (1, 3, 5))))


def _h2c(target: Target) -> None:
    with target.dial() as sock:
        sock.sendall(upgrade(H2C_SETTINGS["good"]))
        read_to_end(sock, seconds=0.2)


CLIENTS: Final[list[tuple[str, Callable[[Target], None]]]] = [
    ("monitoring", _probes),
    ("monitoring", _frames),
    ("monitoring", _h2c),
    ("service", _connect_unary),
    ("service", _connect_gzip),
    ("service", _connect_stream),
    ("service", _chunked),
    ("service", _grpc_unary),
    ("service", _grpc_streams),
    ("service", _frames),
]
