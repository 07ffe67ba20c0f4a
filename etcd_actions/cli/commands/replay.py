"""``etcd-actions replay``: write a recorded history into etcd, in order and exactly once."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions.app.stop import Stop
from etcd_actions.change_history.history import Destination, HistoryEvent, HistoryReader, reader_of
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.standard_output import check_input_open
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.printing import output_by_print
from etcd_actions.cli.signals import before_forced_exit, open_stop
from etcd_actions.errors import InputError, OutcomeUnknown, Unavailable
from etcd_actions.etcd import Etcd
from etcd_actions.etcd.api import (
    Compare,
    Delete,
    Get,
    KeyRange,
    KeyValue,
    Put,
    Txn,
)
from etcd_actions.storage.store import key_of

_BACKOFF = Backoff(initial=0.1, cap=2.0)
# Seconds of an outage after which the replay fails.
_PATIENCE = 60.0
_CHUNK = 256 * 1024

_log = structlog.get_logger(__name__)

Progress = Callable[[int, int], None]


class Replayer:
    """Writes changes one after another, each once, also if responses are lost.

    Each write compares the key's ``mod_revision`` with the last one that was read, so that it can
    be repeated. If another process, such as ``run``, writes the same keys, the first state after
    the last one that was read shows whether a lost write was applied.

    Attributes:
        puts: Number of puts.
        deletes: Number of deletes.
        revision: Revision of the last change; before the first, that of the store.
    """

    def __init__(self, etcd: Etcd, stop: Stop, *, patience: float = _PATIENCE) -> None:
        self.puts = 0
        self.deletes = 0
        self.revision = 0
        self._etcd = etcd
        self._stop = stop
        self._patience = patience
        self._last_revisions: dict[bytes, int] = {}

    async def start(self, prefix: bytes) -> None:
        """Read the store's revision below a prefix, so that an outage is found before a write."""
        found = await self._etcd.range(KeyRange.of_key(prefix), count_only=True)
        self.revision = found.revision

    async def write(self, event: HistoryEvent) -> None:
        """Write one change.

        Raises:
            Unavailable: The outage lasts too long, or the end was requested during it. The
                change may have been written.
            EtcdError: etcd rejects it.
        """
        lost = False
        failures = 0
        give_up = trio.current_time() + self._patience
        while True:
            try:
                if await self._try(event, lost):
                    return
                lost = False
            except Unavailable as error:
                lost = lost or isinstance(error, OutcomeUnknown)
                failures += 1
                if trio.current_time() > give_up:
                    raise
                delay = _BACKOFF.delay(failures)
                _log.warning("etcd_away", error=str(error), retry_in=round(delay, 3))
                with self._stop.interrupts():
                    await trio.sleep(delay)
                if self._stop.requested:
                    raise

    async def _try(self, event: HistoryEvent, lost: bool) -> bool:
        """Write the change if the key has its last revision, else read the key.

        With ``lost`` the response to an earlier try was lost. Returns whether it is written.
        """
        key, value = event.key, event.value
        last = self._last_revisions.get(key, 0)
        result = await self._etcd.txn(
            Txn(
                [Compare.unchanged(key, last)],
                [Delete(KeyRange.of_key(key)) if value is None else Put(key, value)],
                [Get(KeyRange.of_key(key))],
            )
        )
        if result.succeeded:
            self._last_revisions[key] = 0 if value is None else result.revision
            self._count(event, result.revision)
            return True
        current = key_of(result.responses[0])
        done_at = await self._done_at(event, last, current) if lost else 0
        self._last_revisions[key] = current.mod_revision if current is not None else 0
        if done_at:
            self._count(event, done_at)
        return done_at > 0

    async def _done_at(self, event: HistoryEvent, last: int, current: KeyValue | None) -> int:
        """The revision of a change whose response was lost, 0 if it was not applied.

        Because of its compare it can only be the first change after the last revision.
        """
        if event.value is None:
            deleted = current is None or current.create_revision > last
            return self.revision + 1 if deleted else 0
        before = last or self.revision
        first: KeyValue | None = None
        state = current
        while state is not None and state.mod_revision > before:
            first = state
            earlier = await self._etcd.range(
                KeyRange.of_key(event.key), revision=state.mod_revision - 1
            )
            state = earlier.kvs[0] if earlier.kvs else None
        if first is None or first.value != event.value or (first.version > 1) != (last > 0):
            return 0
        return first.mod_revision

    def _count(self, event: HistoryEvent, revision: int) -> None:
        self.revision = revision
        if event.value is None:
            self.deletes += 1
        else:
            self.puts += 1


async def replay_file(common: CommonOptions, file: str, rate: float | None) -> int:
    """Write the file's history; after a first signal no further change is started."""
    async with open_stop() as stop, _open_source(file, stop) as source:
        if source is None:
            return ExitCode.OK
        async with common.open_etcd() as etcd:
            replayer = Replayer(etcd, stop)
            with stop.interrupts():
                await replayer.start(common.prefix)
            destination = Destination(common.prefix, common.namespace)
            began = time.monotonic()
            try:
                with _progress(source.descriptor) as progress:
                    await _replay(source, destination, replayer, stop, rate, progress)
            finally:
                count, seconds = replayer.puts + replayer.deletes, time.monotonic() - began
                with output_by_print():
                    print(
                        f"replayed {count} events ({replayer.puts} puts, {replayer.deletes} "
                        f"deletes) in {seconds:.2f} s, last revision {replayer.revision}"
                    )
    return ExitCode.OK


async def _replay(
    source: _Source,
    destination: Destination,
    replayer: Replayer,
    stop: Stop,
    rate: float | None,
    progress: Progress,
) -> None:
    reader: HistoryReader | None = None
    done = 0
    due = trio.current_time()
    ended = False
    while not ended and not stop.requested:
        chunk: bytes | None = None
        with stop.interrupts():
            chunk = await source.read()
        if chunk is None:
            return
        if reader is None:
            reader = reader_of(source.name, chunk, destination)
        ended = not chunk
        for offset, event in reader.finish() if ended else reader.feed(chunk):
            if rate is not None:
                with stop.interrupts():
                    await trio.sleep_until(due)
                due = max(due + 1 / rate, trio.current_time())
            if stop.requested:
                return
            await replayer.write(event)
            done += 1
            progress(offset, done)
    if ended and reader is not None and reader.warning:
        print_message(reader.warning)


class _Source(NamedTuple):
    """The input; errors have its ``name``."""

    name: str
    descriptor: int

    async def read(self) -> bytes:
        """The next bytes, empty at the end."""
        try:
            # Abandoned, so that a read of standard input does not delay the end.
            return await trio.to_thread.run_sync(
                os.read, self.descriptor, _CHUNK, abandon_on_cancel=True
            )
        except OSError as error:
            raise InputError(f"{self.name}: {os.strerror(error.errno or 0)}") from None


@asynccontextmanager
async def _open_source(file: str, stop: Stop) -> AsyncIterator[_Source | None]:
    """Open the file; None if the end is requested before it is open."""
    if file == "-":
        check_input_open()
        yield _Source("<stdin>", sys.stdin.fileno())
        return
    opened: list[int] = []
    try:
        with stop.interrupts():
            # A named pipe opens when a process opens it for writing.
            opened.append(await trio.to_thread.run_sync(_open_file, file, abandon_on_cancel=True))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a path cannot have a NUL"
        raise InputError(
            f"{file}: {reason}: give a record, a file with one change "
            "a line, or - for standard input"
        ) from None
    try:
        yield _Source(file, opened[0]) if opened else None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _open_file(file: str) -> int:
    descriptor = os.open(file, os.O_RDONLY)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return descriptor


@contextmanager
def _progress(descriptor: int) -> Iterator[Progress]:
    """A bar on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _offset, _done: None
        return
    from rich.console import Console  # noqa: PLC0415 (slow to import)
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    from etcd_actions.cli.formats.table import sane_environment  # noqa: PLC0415

    status = os.fstat(descriptor)
    total = status.st_size if stat.S_ISREG(status.st_mode) else None
    columns = (
        TextColumn("replaying"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[done]} events"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, _environ=sane_environment(os.environ))
    with Bar(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("replaying", total=total, done=0)
        with before_forced_exit(bar.stop):
            yield lambda offset, done: bar.update(task, completed=offset, done=done)
