"""The executor's state directory: its owner and mode, and the removal of old attempts."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.untrusted_files import UnusableFile
from etcd_actions.errors import ConfigError
from etcd_actions.executor.attempts.attempt_directory import EXIT, STARTED, AttemptDirectory
from etcd_actions.executor.attempts.output_directories import OUTPUTS, sweep_outputs
from etcd_actions.executor.cache.cached_outputs import CACHE, sweep_cache
from etcd_actions.executor.removal import REMOVED, remove
from etcd_actions.executor.supervision.bounded_log import LOG

UNIT: Final = "attempt_directory"
"""The kind of unit of a directory; see :mod:`etcd_actions._internal.containment`."""

_FLAG: Final = "--executor-state-dir"
# Seconds between two sweeps: at most, and at least.
_LOOK_EVERY: Final = 3600.0
_LEAST_EVERY: Final = 1.0

_log = structlog.get_logger(__name__)


class Swept(NamedTuple):
    """The number of attempts that were removed, and the errors of those that could not be."""

    removed: int
    failures: list[tuple[Path, Exception]]


def prepare_state_dir(path: Path) -> None:
    """Create the directory, or check and set that it is this user's alone.

    Raises:
        ConfigError: It cannot be used; the message names the flag.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_own(path)
        for name in ("attempts", OUTPUTS):
            (path / name).mkdir(mode=0o700, exist_ok=True)
            _make_own(path / name)
        probe = path / f".probe-{secrets.token_hex(4)}"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{_FLAG} {path}: it cannot be written: {error.strerror or error}: give a directory "
            "that this user can write"
        ) from error


def _make_own(path: Path) -> None:
    if path.is_symlink():
        raise ConfigError(f"{_FLAG} {path}: it is a symbolic link: give the directory itself")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"{_FLAG} {path}: it belongs to user {found.st_uid}, and this is user "
                f"{os.geteuid()}: give a directory of this user's own"
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


async def keep_clean(
    state_dir: Path,
    keep: float,
    open_actions: Callable[[], set[str] | None],
    containment: Containment,
    cache_keep: float,
) -> None:
    """Remove old attempts and cached outputs at intervals; does not return.

    Args:
        state_dir: The executor's directory.
        keep: Seconds that an attempt is kept after its end.
        open_actions: The names of the directories of the actions that are not terminal, which
            stay; None if they are not known yet.
        containment: Counts directories that cannot be removed.
        cache_keep: Seconds that a cached result is kept after its use; 0 for no cache.
    """
    every = max(min(_LOOK_EVERY, keep / 4), _LEAST_EVERY)
    while True:
        kept = open_actions()
        if kept is None:
            await trio.sleep(_LEAST_EVERY)
            continue
        swept = await trio.to_thread.run_sync(sweep, state_dir, keep, kept, abandon_on_cancel=True)
        for path, error in swept.failures:
            with containment.unit(UNIT, str(path)):
                raise error
        if cache_keep > 0:
            with containment.unit(UNIT, str(state_dir / CACHE)):
                await trio.to_thread.run_sync(
                    sweep_cache, state_dir, cache_keep, abandon_on_cancel=True
                )
        if swept.removed:
            _log.info("attempts_removed", count=swept.removed)
        await trio.sleep(every)


def sweep(state_dir: Path, keep: float, kept: set[str], *, dry_run: bool = False) -> Swept:
    """Remove the attempts that ended more than ``keep`` seconds ago; never one that lives.

    The directories of actions that are named in ``kept`` stay. A dry run removes nothing, and
    returns the number of attempts that would be removed.
    """
    before = time.time() - keep
    removed = 0
    failures: list[tuple[Path, Exception]] = []
    for action in _directories(state_dir / "attempts"):
        if action.name in kept:
            continue
        for attempt in _directories(action):
            try:
                removed += (_is_old if dry_run else _remove_if_old)(attempt, before)
            except (OSError, UnusableFile, subprocess.SubprocessError) as error:
                failures.append((attempt, error))
        if not dry_run:
            # It fails if the directory is not empty.
            with suppress(OSError):
                action.rmdir()
    if not dry_run:
        sweep_outputs(state_dir, before)
    return Swept(removed, failures)


def _is_old(attempt: Path, before: float) -> bool:
    """Whether an attempt would be removed. Its lock is not tried: that would lock it."""
    if attempt.name.startswith(REMOVED) or _last_change(attempt) > before:
        return False
    return AttemptDirectory.at(attempt).supervisor() is None


def _remove_if_old(attempt: Path, before: float) -> bool:
    if attempt.name.startswith(REMOVED):
        remove(attempt)
        return False
    if _last_change(attempt) > before:
        return False
    place = AttemptDirectory.at(attempt)
    try:
        lock = place.try_lock()
    except UnusableFile:
        # A task replaced the file: the supervisor's own lock decides.
        if place.supervisor() is not None:
            return False
        remove(attempt)
        return True
    if lock is None:
        return False
    try:
        remove(attempt)
    finally:
        os.close(lock)
    return True


def _last_change(attempt: Path) -> float:
    """When the files of an attempt were last changed."""
    times = [attempt.lstat().st_mtime]
    for name in (STARTED, EXIT, LOG):
        with suppress(OSError):
            times.append((attempt / name).lstat().st_mtime)
    return max(times)


def _directories(path: Path) -> Iterator[Path]:
    try:
        found = list(os.scandir(path))
    except OSError:
        return
    for each in found:
        if each.is_dir(follow_symlinks=False):
            yield Path(each.path)
