"""Bodies and headers of calls that nobody expects."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId
from tests.support import flyte
from tests.support.hostile_wire import HEALTH

VICTIM: Final = ActionId("p", "d", "hostile", "a0", "o")
NESTED: Final = 20_000


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A request over HTTP/1.1; ``_`` in a name stands for a dash."""
    lines = {"host": "127.0.0.1", "content-length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin1") + body


def envelope(body: bytes, flags: int = 0, length: int | None = None) -> bytes:
    """A frame of gRPC and of Connect's streams."""
    return struct.pack(">BI", flags, len(body) if length is None else length) + body


def nested_messages(depth: int) -> bytes:
    """A protobuf message within a message, and so on: field 1 of each."""
    body = b""
    for _ in range(depth):
        size = len(body)
        length = bytearray()
        while size > 0x7F:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        length.append(size)
        body = b"\x0a" + bytes(length) + body
    return body


ENVELOPES: Final[Mapping[str, bytes]] = {
    "none": b"",
    "half a head": b"\0\0\0",
    "too long": envelope(b"abc", length=2**32 - 1),
    "longer than there is": envelope(b"abc", length=1000),
    "compressed noise": envelope(b"\xff" * 100, 1),
    "unknown flags": envelope(b"", 0xFC),
    "all flags": envelope(b"", 0xFF),
    "end from a client": envelope(b"{}", 2),
    "end of noise": envelope(b"\xff\xfe", 2),
    "trailers of grpc-web": envelope(b"grpc-status: 0\r\n", 0x80),
    "two": envelope(b"") * 2,
    "many": envelope(b"") * 2000,
    "noise behind": envelope(b"") + b"\xff" * 7,
    "noise": b"\xff\xfe\xfd" * 30,
    "noise within": envelope(b"\xff\xfe\xfd" * 30),
    "nested": envelope(nested_messages(5000)),
}
"""Bodies of streams and of gRPC that are no good ones."""


TIMES: Final = (
    "0",
    "-1",
    "1",
    "99999999999999999999",
    "9" * 5000,
    "1e400",
    "nan",
    "inf",
    "",
    " ",
    "1.5",
    "0x10",
    "+5",
    "\xb2",
    "abc",
    "9" * 300,
)


def odd_headers() -> dict[str, bytes]:
    """Calls whose headers say what nobody can do."""
    path = f"/{HEALTH}/Check"
    kinds = [
        "",
        "application/",
        "application/connect+",
        "application/grpc",
        "application/grpc+xyz",
        "application/json; charset=utf-16",
        "application/proto; boundary=\xff",
        "multipart/form-data; boundary=x",
        "text/html",
        "\xff\xfe",
        "a" * 5000,
    ]
    requests = {f"type {kind[:30]!r}": post(path, b"{}", content_type=kind) for kind in kinds}
    for name, value in [
        ("content_encoding", "br"),
        ("content_encoding", "gzip, gzip"),
        ("content_encoding", "\xff"),
        ("content_encoding", "gzip"),
        ("accept_encoding", "\xff;q=abc,,,;;"),
        ("accept_encoding", "gzip;q=" + "9" * 5000),
        ("connect_protocol_version", "2"),
        ("connect_protocol_version", "\xff"),
        ("connect_accept_encoding", "\xff"),
        ("authorization", "Bearer \xff\xfe"),
        ("authorization", "Basic ===="),
        ("traceparent", "00-" + "f" * 32 + "-" + "f" * 16 + "-ff"),
        ("traceparent", "\xff" * 55),
        ("tracestate", "=,=,\xff"),
        ("baggage", "a=" * 2000),
        ("x_data_bin", "!!!!"),
        ("x_data_bin", "\xff"),
        ("forwarded", "for=\xff"),
    ]:
        requests[f"{name} {value[:20]!r}"] = post(
            path, b"{}", **({"content_type": "application/json"} | {name: value})
        )
    return requests


def absurd_json() -> dict[str, bytes]:
    """Texts that are JSON, or nearly."""
    return {
        "nested lists": b"[" * NESTED + b"]" * NESTED,
        "nested objects": b'{"action":' * NESTED + b"1" + b"}" * NESTED,
        "open brackets": b"[" * NESTED,
        "long number": b'{"attempt":' + b"9" * 5000 + b"}",
        "huge exponent": b'{"attempt":1e999999999}',
        "not a number": b'{"attempt":NaN}',
        "lone surrogate": b'{"reason":"\\ud800"}',
        "bytes": b'{"reason":"\xff\xfe"}',
        "NUL": b'{"reason":"\\u0000"}',
        "byte order mark": b"\xef\xbb\xbf{}",
        "UTF-16": '{"reason":"x"}'.encode("utf-16"),
        "twice the same": b'{"reason":"a","reason":"b"}',
        "list": b"[]",
        "null": b"null",
        "text": b'"abc"',
        "unknown any": b'{"value":{"scalar":{"generic":{"@type":"x/y"}}}}',
        "nested struct": json.dumps(_nested_struct(200)).encode(),
    }


def _nested_struct(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return {"value": {"scalar": {"generic": value}}}


def absurd_actions() -> dict[str, pb.Action]:
    """Actions whose fields nobody expects."""
    made = {}
    for name, text in {
        "empty": "",
        "NUL": "a\0b",
        "slashes": "../../etc/passwd",
        "long": "x" * 100_000,
        "line": "a\r\nb",
        "other letters": "\u202e\U0001f600",
        "percent": "%s%n%d",
    }.items():
        action = flyte.task(VICTIM, "a0")
        action.action_id.name = text
        made[f"name {name}"] = action
        action = flyte.task(VICTIM, text)
        action.action_id.name = "child"
        made[f"parent {name}"] = action
        action = flyte.task(VICTIM)
        action.action_id.run.project = text
        action.action_id.run.name = text
        made[f"run {name}"] = action
    action = flyte.task(VICTIM)
    action.task.spec.task_template.container.args.extend(["x" * 100] * 2000)
    made["many arguments"] = action
    return made
