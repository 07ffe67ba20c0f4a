"""One trace from a program of the SDK over its tasks to the marks, at a collector."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests._internal.test_tracing import PARENT, collector, spans_of
from tests.sdk.door import open_door
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow


def test_a_run_of_the_sdk_is_one_trace(
    shared_etcd: EtcdServer, prefix: bytes, sdk_python: Path, tmp_path: Path
) -> None:
    trace = PARENT.split("-")[1]
    with collector() as (url, bodies):

        def of_the_run() -> list[Span]:
            return [span for span in spans_of(bodies) if span.trace_id.hex() == trace]

        options = ("--otlp-endpoint", url)
        with open_door(tmp_path, shared_etcd.endpoint, prefix, sdk_python, *options) as door:
            told = door.run("traced.py", PARENT)
            until(lambda: sum(span.name == "mark" for span in of_the_run()) == 2)
        text, _, inside = told["text"].partition(" ")
        assert text == "in"
        assert inside.split("-")[1] == trace
        spans = of_the_run()
        by_id = {span.span_id: span for span in spans}
        names = [span.name for span in spans]
        assert names.count("task") == names.count("mark") == 2
        # The call of the child is below the parent's task: the SDK carried the context there.
        call = next(span for span in spans if span.name.endswith("ActionsService/Enqueue"))
        assert by_id[call.parent_span_id].name == "task"


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.05)
