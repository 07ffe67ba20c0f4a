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
from etcd_actions.cli.formats.feed import Feed
from etcd_actions.cli.formats.standard_output import check_output_open, stop_when_unread, write_all
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.signals import open_stop
from etcd_actions.errors import ConfigError, InputError, InvalidRequest, PermissionDenied
from etcd_actions.etcd import Etcd
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.oldest_revision import find_oldest_revision
from etcd_actions.etcd.versions import EtcdVersion, has_reliable_progress
from etcd_actions.model.keyspace import OWN_PREFIX
from etcd_actions.storage.watched_keys import watched_keys
from etcd_actions.watch import Change, Reflector, ReflectorSettings

# Seconds for the reader of a pipe to take what was seen before the signal; a file takes all.
_DRAIN = 5.0
# Seconds between looks at whether a recorded history has come to the present.
_LOOK = 0.1
# Seconds without a change after which an etcd that cannot say so has sent its history; it
# reads on in it each tenth of a second.
_QUIET = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """The flags of ``record``.

    Attributes:
        history: Begin with the oldest revision that etcd can read, not with the newest.
        until_synced: End once what there was at the start is recorded.
        force: Overwrite the file.
    """

    history: bool = False
    until_synced: bool = False
    force: bool = False


async def record_file(common: CommonOptions, file: str, settings: RecordSettings) -> int:
    """Record what is there and then every change, until a signal.

    Args:
        common: The settings.
        file: Where to; ``-`` is standard output.
        settings: See `RecordSettings`.

    Raises:
        ConfigError: The prefix has more below it than actions.
        InputError: The file exists, or cannot be written.
        Unavailable: etcd is away at the start; later it is waited for.
    """
    if common.prefix.startswith(OWN_PREFIX) or OWN_PREFIX.startswith(common.prefix):
        raise ConfigError(
            f"--prefix {common.prefix.decode(errors='backslashreplace')}: what is below "
            f"{OWN_PREFIX.decode()} is not recorded, the keys that sign URLs are there: give the "
            "prefix of actions"
        )
    if file == "-":
        check_output_open()
    if file == "-" and sys.stdout.isatty():
        raise ConfigError("a record is binary: give a file, or send standard output to one")
    if not settings.force and _exists(file):
        raise _existing(file)
    keys, _ = watched_keys(common.prefix, common.namespace)
    async with open_stop() as stop, common.open_etcd() as etcd:
        start: _Start | None = None
        with stop.interrupts():
            start = await _find_start(etcd, keys, history=settings.history)
        if start is not None:
            async with _open_target(file, stop, force=settings.force) as target:
                if target is not None:
                    recording = _Recording(etcd, keys, start, target, stop, settings)
                    await recording.run(common)
    return ExitCode.OK


class _Start(NamedTuple):
    """Where a recording begins.

    ``newest`` is the store's revision then, and ``state`` which keys there are at it, with the
    revision of their last change; empty where nobody needs it. ``tells_progress`` says whether
    etcd can be believed when it says how far it is.
    """

    revision: int
    newest: int
    state: Mapping[bytes, int]
    tells_progress: bool
    cluster_id: int


class Approach:
    """Whether the changes seen so far lead to a state that is known.

    Args:
        revision: That of the state.
        state: Its keys, with the revision of their last change.
    """

    def __init__(self, revision: int, state: Mapping[bytes, int]) -> None:
        self._revision = revision
        self._state = state
        self._missing = set(state)
        self._surplus: set[bytes] = set()

    @property
    def complete(self) -> bool:
        """Whether all of the state is there and nothing that is not in it."""
        return not self._missing and not self._surplus

    def see(self, changes: Sequence[Change]) -> None:
        """Take in changes, in their order."""
        for change in changes:
            key = change.key
            if key in self._state:
                if change.mod_revision >= self._state[key]:
                    self._missing.discard(key)
            elif change.is_delete:
                self._surplus.discard(key)
            elif change.mod_revision <= self._revision:
                self._surplus.add(key)


class _Target:
    """The file; written in a thread, whole batches at a time."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self.is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)

    async def write(self, data: bytes) -> None:
        """Raises BrokenPipeError where nobody reads on, and InputError for all else."""
        # A thread that hangs in a write nobody reads must not hold up the end.
        await self._in_thread(write_all, self.descriptor, data)

    async def sync(self) -> None:
        """Have a file on the disk."""
        if self.is_regular:
            await self._in_thread(os.fsync, self.descriptor)

    async def _in_thread(self, function: Any, *arguments: object) -> None:
        try:
            await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = os.strerror(error.errno or errno.EIO)
            raise InputError(f"{self.name}: cannot be written: {reason}") from error


class _Recording:
    """One recording, from its header to its end."""

    def __init__(
        self,
        etcd: Etcd,
        keys: KeyRange,
        start: _Start,
        target: _Target,
        stop: Stop,
        settings: RecordSettings,
    ) -> None:
        self._start = start
        self._target = target
        self._stop = stop
        self._settings = settings
        self._feed = Feed()
        # Without history the reflector itself says when the list is done.
        self._present = not settings.history
        self._approach = Approach(start.newest, start.state)
        # One range: its changes come in the order of their revisions.
        self._reflector = Reflector(
            etcd,
            keys,
            self,
            start_revision=start.revision if settings.history else 0,
            settings=ReflectorSettings(ranges=1),
        )
        self._writer = RecordWriter()

    async def run(self, common: CommonOptions) -> None:
        """Record until the end is asked for, and finish the file."""
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
                nursery.start_soon(self._watch_approach)
            with self._stop.interrupts():
                # A history is synced later than its first list.
                await self._reflector.run(
                    task_status=trio.TASK_STATUS_IGNORED if settings.history else self._feed
                )
            self._feed.close()
            with trio.move_on_after(math.inf if target.is_regular else _DRAIN) as scope:
                await written.wait()
            if scope.cancelled_caught:
                _log.warning("not_all_was_written", seconds=_DRAIN)
            nursery.cancel_scope.cancel("all is written")
        _log.info(
            "recorded",
            file=target.name,
            puts=self._writer.puts,
            deletes=self._writer.deletes,
            revision=self._writer.revision,
        )

    # The reflector's sink.

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Take in changes."""
        self._feed.dispatch(changes)
        if not self._present:
            self._approach.see(changes)
            self._mark_present()

    async def wait_list_room(self) -> None:
        """Return when there is room for another page of a list."""
        await self._feed.wait_list_room()

    async def wait_stream_room(self) -> None:
        """Return at once, or when there is room again."""
        await self._feed.wait_stream_room()

    async def _write(self, header: bytes, written: trio.Event) -> None:
        """Write what the feed holds until it ends, or until nobody reads."""
        try:
            await self._target.write(header)
            synced = False
            while not synced and (taken := await self._feed.take()):
                if self._settings.until_synced:
                    taken, synced = _up_to_synced(taken)
                await self._target.write(b"".join(map(self._writer.entry, taken)))
            await self._target.write(self._writer.end())
            await self._target.sync()
        except BrokenPipeError:
            _log.debug("nobody_reads_on")
        written.set()
        self._stop.request()

    def _mark_present(self, *, told: bool = True) -> None:
        """Put SYNCED, once, where the history has come to the newest revision of the start.

        Args:
            told: Whether etcd's own word is wanted; else it is known by other means.
        """
        newest, revision = self._start.newest, self._reflector.statistics().revision
        if not self._present and (revision >= newest or not told):
            self._present = True
            self._feed.started(max(revision, newest))

    async def _watch_approach(self) -> None:
        """See to SYNCED where no change of ours is of the newest revision."""
        seen: tuple[int, int] | None = None
        quiet_since = 0.0
        while not self._present:
            await trio.sleep(_LOOK)
            self._mark_present()
            now = self._reflector.statistics()
            at = (now.events, sum(now.reconnects.values()))
            if at != seen or not now.streaming:
                seen, quiet_since = at, trio.current_time()
            quiet = trio.current_time() - quiet_since > _QUIET
            if quiet and self._approach.complete and not self._start.tells_progress:
                self._mark_present(told=False)


async def _find_start(etcd: Etcd, keys: KeyRange, *, history: bool) -> _Start:
    oldest = await find_oldest_revision(etcd, keys) if history else 0
    found = await etcd.range(keys, keys_only=history, count_only=not history)
    state = {kv.key: kv.mod_revision for kv in found.kvs}
    return _Start(
        revision=oldest or found.revision,
        newest=found.revision,
        state=state,
        tells_progress=await _tells_progress(etcd),
        cluster_id=found.cluster_id,
    )


async def _tells_progress(etcd: Etcd) -> bool:
    try:
        return has_reliable_progress(EtcdVersion.parse((await etcd.status()).version))
    except (PermissionDenied, InvalidRequest, ValueError):
        return False


def _up_to_synced(
    taken: list[Change | SyncedRow],
) -> tuple[list[Change | SyncedRow], bool]:
    for index, item in enumerate(taken):
        if isinstance(item, SyncedRow):
            return taken[: index + 1], True
    return taken, False


@asynccontextmanager
async def _open_target(file: str, stop: Stop, *, force: bool) -> AsyncIterator[_Target | None]:
    """Open the file; None where the end was asked for before it could be opened."""
    if file == "-":
        yield _Target("<stdout>", sys.stdout.fileno())
        return
    descriptor = await _open_file(file, stop, force=force)
    if descriptor is None:
        yield None
        return
    try:
        yield _Target(file, descriptor)
    finally:
        os.close(descriptor)


async def _open_file(file: str, stop: Stop, *, force: bool) -> int | None:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        with stop.interrupts():
            # A named pipe opens when somebody reads it.
            return await trio.to_thread.run_sync(
                os.open, file, flags, 0o666, abandon_on_cancel=True
            )
    except FileExistsError:
        raise _existing(file) from None
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise InputError(f"{file}: cannot be written: {reason}") from None
    return None


def _exists(file: str) -> bool:
    return file != "-" and os.path.lexists(file)


def _existing(file: str) -> InputError:
    return InputError(f"{file}: exists already: give another name, or --force to overwrite it")
