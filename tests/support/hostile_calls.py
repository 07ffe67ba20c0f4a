"""Attacks with calls: bodies, envelopes, compression, time-outs and streams of the service."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from typing import Final

from flyteidl2.actions import actions_service_pb2 as pb
from grpc_reflection.v1alpha import reflection_pb2

from tests.support import flyte
from tests.support.hostile_bodies import (
    ENVELOPES,
    TIMES,
    VICTIM,
    absurd_actions,
    absurd_json,
    envelope,
    nested_messages,
    odd_headers,
    post,
)
from tests.support.hostile_registry import SERVICE as ONLY_SERVICE
from tests.support.hostile_registry import Observed, attack
from tests.support.hostile_wire import HEALTH, REFLECTION, SERVICE, Http2, Target, pour, read_to_end

METHODS: Final = ("Enqueue", "Update", "Abort", "Signal", "WatchForUpdates")
BOMB_BYTES: Final = 200 * 1024 * 1024


def ask(target: Target, request: bytes, *, seconds: float = 5.0) -> tuple[int, bytes]:
    """Send a request; the status of its answer (0 for none), and all that came."""
    with target.connect("http/1.1") as sock:
        pour(sock, [request], seconds=seconds)
        got = bytearray()
        give_up = time.monotonic() + seconds
        while not _is_whole(got) and (left := give_up - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                data = sock.recv(65536)
            except OSError:
                break
            if not data:
                break
            got += data
    return (int(got[9:12]) if got.startswith(b"HTTP/1.1 ") else 0), bytes(got)


def _is_whole(got: bytearray) -> bool:
    head, found, body = bytes(got).partition(b"\r\n\r\n")
    if not found:
        return False
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if b"content-length" in lines:
        return len(body) >= int(lines[b"content-length"])
    return body.endswith(b"0\r\n\r\n")


UNEXPECTED: Final = (
    b'"unknown"',
    b'"internal"',
    b"grpc-status: 2\r",
    b"grpc-status: 13\r",
)
"""What says that the service did not expect this."""

# gRPC wants "internal" for a message that is compressed while no encoding was named.
_ALLOWED: Final = (b"without compression support", b"without%20compression%20support")


def is_good_answer(status: int, got: bytes) -> bool:
    """Whether a call was answered, and not by an error of the service's own."""
    if any(word in got for word in _ALLOWED):
        return True
    return status not in (0, 500) and not any(word in got for word in UNEXPECTED)


def _answers(target: Target, requests: Mapping[str, bytes]) -> dict[str, int]:
    """The status of each; none may be an error of the service's own, or no answer."""
    seen = {name: ask(target, request) for name, request in requests.items()}
    bad = {
        name: (status, got[-300:])
        for name, (status, got) in seen.items()
        if not is_good_answer(status, got)
    }
    assert not bad, bad
    return {name: status for name, (status, _) in seen.items()}


@cache
def _bomb() -> bytes:
    """Many zeros, in few bytes."""
    packed = zlib.compressobj(9, wbits=31)
    piece = bytes(1 << 20)
    parts = [packed.compress(piece) for _ in range(BOMB_BYTES >> 20)]
    return b"".join([*parts, packed.flush()])


@attack((*ONLY_SERVICE, "tls"))
def compression_bombs(target: Target) -> Iterator[Observed]:
    """Small bodies that unfold to 200 MB each: the bound on messages holds for what unfolds."""
    bomb = _bomb()
    requests = {}
    for method in METHODS[:4]:
        path = f"/{SERVICE}/{method}"
        requests[method] = post(
            path, bomb, content_type="application/proto", content_encoding="gzip"
        )
        requests[f"{method} json"] = post(
            path, bomb, content_type="application/json", content_encoding="gzip"
        )
    requests["stream"] = post(
        f"/{SERVICE}/WatchForUpdates",
        envelope(bomb, 1),
        content_type="application/connect+proto",
        connect_content_encoding="gzip",
    )
    requests["grpc-web"] = post(
        f"/{SERVICE}/Enqueue",
        envelope(bomb, 1),
        content_type="application/grpc-web+proto",
        grpc_encoding="gzip",
    )
    with ThreadPoolExecutor(10) as threads:
        statuses = dict(
            zip(
                requests,
                threads.map(lambda each: ask(target, each, seconds=20)[0], requests.values()),
                strict=True,
            )
        )
    assert not [status for status in statuses.values() if status in (0, 500)], statuses
    with Http2(target) as http2:
        headers = [
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"grpc-encoding", b"gzip"),
        ]
        # Within the window that every stream has; the bomb is cut, and unfolds to 60 MB.
        part = envelope(bomb[:60_000], 1)
        http2.send(http2.request(1, f"/{SERVICE}/Enqueue", headers, body=part))
        http2.read(lambda: http2.is_over(1), seconds=10)
        assert http2.grpc_status(1) not in (None, 0, 2, 13), http2.answered
    yield {"statuses": statuses}


@attack(ONLY_SERVICE)
def broken_envelopes(target: Target) -> Iterator[Observed]:
    """Each over Connect, gRPC-Web and gRPC, to a unary method and a stream."""
    requests = {}
    for name, body in ENVELOPES.items():
        for method in ("Enqueue", "WatchForUpdates"):
            path = f"/{SERVICE}/{method}"
            kinds = ["grpc-web+proto", "grpc-web+json"]
            if method == "WatchForUpdates":
                kinds += ["connect+proto", "connect+json"]
            for kind in kinds:
                request = post(path, body, content_type=f"application/{kind}")
                requests[f"{name} {method} {kind}"] = request
    statuses = _answers(target, requests)
    codes = {}
    for name, body in ENVELOPES.items():
        with Http2(target) as http2:
            for number, method in enumerate(METHODS):
                stream = 2 * number + 1
                http2.send(http2.grpc(stream, f"/{SERVICE}/{method}", body))
                # The window allows no more at once.
                http2.read(lambda stream=stream: http2.is_over(stream), seconds=10)  # type: ignore[misc]
                codes[f"{name} {method}"] = http2.grpc_status(stream)
            assert not http2.gone, (name, http2.goaway)
    may = ("compressed noise", "all flags")
    bad = {
        name: code
        for name, code in codes.items()
        if code in (None, 2) or (code == 13 and not name.startswith(may))
    }
    assert not bad, bad
    yield {"statuses": statuses, "codes": codes}


@attack(ONLY_SERVICE)
def get_requests(target: Target) -> Iterator[Observed]:
    """Connect's GETs, for methods that have side effects and for those that have none."""
    queries = [
        "",
        "?",
        "?connect=v1&encoding=json&message=%7B%7D",
        "?connect=v1&encoding=proto&base64=1&message=AAAA",
        "?connect=v1&encoding=proto&base64=1&message=!!!!%ff",
        "?connect=v1&encoding=proto&compression=gzip&base64=1&message=AAAA",
        "?connect=v1&encoding=nothing&message=%7B%7D",
        "?connect=v9&encoding=json&message=%ff%fe",
        "?encoding=json&message=" + "%5B" * 4000,
        "?" + "a=b&" * 3000,
    ]
    requests = {}
    for path in (*(f"/{SERVICE}/{method}" for method in METHODS), f"/{HEALTH}/Check"):
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
            for query in queries if method == "GET" else queries[:3]:
                head = f"{method} {path}{query} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
                requests[f"{method} {path} {query[:60]}"] = head.encode()
    yield {"statuses": _answers(target, requests)}


@attack(ONLY_SERVICE)
def absurd_timeouts(target: Target) -> Iterator[Observed]:
    """Times that no clock knows."""
    requests = {}
    for number, text in enumerate(TIMES):
        requests[f"connect {number}"] = post(
            f"/{HEALTH}/Check", b"{}", content_type="application/json", connect_timeout_ms=text
        )
        for unit in "HMSmunx":
            requests[f"grpc-web {number} {unit}"] = post(
                f"/{HEALTH}/Check",
                envelope(b""),
                content_type="application/grpc-web+proto",
                grpc_timeout=text + unit,
            )
    statuses = _answers(target, requests)
    with Http2(target) as http2:
        times = [f"{text}{unit}" for text in (*TIMES[:5], "99999999") for unit in "HMSmun"]
        for number, each in enumerate(times):
            headers = [
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
                (b"grpc-timeout", each.encode()),
            ]
            path = f"/{HEALTH}/Check"
            http2.send(http2.request(2 * number + 1, path, headers, body=envelope(b"")))
        streams = [2 * number + 1 for number in range(len(times))]
        http2.read(lambda: all(http2.is_over(stream) for stream in streams), seconds=10)
        codes = dict(zip(times, map(http2.grpc_status, streams), strict=True))
    bad = {text: code for text, code in codes.items() if code in (None, 2, 13)}
    assert not bad, bad
    yield {"statuses": statuses, "codes": codes}


@attack(ONLY_SERVICE)
def absurd_headers(target: Target) -> Iterator[Observed]:
    """Types, encodings, traces and tokens that are none."""
    requests = odd_headers()
    gives_error = {name for name in requests if name.startswith("type")}
    plain = {name: each for name, each in requests.items() if name not in gives_error}
    statuses = _answers(target, plain)
    for name in gives_error:
        statuses[name] = ask(target, requests[name])[0]
    assert not [name for name, status in statuses.items() if status in (0, 500)], statuses
    yield {"statuses": statuses}


@attack(ONLY_SERVICE)
def absurd_messages(target: Target) -> Iterator[Observed]:
    """Messages too deep, too wide, or no messages, to every method."""
    requests = {}
    for method in METHODS[:4]:
        path = f"/{SERVICE}/{method}"
        for name, text in absurd_json().items():
            requests[f"{method} {name}"] = post(path, text, content_type="application/json")
        for name, data in {
            "nested messages": nested_messages(5000),
            "noise": os.urandom(300),
            "groups": b"\x0b" * 5000,
            "bad text": b"\x12\x02\xff\xfe",
            "long varint": b"\x08" + b"\xff" * 20,
        }.items():
            requests[f"{method} {name}"] = post(path, data, content_type="application/proto")
    yield {"statuses": _answers(target, requests)}


@attack((*ONLY_SERVICE, "tls"))
def garbage_enqueues(target: Target) -> Iterator[Observed]:
    """A flood of enqueues that are refused, on eight connections."""
    bodies = [
        post(
            f"/{SERVICE}/Enqueue",
            pb.EnqueueRequest(action=action).SerializeToString(),
            content_type="application/proto",
        )
        for action in absurd_actions().values()
    ]
    bodies.append(post(f"/{SERVICE}/Enqueue", os.urandom(200), content_type="application/proto"))

    def flood(number: int) -> int:
        with target.connect("http/1.1") as sock:
            sent = 0
            for _ in range(12):
                pour(sock, [b"".join(bodies[number % 3 :: 3])])
                sent += 1
                read_to_end(sock, seconds=0.1)
            return sent

    with ThreadPoolExecutor(8) as threads:
        yield {"sent": sum(threads.map(flood, range(8)))}


@attack(ONLY_SERVICE)
def reflection_flood(target: Target) -> Iterator[Observed]:
    """Thousands of questions on one stream, and two hundred streams that ask nothing."""
    path = f"/{REFLECTION}/ServerReflectionInfo"
    every = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
    question = envelope(every.SerializeToString())
    with ExitStack() as stack:
        asking = stack.enter_context(Http2(target, {4: 2**31 - 1}))
        asking.send(asking.grpc(1, path, body=None, ends=False))
        # The answers, of some 100 kB each, are not taken.
        sent = pour(
            asking.sock,
            (asking_data(1, question * 50) for _ in range(60)),
            seconds=3.0,
        )
        held = stack.enter_context(Http2(target))
        for stream in range(1, 400, 2):
            held.send(held.grpc(stream, path, body=None, ends=False))
        yield {"sent": sent}


def asking_data(stream: int, body: bytes) -> bytes:
    """A DATA frame."""
    return struct.pack(">I", len(body))[1:] + b"\0\0" + struct.pack(">I", stream) + body


@attack(ONLY_SERVICE)
def health_watches(target: Target) -> Iterator[Observed]:
    """Two thousand watches of the health, on four connections."""
    with ExitStack() as stack:
        connections = [stack.enter_context(Http2(target)) for _ in range(4)]
        for http2 in connections:
            asks = (http2.grpc(stream, f"/{HEALTH}/Watch") for stream in range(1, 1001, 2))
            pour(http2.sock, asks, seconds=2.0)
        for http2 in connections:
            http2.read(lambda: False, seconds=0.5)
        codes = [http2.grpc_status(stream) for http2 in connections for stream in http2.ended]
        yield {"refused": len(codes), "codes": sorted({code or 0 for code in codes})}


@attack(ONLY_SERVICE)
def update_watches(target: Target) -> Iterator[Observed]:
    """1,100 streams of updates by grpcio, an ordinary client, on one channel."""
    import grpc  # noqa: PLC0415 - the other attacks need no second HTTP/2

    if target.tls:
        yield {}
        return
    parent = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(VICTIM))
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{target.port}", options) as channel:
        stub = channel.unary_stream(
            f"/{SERVICE}/WatchForUpdates",
            request_serializer=pb.WatchForUpdatesRequest.SerializeToString,
            response_deserializer=pb.WatchForUpdatesResponse.FromString,
        )
        calls = [stub(parent, timeout=30) for _ in range(1100)]
        time.sleep(1.0)  # How long they are held.
        over = sum(1 for call in calls if not call.is_active())
        yield {"refused": over}
        for call in calls:
            call.cancel()
