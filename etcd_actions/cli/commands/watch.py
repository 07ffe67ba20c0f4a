"""``etcd-actions watch``: every change, as a table or as JSON lines."""

from __future__ import annotations

import sys

import structlog
import trio

from etcd_actions.app.stop import Stop
from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.exit_codes import ExitCode, unwritable
from etcd_actions.cli.formats.feed import Feed
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
from etcd_actions.storage.watched_keys import watched_keys
from etcd_actions.watch import Reflector, ReflectorSettings

# Seconds for the output to take what was seen before the signal.
_DRAIN = 5.0

_log = structlog.get_logger(__name__)


async def watch_until_signal(common: CommonOptions, output: str | None, prev_kv: bool) -> int:
    """Write every change to standard output until a signal, or until nobody reads."""
    several = common.config.namespace_template is not None
    lines = _format(chosen_format(output, elsewhere="jsonl"), runs_of_projects=several)
    descriptor = sys.stdout.fileno()
    keys, likely_prefix = watched_keys(common.prefix, common.namespace)
    feed = Feed()
    endpoints = common.endpoints_to_use
    _log.debug("watching", endpoints=endpoints, prefix=keys.start.decode())
    async with (
        open_stop() as stop,
        common.open_etcd(endpoints) as etcd,
        trio.open_nursery() as nursery,
    ):
        written = trio.Event()
        nursery.start_soon(_write, feed, RowMaker(common.prefix), lines, descriptor, stop, written)
        nursery.start_soon(stop_when_unread, descriptor, stop)
        reflector = Reflector(
            etcd,
            keys,
            feed,
            likely_prefix=likely_prefix,
            settings=ReflectorSettings(prev_kv=prev_kv),
        )
        with stop.interrupts():
            await reflector.run(task_status=feed)
        feed.close()
        with trio.move_on_after(_DRAIN):
            await written.wait()
        nursery.cancel_scope.cancel("all is written")
    return ExitCode.OK


def _format(output: str, *, runs_of_projects: bool) -> Format:
    if output == "jsonl":
        return JsonLines()
    from etcd_actions.cli.formats.table import ChangeTable  # noqa: PLC0415 (rich is slow to import)

    return ChangeTable(sys.stdout, runs_of_projects=runs_of_projects)


async def _write(
    feed: Feed, rows: RowMaker, lines: Format, descriptor: int, stop: Stop, written: trio.Event
) -> None:
    """Write what the feed holds until it ends, or until nobody reads."""
    while taken := await feed.take():
        made = [each if isinstance(each, SyncedRow) else rows.row(each) for each in taken]
        try:
            # A thread that hangs in a write nobody reads must not hold up the end.
            await trio.to_thread.run_sync(
                write_all, descriptor, lines.format(made), abandon_on_cancel=True
            )
        except BrokenPipeError:
            break
        except OSError as error:
            raise unwritable(error) from error
    written.set()
    stop.request()
