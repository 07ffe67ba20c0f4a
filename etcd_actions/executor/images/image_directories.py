"""The directories of images' environments: which is complete, in use, or to be removed.

All of it blocks. The home of an environment is the directory of its definition.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from etcd_actions._internal.untrusted_files import UnusableFile, read_regular
from etcd_actions.executor.images.image_build import PYTHON

LOCK: Final = "lock"
"""Locked by the one who makes or removes the environment."""
USE: Final = "use"
"""Locked, shared, by executors whose attempts use it; its time says when that began last."""

_READY: Final = "ready.json"
_REMOVED: Final = ".removed-"
_MOST_READY: Final = 4096
_LEAST_UNUSED: Final = 3600.0
_MOST_CONTEXT: Final = 256 * 1024 * 1024


def open_lock(path: Path) -> int:
    """A file that is made where it is missing; closing it lets its locks go."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def complete(home: Path) -> Path | None:
    """The environment that is complete; None for none.

    Raises:
        OSError: It cannot be looked at.
    """
    try:
        found = json.loads(read_regular(home / _READY, limit=_MOST_READY))
        directory = home / str(found["directory"])
        if directory.parent == home and (directory / PYTHON).exists():
            return directory
    except (FileNotFoundError, UnusableFile, ValueError, KeyError, TypeError):
        # Whatever it is, it names no environment that can be used: a new one is made.
        return None
    return None


def publish(home: Path, directory: Path, size: int) -> None:
    """Say that an environment is complete; before, nobody finds it."""
    draft = home / f"{_READY}.{secrets.token_hex(4)}"
    with draft.open("x") as file:
        json.dump({"directory": directory.name, "bytes": size}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(home / _READY)
    os.close(open_lock(home / USE))
    os.utime(home / USE)


def prepare_home(home: Path) -> None:
    """Remove what builds left that did not end well, unless an attempt uses it; LOCK is held."""
    use = open_lock(home / USE)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clear(home)
    finally:
        os.close(use)


def _clear(home: Path) -> None:
    for each in list(os.scandir(home)):
        if each.is_dir(follow_symlinks=False):
            remove(Path(each.path))
        elif each.name not in (LOCK, USE):
            with suppress(FileNotFoundError):
                Path(each.path).unlink()


def remove(directory: Path) -> None:
    """Remove a directory; it loses its name first, so that nobody finds half of it."""
    if not directory.name.startswith(_REMOVED):
        directory = directory.rename(directory.with_name(f"{_REMOVED}{secrets.token_hex(8)}"))
    shutil.rmtree(directory, ignore_errors=True)


def size_of(directory: Path) -> int:
    """The bytes of the files in a directory."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total


def read_context(path: Path) -> bytes:
    """The archive of an image's files.

    Raises:
        UnusableFile: It is no file, or too large.
        OSError: It cannot be read.
    """
    return read_regular(path, limit=_MOST_CONTEXT)


def sweep_images(
    directory: Path, keep: float, most_bytes: int
) -> tuple[int, list[tuple[Path, OSError]]]:
    """Remove environments that nobody has used for long, and then those above the disk's share.

    What is being made or used, by any process, stays; so does what was used within the last hour,
    unless ``keep`` is shorter.

    Args:
        directory: Where they are.
        keep: Seconds without use.
        most_bytes: What all of them may take together.

    Returns:
        How many were removed, and which could not be.
    """
    now, removed = time.time(), 0
    failures: list[tuple[Path, OSError]] = []
    kept: list[tuple[float, int, Path]] = []
    try:
        homes = [Path(each.path) for each in os.scandir(directory) if each.is_dir()]
    except FileNotFoundError:
        return 0, []
    for home in homes:
        try:
            used = (home / USE).stat().st_mtime
            size = int(json.loads(read_regular(home / _READY, limit=_MOST_READY))["bytes"])
        except (OSError, UnusableFile, ValueError, KeyError, TypeError):
            used, size = home.stat().st_mtime, 0
        if now - used < keep:
            kept.append((used, size, home))
            continue
        try:
            removed += _remove_unused(home)
        except OSError as error:
            failures.append((home, error))
    total = sum(size for _, size, _ in kept)
    for used, size, home in sorted(kept):
        if total <= most_bytes or now - used < min(_LEAST_UNUSED, keep):
            break
        try:
            if _remove_unused(home):
                removed, total = removed + 1, total - size
        except OSError as error:
            failures.append((home, error))
    return removed, failures


def _remove_unused(home: Path) -> bool:
    """Remove an environment unless somebody makes or uses it; whether there was one."""
    lock = open_lock(home / LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        use = open_lock(home / USE)
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            was_there = (home / _READY).exists()
            _clear(home)
        finally:
            os.close(use)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return was_there
