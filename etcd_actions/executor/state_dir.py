"""The executor's directory: ours alone, and without what ended long ago."""

from __future__ import annotations

import os
import secrets
import shutil
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
from etcd_actions.executor.attempts.attempt_directory import EXIT, LOG, STARTED, AttemptDirectory
from etcd_actions.executor.attempts.output_directories import OUTPUTS, sweep_outputs
from etcd_actions.executor.cache.cached_outputs import CACHE, sweep_cache

UNIT: Final = "attempt_directory"
"""The kind of unit of a directory; see :mod:`etcd_actions._internal.containment`."""

_FLAG: Final = "--executor-state-dir"
_REMOVED: Final = ".removed-"
_LOOK_EVERY: Final = 3600.0
_LEAST_EVERY: Final = 1.0
_REMOVED_WITHIN: Final = 600.0

_log = structlog.get_logger(__name__)


class Swept(NamedTuple):
    """What one look at the directory did.

    Attributes:
        removed: How many attempts were removed.
        failures: Which ones could not be, and why.
    """

    removed: int
    failures: list[tuple[Path, Exception]]


def prepare_state_dir(path: Path) -> None:
    """Create the directory, or see to it that it is this user's and nobody else's.

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
    """Remove what is not needed any more, again and again; does not return.

    Args:
        state_dir: The executor's directory.
        keep: How many seconds ago.
        open_actions: The names of the directories of the actions that are not over, which stay.
            None where that is not known yet.
        containment: Where a directory that cannot be removed is counted.
        cache_keep: How many seconds ago a cached result was used for the last time; 0 where this
            executor caches nothing.
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


def sweep(state_dir: Path, keep: float, kept: set[str]) -> Swept:
    """Remove the attempts that ended long ago; never one that lives.

    Args:
        state_dir: The executor's directory.
        keep: How many seconds ago.
        kept: The names of directories, one for each action, that stay.
    """
    before = time.time() - keep
    removed = 0
    failures: list[tuple[Path, Exception]] = []
    for action in _directories(state_dir / "attempts"):
        if action.name in kept:
            continue
        for attempt in _directories(action):
            try:
                removed += _remove_if_over(attempt, before)
            except (OSError, UnusableFile, subprocess.SubprocessError) as error:
                failures.append((attempt, error))
        # Unless something is in it.
        with suppress(OSError):
            action.rmdir()
    sweep_outputs(state_dir, before)
    return Swept(removed, failures)


def _remove_if_over(attempt: Path, before: float) -> bool:
    if attempt.name.startswith(_REMOVED):
        _remove(attempt)
        return False
    if _last_change(attempt) > before:
        return False
    place = AttemptDirectory.at(attempt)
    try:
        lock = place.try_lock()
    except UnusableFile:
        # A task put something else there: only its supervisor's own lock can tell.
        if place.supervisor() is not None:
            return False
        _remove(attempt)
        return True
    if lock is None:
        return False
    try:
        _remove(attempt)
    finally:
        os.close(lock)
    return True


def _last_change(attempt: Path) -> float:
    """When something happened to an attempt for the last time."""
    times = [attempt.lstat().st_mtime]
    for name in (STARTED, EXIT, LOG):
        with suppress(OSError):
            times.append((attempt / name).lstat().st_mtime)
    return max(times)


def _remove(directory: Path) -> None:
    """Remove a directory that a task has filled, whatever is in it."""
    if not directory.name.startswith(_REMOVED):
        # So that nobody finds half of it.
        directory = directory.rename(
            directory.with_name(f"{_REMOVED}{directory.name}-{secrets.token_hex(4)}")
        )
    try:
        shutil.rmtree(directory)
    except (OSError, RecursionError):
        # Directories that may not be read, or that are nested too deeply.
        for command in (("chmod", "-R", "u+rwX"), ("rm", "-rf")):
            subprocess.run(
                [*command, "--", str(directory)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_REMOVED_WITHIN,
                check=command[0] == "rm",
            )


def _directories(path: Path) -> Iterator[Path]:
    try:
        found = list(os.scandir(path))
    except OSError:
        return
    for each in found:
        if each.is_dir(follow_symlinks=False):
            yield Path(each.path)
