"""Which attempt has a directory of outputs: one at a time, and what is in it is that one's.

Where outputs are is in the action's object, so two objects may name one directory: a copy of a run,
an action that was deleted and made again. What an attempt left is its outcome; what another left
there is not. So an attempt takes the directory before it is started, in a file of the state
directory. It is refused while another that has it lives, and clears it afterwards. Who reads an
outcome looks whose the directory is behind that: another that has it by then had taken it before it
touched anything.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from etcd_actions._internal.untrusted_files import UnusableFile, read_regular
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory

OUTPUTS: Final = "outputs"
"""The directory of the state directory that says who has which."""

_MOST: Final = 64 * 1024


class _Taken(msgspec.Struct, frozen=True):
    """What is written down."""

    attempt: str
    """Directory and number of the attempt."""
    outputs: str
    """For people."""


def take(place: AttemptDirectory, outputs: Path) -> AttemptDirectory | None:
    """Take a directory for an attempt whose lock the caller has.

    Returns:
        None; or the attempt that has it and lives, and nothing was done.

    Raises:
        OSError: It cannot be written down.
    """
    # It may hang in a file system: not while others wait.
    file = _file(place, outputs)
    with _locked(file.parent):
        holder = _holder(place, file)
        if holder is not None and (holder.is_alive or holder.supervisor() is not None):
            return holder
        text = str(outputs).encode(errors="backslashreplace").decode()[:4096]
        new = file.with_name(f".{secrets.token_hex(8)}.new")
        try:
            new.write_bytes(msgspec.json.encode(_Taken(place.name, text)))
            new.replace(file)
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise
    return None


def taken_by(place: AttemptDirectory, outputs: Path) -> AttemptDirectory | None:
    """The attempt that took a directory after this one; None where nobody did.

    Raises:
        OSError: This cannot be told now.
    """
    return _holder(place, _file(place, outputs))


def sweep_outputs(state_dir: Path, before: float) -> None:
    """Forget who took what, of attempts whose directories are gone.

    Args:
        state_dir: The executor's directory.
        before: What was taken since this time, in seconds of the wall clock, stays.
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


def _file(place: AttemptDirectory, outputs: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(outputs))).hexdigest()
    return place.state_dir / OUTPUTS / name


def _holder(place: AttemptDirectory, file: Path) -> AttemptDirectory | None:
    """Who else has it."""
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
    """Nobody else takes anything meanwhile."""
    directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
