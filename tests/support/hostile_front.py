"""Attacks on the front door: streams of runs, actions and logs that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from flyteidl2.common.identifier_pb2 import ProjectIdentifier
from flyteidl2.dataproxy import dataproxy_service_pb2 as data_pb
from flyteidl2.workflow import run_service_pb2 as pb
from google.protobuf.message import Message

from tests.support import flyte
from tests.support.hostile_bodies import envelope
from tests.support.hostile_registry import Observed, attack
from tests.support.hostile_wire import Http2, Target, pour, raw_frame
from tests.support.hostile_witnesses import GOOD_ROOT

FRONT: Final = ("front",)
"""The kind of target: a service that allows as many streams as these are."""

STREAMS: Final = 1_000
_MOST_WINDOW: Final = 2**31 - 1
_RUNS: Final = "flyteidl2.workflow.RunService"
_IDENTIFIER: Final = flyte.identifier(GOOD_ROOT)

ASKED: Final[dict[str, Message]] = {
    f"{_RUNS}/WatchActions": pb.WatchActionsRequest(run_id=_IDENTIFIER.run),
    f"{_RUNS}/WatchRuns": pb.WatchRunsRequest(project_id=ProjectIdentifier(name="p", domain="d")),
    f"{_RUNS}/WatchActionDetails": pb.WatchActionDetailsRequest(action_id=_IDENTIFIER),
    # An attempt that never begins.
    "flyteidl2.dataproxy.DataProxyService/TailLogs": data_pb.TailLogsRequest(
        action_id=_IDENTIFIER, attempt=2
    ),
}
"""What streams are asked for, by method."""


def _open(http2: Http2, method: str, numbers: range) -> None:
    body = envelope(ASKED[method].SerializeToString())
    pour(
        http2.sock, (http2.grpc(2 * each + 1, f"/{method}", body) for each in numbers), seconds=5.0
    )


@attack(FRONT)
def unread_streams_of_one(target: Target) -> Iterator[Observed]:
    """1,000 streams of each kind on one connection each: all may be sent, and nothing is read."""
    with ExitStack() as stack:
        for method in ASKED:
            http2 = stack.enter_context(Http2(target, {4: _MOST_WINDOW}))
            http2.send(raw_frame(8, 0, 0, (_MOST_WINDOW - 65_535).to_bytes(4, "big")))
            _open(http2, method, range(STREAMS))
        yield {}


@attack(FRONT)
def streams_without_a_window(target: Target) -> Iterator[Observed]:
    """The same where nothing may be sent, so that the server has to hold each message."""
    with ExitStack() as stack:
        for method in ASKED:
            _open(stack.enter_context(Http2(target, {4: 0})), method, range(STREAMS))
        yield {}


@attack(FRONT)
def unread_streams_of_many(target: Target) -> Iterator[Observed]:
    """1,000 streams of each kind, on 40 connections from as many addresses."""
    with ExitStack() as stack:
        for number in range(40):
            source = target.from_address(f"127.0.1.{number + 1}")
            http2 = stack.enter_context(Http2(source, {4: _MOST_WINDOW}))
            methods = list(ASKED)
            each = STREAMS // 40
            for at, method in enumerate(methods):
                _open(http2, method, range(at * each, (at + 1) * each))
        yield {}


@attack(FRONT)
def streams_that_are_read(target: Target) -> Iterator[Observed]:
    """250 streams of each kind whose client takes all that comes: each costs what it is sent."""
    with ExitStack() as stack:
        connections = []
        for method in ASKED:
            http2 = stack.enter_context(Http2(target, {4: _MOST_WINDOW}))
            http2.send(raw_frame(8, 0, 0, (_MOST_WINDOW - 65_535).to_bytes(4, "big")))
            _open(http2, method, range(STREAMS // 4))
            connections.append(http2)
        for http2 in connections:
            http2.read(lambda: False, seconds=2.0)
        yield {"answered": [len(each.answered) for each in connections]}
