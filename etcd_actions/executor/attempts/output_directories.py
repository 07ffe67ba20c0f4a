"""The owner of a directory of outputs: one attempt at a time.

Two objects may name one directory, for example an action and its next incarnation. So an attempt
takes the directory before its start, by a file in the state directory. It is refused while another
attempt that has the directory lives. A reader of an outcome checks afterwards that no other attempt
took the directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from etcd_actions._internal.untrusted_files import UnusableFile, read_regular, replace_file
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.output_files import Outputs

OUTPUTS: Final = "outputs"
"""The directory of the state directory with a file for each directory of outputs."""

# Bytes of the file that names the attempt.
_MOST: Final = 64 * 1024


class _Taken(msgspec.Struct, frozen=True):
    attempt: str
    outputs: str
    """The directory of outputs. Operators read it; the program does not."""


def take(place: AttemptDirectory, outputs: Outputs) -> AttemptDirectory | None:
    """Take a directory for an attempt whose lock the caller has.

    Returns:
        The attempt that has the directory and lives, so that nothing was done; else None.

    Raises:
        OSError: The file cannot be written.
    """
    # Before the lock: the path may hang in a file system.
    file = _file(place, outputs)
    with _locked(file.parent):
        holder = _holder(place, file)
        if holder is not None and (holder.is_alive or holder.supervisor() is not None):
            return holder
        text = str(outputs).encode(errors="backslashreplace").decode()[:4096]
        replace_file(file, msgspec.json.encode(_Taken(place.name, text)))
    return None


def taken_by(place: AttemptDirectory, outputs: Outputs) -> AttemptDirectory | None:
    """The attempt that took a directory after this one, if there is one.

    Raises:
        OSError: The file cannot be read now.
    """
    return _holder(place, _file(place, outputs))


def sweep_outputs(state_dir: Path, before: float) -> None:
    """Remove the files of attempts whose directories were removed.

    Args:
        state_dir: The executor's directory.
        before: Seconds of the wall clock; later files stay.
    """
    directory = state_dir / OUTPUTS
    with suppress(FileNotFoundError), _locked(directory):
        for file in directory.iterdir():
            with suppress(OSError):
                if file.lstat().st_mtime > min(before, time.time()):
                    continue
                taken = _read(file)
                if taken is None or not (state_dir / "attempts" / taken.attempt).is_dir():
                    file.unlink()


def _file(place: AttemptDirectory, outputs: Outputs) -> Path:
    path = os.path.realpath(outputs) if isinstance(outputs, Path) else outputs
    name = hashlib.sha256(os.fsencode(path)).hexdigest()
    return place.state_dir / OUTPUTS / name


def _holder(place: AttemptDirectory, file: Path) -> AttemptDirectory | None:
    """The other attempt that has the directory."""
    taken = _read(file)
    if taken is None or taken.attempt == place.name:
        return None
    parts = taken.attempt.split("/")
    if len(parts) != 2 or any(part in ("", ".", "..") for part in parts):
        return None
    return AttemptDirectory.at(place.state_dir / "attempts" / taken.attempt)


def _read(file: Path) -> _Taken | None:
    try:
        return msgspec.json.decode(read_regular(file, limit=_MOST), type=_Taken)
    except (FileNotFoundError, UnusableFile, msgspec.MsgspecError, UnicodeDecodeError):
        return None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
