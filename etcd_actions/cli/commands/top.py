"""``etcd-actions top``: the state of runs, executors and the cluster, live."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial

import trio
from flyteidl2.common.list_pb2 import Sort

from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.cluster import ClusterSample, open_cluster
from etcd_actions.cli.commands.runs import count_actions
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.frames import Frame
from etcd_actions.cli.formats.message_rows import run_row
from etcd_actions.cli.formats.standard_output import (
    check_output_open,
    print_rows,
    standard_output,
    until_stopped,
)
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import Reader
from etcd_actions.cli.signals import open_stop
from etcd_actions.errors import ServiceUnavailable, Unavailable

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
        open_cluster(common) as sample,
        until_stopped(stop),
    ):
        with standard_output() as write:
            before = await sample()
            # Rates need two samples.
            await trio.sleep(min(1.0, interval))
            while True:
                try:
                    before, frame = await _frame(reader, await sample(), before)
                except (ServiceUnavailable, Unavailable) as error:
                    if not is_live:
                        raise
                    print_message(str(error))
                else:
                    text = partial(_text, frame, is_live)
                    print_rows(output or "table", [frame], frame, text, write)
                if not is_live:
                    break
                await trio.sleep(interval)
    return ExitCode.OK


async def _frame(
    reader: Reader, cluster: ClusterSample, before: ClusterSample
) -> tuple[ClusterSample, Frame]:
    """Returns a sample, and the frame with the rates since an earlier one."""
    phases: Counter[str] = Counter()
    active = []
    async with aclosing(reader.each_run(Sort.DESCENDING)) as runs:
        async for row in (run_row(run) async for run in runs):
            phases[row.phase] += 1
            if not row.ended_at:
                active.append(row)
    active = await count_actions(reader, active[:_MOST_SHOWN])
    return cluster, Frame(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        runs=dict(phases),
        active=active,
        cluster=cluster.facts,
        rates=cluster.rates(before),
        note=cluster.note,
    )


def _text(frame: Frame, is_live: bool, _wide: bool) -> bytes:
    from etcd_actions.cli.formats.frame_text import frame_text  # noqa: PLC0415 (rich is slow)

    return frame_text(frame, sys.stdout, is_live=is_live)
