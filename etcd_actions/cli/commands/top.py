"""``etcd-actions top``: the state of runs, executors and the cluster, live."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, datetime

import msgspec
import trio
from flyteidl2.common.list_pb2 import Sort
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.cluster import ClusterSample, ClusterSource, open_cluster
from etcd_actions.cli.commands.runs import count_actions
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.frames import Frame
from etcd_actions.cli.formats.message_rows import run_row
from etcd_actions.cli.formats.standard_output import (
    check_output_open,
    standard_output,
    stop_when_unread,
)
from etcd_actions.cli.formats.yaml import as_yaml
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import Reader
from etcd_actions.cli.signals import open_stop
from etcd_actions.errors import ServiceUnavailable, Unavailable

_PAGE = 1_000
_MOST_SHOWN = 50


async def show_top(
    common: CommonOptions, *, interval: float, once: bool, output: str | None
) -> int:
    """Print a frame each interval until a signal; one frame if the output is not a terminal.

    Args:
        common: The settings.
        interval: Seconds between two frames, and the time that rates are measured over.
        once: Print one frame.
        output: ``json``, ``yaml`` or ``jsonl`` for programs; None for people.
    """
    check_output_open()
    is_live = sys.stdout.isatty() and not once and output in (None, "table", "jsonl")
    async with (
        open_stop() as stop,
        open_reader(common) as reader,
        open_cluster(common) as cluster,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stop_when_unread, sys.stdout.fileno(), stop)
        with standard_output() as write, stop.interrupts():
            before = await cluster.sample()
            # Rates need two samples.
            await trio.sleep(min(1.0, interval))
            while True:
                try:
                    before, frame = await _frame(reader, cluster, before)
                except (ServiceUnavailable, Unavailable) as error:
                    if not is_live:
                        raise
                    print_message(str(error))
                else:
                    write(_formatted(frame, output, is_live=is_live))
                if not is_live:
                    break
                await trio.sleep(interval)
        nursery.cancel_scope.cancel("the last frame is printed")
    return ExitCode.OK


async def _frame(
    reader: Reader, source: ClusterSource, before: ClusterSample
) -> tuple[ClusterSample, Frame]:
    """Take the next sample; returns it, and the frame with the rates since an earlier sample."""
    cluster = await source.sample()
    request = pb.ListRunsRequest(org="")
    request.request.limit = _PAGE
    request.request.sort_by_fields.append(Sort(key="created_at", direction=Sort.DESCENDING))
    phases: Counter[str] = Counter()
    active = []
    while True:
        response = await reader.runs(request)
        for row in map(run_row, response.runs):
            phases[row.phase] += 1
            if not row.ended_at:
                active.append(row)
        if not response.token:
            break
        request.request.token = response.token
    active = await count_actions(reader, active[:_MOST_SHOWN])
    return cluster, Frame(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        runs=dict(phases),
        active=active,
        cluster=cluster.facts,
        rates=cluster.rates(before),
        note=cluster.note,
    )


def _formatted(frame: Frame, output: str | None, *, is_live: bool) -> bytes:
    if output in (None, "table"):
        from etcd_actions.cli.formats.frame_text import frame_text  # noqa: PLC0415 (rich is slow)

        return frame_text(frame, sys.stdout, is_live=is_live)
    if output == "yaml":
        return as_yaml(frame)
    encoded = msgspec.json.encode(frame)
    return (encoded if output == "jsonl" else msgspec.json.format(encoded)) + b"\n"
