"""``etcd-actions watch``: every change, as a table or as JSON lines."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import msgspec
import structlog
import trio

from etcd_actions.cli.exits import ExitCode
from etcd_actions.cli.options import Common
from etcd_actions.cli.rows import Row, RowMaker, SyncedRow
from etcd_actions.cli.signals import Stop, open_stop
from etcd_actions.errors import EtcdActionsError
from etcd_actions.processor import watched_keys
from etcd_actions.watch import Change, Reflector, ReflectorSettings

# Above either the reader waits: whoever reads our output is slower than etcd.
_MOST_PENDING = 20_000
_MOST_PENDING_BYTES = 64 * 1024 * 1024
# Rows made and written in one go: enough to be cheap, few enough to let others run.
_BATCH = 500
# Seconds for the output to take what was seen before the signal.
_DRAIN = 5.0

_log = structlog.get_logger(__name__)


class Format(Protocol):
    """How rows become output."""

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The bytes of whole lines."""
        ...


class JsonLines:
    """One JSON object a line."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The bytes of whole lines."""
        return self._encoder.encode_lines(rows)


class Feed:
    """What the reflector has given out and nobody has written yet, in order.

    It is the reflector's sink and, for the moment of the first list's end, its task
    status: a mark in the queue keeps SYNCED in its place.
    """

    def __init__(self) -> None:
        self._pending: deque[Change | SyncedRow] = deque()
        self._bytes = 0
        self._closed = False
        self._filled = trio.Event()
        self._room = trio.Event()

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Queue changes."""
        self._pending.extend(changes)
        self._bytes += sum(map(_size, changes))
        self._filled.set()

    def started(self, value: int | None = None) -> None:
        """The first list was given out, of revision ``value``."""
        self._pending.append(SyncedRow(value or 0))
        self._filled.set()

    async def wait_list_room(self) -> None:
        """Return when there is room for another page of a list."""
        await self.wait_stream_room()

    async def wait_stream_room(self) -> None:
        """Return at once, or when there is room again."""
        if self._is_full():
            _log.warning("output_too_slow", pending=len(self._pending))
        while self._is_full():
            # Several may wait: a list and the stream.
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._filled.set()

    async def take(self) -> list[Change | SyncedRow]:
        """The next ones, some hundred at most; empty at the end."""
        while not self._pending and not self._closed:
            self._filled = trio.Event()
            await self._filled.wait()
        taken = [self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))]
        self._bytes -= sum(map(_size, taken))
        if not self._is_full():
            self._room.set()
        return taken

    def _is_full(self) -> bool:
        return len(self._pending) > _MOST_PENDING or self._bytes > _MOST_PENDING_BYTES


async def watch_until_signal(common: Common, output: str | None, prev_kv: bool) -> int:
    """Write every change to standard output until a signal, or until nobody reads."""
    descriptor = sys.stdout.fileno()
    lines = _format(output or ("table" if os.isatty(descriptor) else "jsonl"))
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
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            nursery.start_soon(_stop_when_unread, descriptor, stop)
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


def _format(output: str) -> Format:
    if output == "jsonl":
        return JsonLines()
    from etcd_actions.cli.table import Table  # noqa: PLC0415 (rich is slow to import)

    return Table(sys.stdout)


async def _write(
    feed: Feed, rows: RowMaker, lines: Format, descriptor: int, stop: Stop, written: trio.Event
) -> None:
    """Write what the feed holds until it ends, or until nobody reads."""
    while taken := await feed.take():
        made = [each if isinstance(each, SyncedRow) else rows.row(each) for each in taken]
        try:
            # A thread that hangs in a write nobody reads must not hold up the end.
            await trio.to_thread.run_sync(
                _write_all, descriptor, lines.format(made), abandon_on_cancel=True
            )
        except BrokenPipeError:
            break
        except OSError as error:
            raise EtcdActionsError(
                f"standard output cannot be written: {os.strerror(error.errno or errno.EIO)}"
            ) from error
    written.set()
    stop.request()


async def _stop_when_unread(descriptor: int, stop: Stop) -> None:
    """Ask for the end when the pipe's reader has gone, also while there is nothing to write."""
    # The writing end of a pipe becomes readable in one case only: as an error.
    await trio.lowlevel.wait_readable(descriptor)
    stop.request()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _size(item: Change | SyncedRow) -> int:
    return len(item.value or b"") + len(item.prev_value or b"") if isinstance(item, Change) else 0
