"""``etcd-actions watch``: every change, as a table or as JSON lines."""

from __future__ import annotations

import sys

import structlog
import trio

from etcd_actions.app.stop import Stop
from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.exit_codes import ExitCode, unwritable
from etcd_actions.cli.formats.change_queue import ChangeQueue
from etcd_actions.cli.formats.rows import RowMaker
from etcd_actions.cli.formats.standard_output import (
    Format,
    JsonLines,
    chosen_format,
    stop_when_unread,
    write_all,
)
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.signals import open_stop
from etcd_actions.etcd.quorum import open_quorum_monitor
from etcd_actions.storage.watched_keys import watched_keys
from etcd_actions.watch import Reflector, ReflectorSettings

# Seconds in which the output must accept the changes before the signal.
_DRAIN = 5.0

_log = structlog.get_logger(__name__)


async def watch_until_signal(common: CommonOptions, output: str | None, prev_kv: bool) -> int:
    """Write every change to standard output until a signal, or until its reader has ended."""
    lines: Format = JsonLines()
    if chosen_format(output, elsewhere="jsonl") == "table":
        from etcd_actions.cli.formats.action_tables import ChangeTable  # noqa: PLC0415 (rich is slow)

        several = common.config.namespace_template is not None
        lines = ChangeTable(sys.stdout, runs_of_projects=several)
    descriptor = sys.stdout.fileno()
    keys, likely_prefix = watched_keys(common.prefix, common.namespace)
    queue = ChangeQueue()
    endpoints = common.endpoints_to_use
    _log.debug("watching", endpoints=endpoints, prefix=keys.start.decode())
    async with (
        open_stop() as stop,
        common.open_etcd(endpoints) as etcd,
        open_quorum_monitor(etcd),
        trio.open_nursery() as nursery,
    ):
        written = trio.Event()
        nursery.start_soon(_write, queue, RowMaker(common.prefix), lines, descriptor, stop, written)
        nursery.start_soon(stop_when_unread, descriptor, stop)
        reflector = Reflector(
            etcd,
            keys,
            queue,
            likely_prefix=likely_prefix,
            settings=ReflectorSettings(prev_kv=prev_kv),
        )
        with stop.interrupts():
            await reflector.run(task_status=queue)
        queue.close()
        with trio.move_on_after(_DRAIN):
            await written.wait()
        nursery.cancel_scope.cancel("all changes are written")
    return ExitCode.OK


async def _write(
    queue: ChangeQueue,
    rows: RowMaker,
    lines: Format,
    descriptor: int,
    stop: Stop,
    written: trio.Event,
) -> None:
    """Write the changes of the queue until it or its reader ends."""
    while items := await queue.pop():
        made = [each if isinstance(each, SyncedRow) else rows.row(each) for each in items]
        try:
            # Abandoned, so that a write that blocks does not delay the end.
            await trio.to_thread.run_sync(
                write_all, descriptor, lines.format(made), abandon_on_cancel=True
            )
        except BrokenPipeError:
            break
        except OSError as error:
            raise unwritable(error) from error
    written.set()
    stop.request()
