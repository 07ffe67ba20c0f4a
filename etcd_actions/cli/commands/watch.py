"""``etcd-actions watch``: every change, as a table or as JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import trio

from etcd_actions.app.stop import Stop
from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.exit_codes import ExitCode, print_message, unwritable
from etcd_actions.cli.formats.change_queue import ChangeQueue
from etcd_actions.cli.formats.row_formats import Format, JsonLines, NameLines, formatter
from etcd_actions.cli.formats.rows import Row, RowMaker
from etcd_actions.cli.formats.standard_output import (
    chosen_format,
    stop_when_unread,
    write_all,
)
from etcd_actions.cli.names import Name
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.signals import open_stop
from etcd_actions.config.settings import SERVICE
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.quorum import open_quorum_monitor
from etcd_actions.model import run_key_prefix
from etcd_actions.storage.watched_keys import watched_keys
from etcd_actions.watch import Reflector, ReflectorSettings

# Seconds after a signal for the reader of the output to accept the changes before the signal.
_DRAIN = 5.0

_log = structlog.get_logger(__name__)


Selects = Callable[[Row], bool]
"""Returns whether a row is printed."""

ALL = Name()
"""All runs."""


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Which changes are printed, and how.

    Attributes:
        lines: Formats the rows.
        selects: Returns whether a row is printed.
        run: The only run; with empty names all runs.
        if_none: A message for standard error if no present state is selected; empty for none.
        prev_kv: Whether etcd is to send the value before a deletion.
    """

    lines: Format
    selects: Selects = lambda _: True
    run: Name = ALL
    if_none: str = ""
    prev_kv: bool = False


class NoneYet:
    """Prints a message once if none of the present states was selected.

    Args:
        message: The message; empty for none.
    """

    def __init__(self, message: str) -> None:
        self._message = message

    def note(self, made: Sequence[Row], selected: Sequence[Row]) -> None:
        """Note the next rows, and those of them that are printed."""
        if selected:
            self._message = ""
        elif self._message and any(isinstance(each, SyncedRow) for each in made):
            print_message(self._message)
            self._message = ""


async def watch_until_signal(common: CommonOptions, output: str | None, prev_kv: bool) -> int:
    """Write every change to standard output until a signal, or until its reader has ended."""
    form = chosen_format(output, elsewhere="jsonl")
    lines: Format = JsonLines() if form == "jsonl" else NameLines()
    if form in ("table", "wide"):
        from etcd_actions.cli.formats.action_tables import ChangeTable  # noqa: PLC0415 (rich is slow)

        lines = ChangeTable(sys.stdout, qualify_runs=common.qualify_runs, wide=form == "wide")
    return await watch(common, WatchOptions(lines=lines, prev_kv=prev_kv))


async def watch_selected(
    common: CommonOptions, form: str, selects: Selects, run: Name, if_none: str = ""
) -> int:
    """Write the selected actions, and each that changes, in a format of ``list``.

    Args:
        common: The options of every command.
        form: The format.
        selects: Whether a row is printed.
        run: The only run; with empty names all runs.
        if_none: A message for standard error if there is no such action yet.

    Raises:
        ConfigError: The format is one document.
    """
    if form in ("json", "yaml", "details"):
        raise ConfigError(f"--output {form} has an end: with --watch give table, name or jsonl")
    lines = formatter(form, qualify_runs=common.qualify_runs, follow=True)
    return await watch(common, WatchOptions(lines=lines, selects=selects, run=run, if_none=if_none))


async def watch(common: CommonOptions, watching: WatchOptions) -> int:
    """Write the selected changes until a signal, or until the reader of the output has ended."""
    if common.config[SERVICE] is not None:
        from etcd_actions.cli.commands.watch_service import watch_service  # noqa: PLC0415 (slow)

        return await watch_service(common, watching)
    descriptor = sys.stdout.fileno()
    keys, likely_prefix = watched_keys(common.prefix, common.namespace)
    if watching.run.run and watching.run.namespace:
        run, namespace = watching.run.run, watching.run.namespace
        likely_prefix = run_key_prefix(common.prefix, namespace, run)
        keys = KeyRange.of_prefix(likely_prefix)
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
        rows = RowMaker(common.prefix)
        nursery.start_soon(_write, queue, rows, watching, descriptor, stop, written)
        nursery.start_soon(stop_when_unread, descriptor, stop)
        reflector = Reflector(
            etcd,
            keys,
            queue,
            likely_prefix=likely_prefix,
            settings=ReflectorSettings(prev_kv=watching.prev_kv),
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
    watching: WatchOptions,
    descriptor: int,
    stop: Stop,
    written: trio.Event,
) -> None:
    """Write the changes of the queue until it or its reader ends."""
    none_yet = NoneYet(watching.if_none)
    while items := await queue.pop():
        made = [each if isinstance(each, SyncedRow) else rows.row(each) for each in items]
        selected = [row for row in made if watching.selects(row)]
        none_yet.note(made, selected)
        if not selected:
            continue
        try:
            # Abandoned, so that a write that blocks does not delay the end.
            await trio.to_thread.run_sync(
                write_all, descriptor, watching.lines.format(selected), abandon_on_cancel=True
            )
        except BrokenPipeError:
            break
        except OSError as error:
            raise unwritable(error) from error
    written.set()
    stop.request()
