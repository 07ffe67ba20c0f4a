"""The directories of images' environments: completion, use, and removal.

All functions block. Each definition of an image, with the Python below it, has one directory, its
*home*: the builds of its environment are in it, and a file that names the complete one.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import SubprocessError
from typing import Final

from etcd_actions._internal.untrusted_files import UnusableFile, read_regular
from etcd_actions.executor.images.image_build import PYTHON
from etcd_actions.executor.removal import remove

LOCK: Final = "lock"
"""Locked by the process that builds or removes the environment."""
USE: Final = "use"
"""Locked, shared, by executors whose attempts use it; its time is the start of the last use."""

_READY: Final = "ready.json"
# Bytes of the file that names the complete environment.
_MOST_READY: Final = 4096
# Seconds for which a used environment stays even above the limit of bytes.
_LEAST_UNUSED: Final = 3600.0
# Bytes of the archive of an image's files.
_MOST_CONTEXT: Final = 256 * 1024 * 1024


def open_lock(path: Path) -> int:
    """Open or create a file for locks; closing it releases them."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def complete(home: Path) -> Path | None:
    """The environment that is complete, if any.

    Raises:
        OSError: The directory cannot be read.
    """
    try:
        directory = home / str(_ready(home)["directory"])
        if directory.parent == home and (directory / PYTHON).exists():
            return directory
    except (FileNotFoundError, UnusableFile, ValueError, KeyError, TypeError):
        # The file names no environment that can be used: a new one is made.
        return None
    return None


def publish(home: Path, directory: Path, size: int) -> None:
    """Mark an environment of so many bytes as complete, so that readers find it."""
    draft = home / f"{_READY}.{secrets.token_hex(4)}"
    with draft.open("x") as file:
        json.dump({"directory": directory.name, "bytes": size}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(home / _READY)
    os.close(open_lock(home / USE))
    os.utime(home / USE)


def prepare_home(home: Path) -> None:
    """Remove the files of failed builds, unless an attempt uses them; the caller holds the lock."""
    with suppress(BlockingIOError), _locked(home / USE):
        _clear(home)


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
        UnusableFile: It is not a regular file, or too large.
        OSError: It cannot be read.
    """
    return read_regular(path, limit=_MOST_CONTEXT)


def sweep_images(
    directory: Path, keep: float, most_bytes: int
) -> tuple[int, list[tuple[Path, Exception]]]:
    """Remove environments that are unused for long, then the oldest ones above the limit.

    An environment that a process builds or uses stays; so does one that was used within the last
    hour, unless ``keep`` is shorter.

    Args:
        directory: The directory of all environments.
        keep: Seconds without use.
        most_bytes: The most bytes of all environments.

    Returns:
        The number of removed environments, and the errors of the others.
    """
    now, removed = time.time(), 0
    failures: list[tuple[Path, Exception]] = []
    try:
        homes = [Path(each.path) for each in os.scandir(directory) if each.is_dir()]
    except FileNotFoundError:
        return 0, []
    found = sorted((*_use_of(home), home) for home in homes)
    total = sum(size for used, size, _ in found if now - used < keep)
    for used, size, home in found:
        is_old = now - used >= keep
        if not is_old and (total <= most_bytes or now - used < min(_LEAST_UNUSED, keep)):
            break
        try:
            if _remove_unused(home):
                removed, total = removed + 1, total - (0 if is_old else size)
        except (OSError, SubprocessError) as error:
            failures.append((home, error))
    return removed, failures


def _ready(home: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(read_regular(home / _READY, limit=_MOST_READY))
    return found


def _use_of(home: Path) -> tuple[float, int]:
    """The time of an environment's last use, and its size in bytes."""
    try:
        return (home / USE).stat().st_mtime, int(str(_ready(home)["bytes"]))
    except (OSError, UnusableFile, ValueError, KeyError, TypeError):
        return home.stat().st_mtime, 0


def _clear(home: Path) -> None:
    for each in list(os.scandir(home)):
        if each.is_dir(follow_symlinks=False):
            remove(Path(each.path))
        elif each.name not in (LOCK, USE):
            with suppress(FileNotFoundError):
                Path(each.path).unlink()


def _remove_unused(home: Path) -> bool:
    """Remove an environment unless a process builds or uses it; return whether there was one."""
    try:
        with _locked(home / LOCK), _locked(home / USE):
            was_there = (home / _READY).exists()
            _clear(home)
    except BlockingIOError:
        return False
    return was_there


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file; raises BlockingIOError while another process has it locked."""
    descriptor = open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
