"""Spans of OpenTelemetry: of calls, of what they do, and sent to a collector."""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace.export import SpanExportResult
from structlog.testing import capture_logs

from etcd_actions import ActionId
from etcd_actions.app.telemetry import Outage, Watched
from tests.cli.command import ROOT, environment, finish, running
from tests.executor.tasks import Machine
from tests.server.clients import ConnectClient
from tests.support.etcd_server import EtcdServer, free_port

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(http.server.BaseHTTPRequestHandler):
    """Keeps what it is sent."""

    bodies: list[bytes]
    logs: list[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip  # noqa: PLC0415

            body = gzip.decompress(body)
        (self.logs if self.path == "/v1/logs" else self.bodies).append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def collector(logs: list[bytes] | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """Collect in this process; gives its address, and the requests with spans."""
    bodies: list[bytes] = []
    handler = type(
        "Handler", (Collector,), {"bodies": bodies, "logs": [] if logs is None else logs}
    )
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def signal_below_a_span(listen: str) -> str:
    """Signal over Connect, as a caller with a span of its own does; gives the code."""
    run = {"org": "o", "project": "p", "domain": "d", "name": "r1"}
    value = {"scalar": {"primitive": {"integer": "1"}}}
    asked = {"actionId": {"run": run, "name": "a0"}, "value": value}
    connection = http.client.HTTPConnection(listen, timeout=20)
    connection.request(
        "POST",
        "/flyteidl2.actions.ActionsService/Signal",
        json.dumps(asked),
        {"content-type": "application/json", "traceparent": PARENT},
    )
    response = connection.getresponse()
    code: str = json.loads(response.read()).get("code", "ok")
    connection.close()
    return code


@pytest.mark.slow
async def test_a_process_sends_its_traces(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """The span of a call is below the caller's, and what it did is below that."""
    root = tmp_path / "root.json"
    root.write_text(
        json.dumps(
            {
                "actionId": {
                    "run": {"org": "o", "project": "p", "domain": "d", "name": "r1"},
                    "name": "a0",
                },
                "inputUri": "s3://b/in",
                "runOutputBase": "s3://b/out",
                "task": {"spec": {"taskTemplate": {"type": "python"}, "shortName": "f"}},
            }
        )
    )
    common = ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
    with (
        collector() as (url, bodies),
        running(tmp_path, "run", *common, "--otlp-endpoint", url) as service,
    ):
        listen = (await service.logged("serving"))["listen"]
        assert finish("enqueue", root, "--service", listen).code == 0
        assert finish("status", "p/d/r1/a0", "SUCCEEDED", "--service", listen).code == 0
        assert finish("abort", "p/d/r1/a0", "--service", listen).code == 0
        # It is no condition.
        assert await trio.to_thread.run_sync(signal_below_a_span, listen) == "failed_precondition"
        await service.until(lambda: "mark" in _names(bodies) or None)
        # What came late is sent at the end.
        service.process.terminate()
        assert await service.wait() == 0
        spans = spans_of(bodies)
    by_name = {span.name: span for span in spans}
    for method, inner in (
        ("Enqueue", "enqueue"),
        ("Update", "status"),
        ("Abort", "abort"),
        ("Signal", "signal"),
    ):
        call = by_name[f"flyteidl2.actions.ActionsService/{method}"]
        assert by_name[inner].parent_span_id == call.span_id
        assert by_name[inner].trace_id == call.trace_id
    called = by_name["flyteidl2.actions.ActionsService/Signal"]
    assert f"00-{called.trace_id.hex()}-{called.parent_span_id.hex()}-01" == PARENT
    assert "mark" in by_name


def spans_of(bodies: list[bytes]) -> list[Span]:
    return [
        span
        for body in list(bodies)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _names(bodies: list[bytes]) -> set[str]:
    return {span.name for span in spans_of(bodies)}


def _lines(bodies: list[bytes]) -> list[LogRecord]:
    return [
        record
        for body in list(bodies)
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


@pytest.mark.slow
async def test_a_run_is_one_trace_and_its_logs_are_in_it(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """From the caller of Enqueue over the task to the mark; the task continues it."""
    machine = Machine(tmp_path)
    logs: list[bytes] = []
    arguments = (
        *("run", "--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()),
        *("--executor", "local", "--python", sys.executable),
        *("--executor-state-dir", machine.state_dir, "--blob-dir", tmp_path / "blobs"),
    )
    root, child = (ActionId("p", "d", "r1", name, "o") for name in ("a0", "a1"))
    with (
        collector(logs) as (url, bodies),
        running(tmp_path, *arguments, "--otlp-endpoint", url) as service,
    ):
        client = ConnectClient((await service.logged("serving"))["listen"])
        for action, headers in (
            (machine.task(root, f'echo "$TRACEPARENT" > {tmp_path}/seen'), {"traceparent": PARENT}),
            # Its caller sends no context: that of the action above is taken.
            (machine.task(child, "exit 0", "a0"), {}),
        ):
            request = pb.EnqueueRequest(action=action)
            await trio.to_thread.run_sync(partial(client.call, "Enqueue", request, headers=headers))
        await service.until(
            lambda: [span.name for span in spans_of(bodies)].count("mark") == 2 or None
        )
        await service.until(lambda: len(_ended(logs)) == 2 or None)
    trace = PARENT.split("-")[1]
    spans = [span for span in spans_of(bodies) if span.trace_id.hex() == trace]
    names = Counter(span.name for span in spans)
    by_id = {span.span_id: span for span in spans}
    assert names["flyteidl2.actions.ActionsService/Enqueue"] == names["enqueue"] == 1
    assert names["task"] == names["mark"] == 2
    assert names["run_service.record"] == 2
    assert names["status"] >= 4
    for span in spans:
        above = by_id.get(span.parent_span_id)
        expected = {"task": "enqueue", "mark": "enqueue", "run_service.record": "enqueue"}
        if span.name in expected:
            assert above is not None
            assert above.name == expected[span.name]
    tasks = {span.span_id.hex() for span in spans if span.name == "task"}
    _, seen, inside, _ = (tmp_path / "seen").read_text().strip().split("-")
    assert seen == trace
    assert inside in tasks
    for line in _ended(logs):
        assert line.trace_id.hex() == trace
        assert line.span_id.hex() in tasks
        assert line.severity_text == "info"


def _ended(logs: list[bytes]) -> list[LogRecord]:
    return [line for line in _lines(logs) if line.body.string_value == "action_ended"]


@contextmanager
def absent() -> Iterator[str]:
    """The address of no collector."""
    yield f"http://127.0.0.1:{free_port()}"


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """A collector with one answer to each request; without one it keeps the connection open."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                kept.append(connection)
                with suppress(OSError):
                    connection.recv(65536)
                    if answer is not None:
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # Closing it would not end the call that accepts.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for each in (listener, *kept):
            each.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("collecting", "reason"),
    [
        (absent, "refused"),
        (partial(answering, None), "timeout"),
        (partial(answering, b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"), "500"),
        (partial(answering, b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n"), "404"),
        (partial(answering, b"\x00 no HTTP\r\n\r\n"), "BadStatusLine"),
    ],
    ids=["closed", "hangs", "500", "404", "no-http"],
)
async def test_a_collector_that_is_away_is_one_line(
    shared_etcd: EtcdServer,
    prefix: bytes,
    tmp_path: Path,
    collecting: Callable[[], AbstractContextManager[str]],
    reason: str,
) -> None:
    """Of traces and logs together. The work continues, and so does the end of the process."""
    arguments = ("run", "--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
    often: dict[str, Any] = {"OTEL_BSP_SCHEDULE_DELAY": "200", "OTEL_BLRP_SCHEDULE_DELAY": "200"}
    with (
        collecting() as url,
        running(tmp_path, *arguments, "--otlp-endpoint", url, **often) as service,
    ):
        listen = (await service.logged("serving"))["listen"]
        for _ in range(3):
            await trio.to_thread.run_sync(signal_below_a_span, listen)
        line = await service.logged("collector_unavailable")
        for _ in range(3):
            await trio.to_thread.run_sync(signal_below_a_span, listen)
        service.process.terminate()
        with trio.fail_after(15):
            assert await service.wait() == 0
    assert (line["level"], line["endpoint"]) == ("warning", url)
    assert reason in line["error"]
    # Each line is JSON: the library writes none by itself.
    events = [json.loads(each)["event"] for each in service.err.splitlines()]
    assert events.count("collector_unavailable") == 1
    assert "collector_available" not in events


def test_an_export_that_does_not_return_is_logged() -> None:
    """And what ends the outage is the next one that succeeds."""

    class Exporter:
        def __init__(self) -> None:
            self.answer = threading.Event()

        def export(self, batch: Sequence[str]) -> SpanExportResult:
            self.answer.wait(60)
            return SpanExportResult.SUCCESS

    exporter = Exporter()
    with capture_logs() as lines:
        watched = Watched(exporter, Outage("http://collector"), within=0.01)
        thread = threading.Thread(target=watched.export, args=([],))
        thread.start()
        until_there(lines, 1)
        exporter.answer.set()
        thread.join()
        until_there(lines, 2)
    assert [line["event"] for line in lines] == ["collector_unavailable", "collector_available"]
    assert lines[0]["error"] == "no complete response within 0.01 s"


def until_there(lines: Sized, count: int) -> None:
    """Wait until there are so many lines."""
    end = time.monotonic() + 20
    while len(lines) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


PROGRAM = """
import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from etcd_actions._internal.tracing import CallSpan, span

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

async def call() -> None:
    outer = CallSpan("call", {"traceparent": "%s"}, {"rpc.method": "Enqueue"})
    with span("inner", {"action": "a0"}):
        await trio.lowlevel.checkpoint()
    outer.end("aborted")

trio.run(call)
inner, outer = exporter.get_finished_spans()
assert (inner.name, outer.name) == ("inner", "call")
assert inner.parent.span_id == outer.context.span_id
assert f"{outer.parent.span_id:016x}" == "b7ad6b7169203331"
assert f"{outer.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
assert not outer.status.is_ok and dict(inner.attributes) == {"action": "a0"}
print("ok")
"""


def test_a_call_is_below_its_callers_span() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % PARENT],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.stdout == "ok\n", done.stderr


def test_nothing_is_imported_for_spans() -> None:
    program = (
        "import sys; from etcd_actions._internal.tracing import CallSpan, span\n"
        "with span('a'):\n    CallSpan('b', {}, {}).end('ok')\n"
        "assert 'opentelemetry' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program], env=environment(), cwd=ROOT, timeout=60, check=True
    )
