"""``etcd-actions record``: every change, as a file that ``replay`` writes back."""

from __future__ import annotations

import errno
import math
import os
import stat
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog
import trio

from etcd_actions import __version__
from etcd_actions.app.stop import Stop
from etcd_actions.change_history.record_format import Header, RecordWriter
from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.formats.change_queue import ChangeQueue
from etcd_actions.cli.formats.standard_output import check_output_open, stop_when_unread, write_all
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.signals import open_stop
from etcd_actions.errors import ConfigError, InputError, InvalidRequest, PermissionDenied
from etcd_actions.etcd import Etcd
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.oldest_revision import find_oldest_revision
from etcd_actions.etcd.quorum import open_quorum_monitor
from etcd_actions.etcd.versions import EtcdVersion, has_reliable_progress
from etcd_actions.model.keyspace import OWN_PREFIX
from etcd_actions.storage.watched_keys import watched_keys
from etcd_actions.watch import Change, Reflector, ReflectorSettings

# Seconds in which the reader of a pipe must accept the last changes; a file accepts all.
_DRAIN = 5.0
# Seconds between checks whether a recorded history has reached the present.
_CHECK_INTERVAL = 0.1
# Without reliable progress notifications, etcd counts as having sent its history after this many
# seconds without a change: it continues to read its history each tenth of a second.
_QUIET = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """The flags of ``record``.

    Attributes:
        history: Start at the oldest revision that etcd can read, not at the newest.
        until_synced: End once the state at the start is recorded.
        force: Overwrite the file.
    """

    history: bool = False
    until_synced: bool = False
    force: bool = False


async def record_file(common: CommonOptions, file: str, settings: RecordSettings) -> int:
    """Record the state and then every change into a file, until a signal.

    Raises:
        ConfigError: The prefix also has this package's own keys below it.
        InputError: The file exists, or cannot be written.
        Unavailable: etcd is unavailable at the start; later the recording waits for it.
    """
    if common.prefix.startswith(OWN_PREFIX) or OWN_PREFIX.startswith(common.prefix):
        raise ConfigError(
            f"--prefix {common.prefix.decode(errors='backslashreplace')}: keys below "
            f"{OWN_PREFIX.decode()} are not recorded, those that sign URLs are there: give the "
            "prefix of actions"
        )
    if file == "-":
        check_output_open()
        if sys.stdout.isatty():
            raise ConfigError("a record is binary: give a file, or send standard output to one")
    elif not settings.force and _exists(file):
        raise _existing(file)
    keys, _ = watched_keys(common.prefix, common.namespace)
    async with open_stop() as stop, common.open_etcd() as etcd, open_quorum_monitor(etcd):
        start: _StartRevision | None = None
        with stop.interrupts():
            start = await _find_start(etcd, keys, history=settings.history)
        if start is not None:
            async with _open_target(file, stop, force=settings.force) as target:
                if target is not None:
                    recording = _Recording(etcd, keys, start, target, stop, settings)
                    await recording.run(common)
    return ExitCode.OK


class _StartRevision(NamedTuple):
    """The start of a recording.

    ``newest`` is the store's revision at that time, ``state`` its keys with the revision of
    their last change, if the recording is a history. ``reliable_progress`` is whether etcd's
    progress notifications can be trusted.
    """

    revision: int
    newest: int
    state: Mapping[bytes, int]
    reliable_progress: bool
    cluster_id: int


class Convergence:
    """Compares the state that the changes so far lead to with a known one.

    Args:
        revision: The revision of the state.
        state: Its keys, with the revision of their last change.
    """

    def __init__(self, revision: int, state: Mapping[bytes, int]) -> None:
        self._revision = revision
        self._state = state
        self._missing = set(state)
        self._surplus: set[bytes] = set()

    @property
    def complete(self) -> bool:
        """Whether the changes lead to exactly the state."""
        return not self._missing and not self._surplus

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes, in their order."""
        for change in changes:
            key = change.key
            if key in self._state:
                if change.mod_revision >= self._state[key]:
                    self._missing.discard(key)
            elif change.is_delete:
                self._surplus.discard(key)
            elif change.mod_revision <= self._revision:
                self._surplus.add(key)


class _RecordTarget:
    """The file or pipe that a record is written to, by a thread."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self.is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)

    async def write(self, data: bytes) -> None:
        """Write; raises BrokenPipeError if the reader has ended, else InputError."""
        await self._in_thread(write_all, self.descriptor, data)

    async def sync(self) -> None:
        """Flush a file to the disk."""
        if self.is_regular:
            await self._in_thread(os.fsync, self.descriptor)

    async def _in_thread(self, function: Any, *arguments: object) -> None:
        try:
            # Abandoned, so that a write that blocks does not delay the end.
            await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(self.name, error) from error


class _Recording:
    """One recording, from its header to its end; the reflector's sink."""

    def __init__(
        self,
        etcd: Etcd,
        keys: KeyRange,
        start: _StartRevision,
        target: _RecordTarget,
        stop: Stop,
        settings: RecordSettings,
    ) -> None:
        self._start = start
        self._target = target
        self._stop = stop
        self._settings = settings
        self._queue = ChangeQueue()
        # Whether SYNCED is queued. Without a history the reflector does it at the end of its list.
        self._is_synced = not settings.history
        self._convergence = Convergence(start.newest, start.state)
        # One range: its changes are delivered in the order of their revisions.
        self._reflector = Reflector(
            etcd,
            keys,
            self,
            start_revision=start.revision if settings.history else 0,
            settings=ReflectorSettings(ranges=1),
        )
        self._writer = RecordWriter()
        self.wait_list_capacity = self._queue.wait_list_capacity
        self.wait_stream_capacity = self._queue.wait_stream_capacity

    async def run(self, common: CommonOptions) -> None:
        """Record until the end is requested, and finish the file."""
        start, settings, target = self._start, self._settings, self._target
        header = Header(
            prefix=common.prefix,
            namespace=common.namespace,
            start_revision=start.revision,
            history=settings.history,
            cluster_id=start.cluster_id,
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            writer=f"etcd-actions {__version__}",
        )
        _log.info("recording", file=target.name, start_revision=start.revision)
        async with trio.open_nursery() as nursery:
            written = trio.Event()
            nursery.start_soon(self._write, self._writer.header(header), written)
            nursery.start_soon(stop_when_unread, target.descriptor, self._stop)
            if settings.history:
                nursery.start_soon(self._detect_synced)
            with self._stop.interrupts():
                # A history is synced later than its first list.
                await self._reflector.run(
                    task_status=trio.TASK_STATUS_IGNORED if settings.history else self._queue
                )
            self._queue.close()
            with trio.move_on_after(math.inf if target.is_regular else _DRAIN) as scope:
                await written.wait()
            if scope.cancelled_caught:
                _log.warning("not_all_was_written", seconds=_DRAIN)
            nursery.cancel_scope.cancel("all changes are written")
        _log.info(
            "recorded",
            file=target.name,
            puts=self._writer.puts,
            deletes=self._writer.deletes,
            revision=self._writer.revision,
        )

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Queue changes."""
        self._queue.dispatch(changes)
        if not self._is_synced:
            self._convergence.apply(changes)
            self._queue_synced()

    async def _write(self, header: bytes, written: trio.Event) -> None:
        """Write the changes of the queue until it or its reader ends."""
        try:
            await self._target.write(header)
            synced = False
            while not synced and (items := await self._queue.pop()):
                if self._settings.until_synced:
                    items, synced = _up_to_synced(items)
                await self._target.write(b"".join(map(self._writer.entry, items)))
            await self._target.write(self._writer.end())
            await self._target.sync()
        except BrokenPipeError:
            _log.debug("reader_ended")
        written.set()
        self._stop.request()

    def _queue_synced(self, *, by_revision: bool = True) -> None:
        """Queue SYNCED, once, if the history has reached the newest revision of the start.

        Args:
            by_revision: False if the caller knows without the revision that it has.
        """
        newest, revision = self._start.newest, self._reflector.statistics().revision
        if not self._is_synced and (revision >= newest or not by_revision):
            self._is_synced = True
            self._queue.started(max(revision, newest))

    async def _detect_synced(self) -> None:
        """Queue SYNCED also if no change below the prefix has the newest revision of the start.

        Then a progress notification shows it. If etcd's notifications are not reliable, the keys
        show it, once no change has arrived for a while.
        """
        last: tuple[int, int] | None = None
        quiet_since = 0.0
        while not self._is_synced:
            await trio.sleep(_CHECK_INTERVAL)
            self._queue_synced()
            now = self._reflector.statistics()
            at = (now.events, sum(now.reconnects.values()))
            if at != last or not now.streaming:
                last, quiet_since = at, trio.current_time()
            quiet = trio.current_time() - quiet_since > _QUIET
            if quiet and self._convergence.complete and not self._start.reliable_progress:
                self._queue_synced(by_revision=False)


async def _find_start(etcd: Etcd, keys: KeyRange, *, history: bool) -> _StartRevision:
    """Read the revision at which the recording starts, and the state that it has to reach."""
    oldest = await find_oldest_revision(etcd, keys) if history else 0
    found = await etcd.range(keys, keys_only=history, count_only=not history)
    try:
        version = EtcdVersion.parse((await etcd.status()).version)
        reliable_progress = has_reliable_progress(version)
    except (PermissionDenied, InvalidRequest, ValueError):
        reliable_progress = False
    return _StartRevision(
        revision=oldest or found.revision,
        newest=found.revision,
        state={kv.key: kv.mod_revision for kv in found.kvs},
        reliable_progress=reliable_progress,
        cluster_id=found.cluster_id,
    )


def _up_to_synced(
    items: list[Change | SyncedRow],
) -> tuple[list[Change | SyncedRow], bool]:
    """The items up to SYNCED, and whether that is among them."""
    for index, item in enumerate(items):
        if isinstance(item, SyncedRow):
            return items[: index + 1], True
    return items, False


@asynccontextmanager
async def _open_target(
    file: str, stop: Stop, *, force: bool
) -> AsyncIterator[_RecordTarget | None]:
    """Open the file; None if the end is requested before it is open."""
    if file == "-":
        yield _RecordTarget("<stdout>", sys.stdout.fileno())
        return
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    opened: list[int] = []
    try:
        with stop.interrupts():
            # A named pipe opens when a process opens it for reading.
            opened.append(
                await trio.to_thread.run_sync(os.open, file, flags, 0o666, abandon_on_cancel=True)
            )
    except FileExistsError:
        raise _existing(file) from None
    except OSError as error:
        raise _unwritable(file, error) from None
    try:
        yield _RecordTarget(file, opened[0]) if opened else None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _exists(file: str) -> bool:
    return os.path.lexists(file)


def _unwritable(name: str, error: OSError) -> InputError:
    reason = os.strerror(error.errno or errno.EIO)
    return InputError(f"{name}: cannot be written: {reason}")


def _existing(file: str) -> InputError:
    return InputError(f"{file}: exists already: give another name, or --force to overwrite it")
