"""Paths on this machine: inputs, outputs, and what is kept of an attempt."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from etcd_actions._internal.untrusted_files import (
    UnusableFile,
    is_regular,
    local_path,
    open_regular,
    read_end,
    read_regular,
)
from etcd_actions.executor.attempts.attempt_clock import running_for
from etcd_actions.executor.supervision import process_tree, supervisor
from etcd_actions.executor.supervision.bounded_log import LOG, LOG_BEFORE
from etcd_actions.executor.supervision.process_tree import Process
from etcd_actions.model import Incarnation

__all__ = ["EXIT", "LOCK", "LOG", "MARK", "STARTED", "AttemptDirectory", "local_path"]

STARTED: Final = supervisor.STARTED
"""Written before the main process of an attempt begins: its number."""
EXIT: Final = supervisor.EXIT
"""Written when the main process has ended: its exit code, negative for a signal."""
LOCK: Final = "lock"
OBJECT: Final = "object"
"""Says whose attempt it is."""

_MOST_SHOWN: Final = 1024
_MOST_NOTE: Final = 64 * 1024
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# struct flock of 64-bit systems, and where the number of the process is in it.
_FLOCK: Final = ("hhqqi0q", 4) if sys.platform.startswith("linux") else ("qqihh0q", 2)


# Of this process, for a while: they say nothing about the file.
_LACKING: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def lacks_resources(error: OSError) -> bool:
    """Whether a file was not looked at for want of descriptors or memory: later it can be."""
    return error.errno in _LACKING


class AttemptDirectory:
    """The directory of one attempt of one incarnation of an action.

    Its supervisor holds a lock on a file in it for as long as it lives, through a descriptor
    that it inherited: so whoever comes later learns whether it lives, also when the executor
    that started it was killed. A task runs as the same user, so nothing in the directory is
    trusted to be what it was: it is opened without following links, and only when regular.

    Attributes:
        path: The directory.
        incarnation: Whose attempt it is; None where only the directory is known.
        is_inferred: Whether only the uid says whose it is: the version before started it.
        reported_exit: How the main process ended, where its supervisor told us; the file is
            not asked then.
    """

    def __init__(self, state_dir: Path, incarnation: Incarnation, attempt: int) -> None:
        self.path = state_dir / "attempts" / incarnation.path_component / str(attempt)
        self.incarnation: Incarnation | None = incarnation
        self.is_inferred = False
        self.reported_exit: int | None = None

    @classmethod
    def at(
        cls, path: Path, incarnation: Incarnation | None = None, *, is_inferred: bool = False
    ) -> AttemptDirectory:
        """The attempt that has a directory."""
        place = cls.__new__(cls)
        place.path, place.reported_exit = path, None
        place.incarnation, place.is_inferred = incarnation, is_inferred
        return place

    @property
    def state_dir(self) -> Path:
        """The executor's directory."""
        return self.path.parents[2]

    @property
    def name(self) -> str:
        """What tells it from all others of the state directory."""
        return "/".join(self.path.parts[-2:])

    def note_object(self) -> bool:
        """Write down whose attempt it is, once; whether it is ours.

        Raises:
            OSError: It cannot be written, or read.
        """
        incarnation = self.incarnation
        assert incarnation is not None
        owner = incarnation.path_component
        note = {
            "object": owner,
            # For people.
            "key": incarnation.key[:_MOST_SHOWN].decode(errors="backslashreplace"),
            "create_revision": incarnation.create_revision,
            "uid": incarnation.uid[:_MOST_SHOWN],
        }
        data = json.dumps(note).encode()
        with self.open_directory() as directory:
            for _ in range(2):
                try:
                    found = json.loads(read_regular(OBJECT, limit=_MOST_NOTE, dir_fd=directory))
                except FileNotFoundError:
                    _write_new(OBJECT, data, directory)
                except (UnusableFile, ValueError, RecursionError):
                    return False
                else:
                    return isinstance(found, dict) and found.get("object") == owner
        return False

    @property
    def mark(self) -> str:
        """A text in the environment of its processes, by which they are found."""
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:32]

    def make(self) -> None:
        """Create the directory, for this user only."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def open_directory(self) -> Iterator[int]:
        """A descriptor of the directory, for as long as the context lasts.

        Raises:
            OSError: There is none, or something else has its name.
        """
        names = self.path.parts[-3:]
        opened = os.open(self.path.parents[2], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                below = os.open(name, _DIRECTORY, dir_fd=opened)
                os.close(opened)
                opened = below
            yield opened
        finally:
            os.close(opened)

    def try_lock(self) -> int | None:
        """Lock it: a descriptor, to be closed; None while its supervisor lives.

        Raises:
            UnusableFile: The lock is no regular file.
            OSError: It cannot be opened.
        """
        with self.open_directory() as directory:
            with suppress(FileExistsError):
                os.close(os.open(LOCK, os.O_RDWR | os.O_EXCL | _CREATE, 0o600, dir_fd=directory))
            descriptor = open_regular(LOCK, os.O_RDWR, dir_fd=directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def check_files(self) -> None:
        """See to it that nothing else has the names of its files.

        Raises:
            UnusableFile: Something has; the message says what.
            OSError: It cannot be looked at.
        """
        with self.open_directory() as directory:
            for name in (LOG, EXIT, supervisor.SUPERVISOR):
                try:
                    is_regular(name, dir_fd=directory)
                except UnusableFile as error:
                    raise UnusableFile(f"{self.path}/{error}") from None

    @property
    def is_alive(self) -> bool:
        """Whether its supervisor lives, as far as the lock tells; True where it cannot be asked."""
        try:
            descriptor = self.try_lock()
        except UnusableFile:
            return False
        except OSError as error:
            return lacks_resources(error)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    @property
    def pid(self) -> int | None:
        """The number of its main process; None before it began. Not to be signalled by."""
        try:
            return self._number(STARTED)
        except OSError:
            return None

    @property
    def was_started(self) -> bool:
        """Whether its main process began to run.

        Raises:
            OSError: This cannot be told now, for want of descriptors or memory.
        """
        return self._is_there(STARTED)

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None where nobody saw it.

        Raises:
            OSError: This cannot be told now, for want of descriptors or memory.
        """
        if self.reported_exit is not None:
            return self.reported_exit
        return self._number(EXIT)

    def running_for(self) -> float | None:
        """Seconds since the attempt began, across restarts of ours; None where it did not."""
        return running_for(self.path, self.path / STARTED)

    def last_lines(self, most: int = 20) -> str:
        """The end of its log, for an error that says nothing else."""
        end = b""
        for name in (LOG, LOG_BEFORE):
            if len(end) < 4096:
                end = self._tail(name, 4096 - len(end)) + end
        return "\n".join(end.decode(errors="replace").splitlines()[-most:])

    def supervisor(self) -> int | None:
        """The number of the process that the kernel says is the supervisor; None without one."""
        try:
            with self.open_directory() as directory:
                descriptor = open_regular(supervisor.SUPERVISOR, os.O_RDWR, dir_fd=directory)
        except (OSError, UnusableFile):
            return None
        layout, index = _FLOCK
        asked: list[int] = [0, 0, 0, 0, 0]
        asked[0 if index == 4 else 3] = fcntl.F_WRLCK
        try:
            found = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *asked))
        except OSError:
            return None
        finally:
            os.close(descriptor)
        fields = struct.unpack(layout, found)
        kind = fields[0 if index == 4 else 3]
        pid: int = fields[index]
        return pid if kind != fcntl.F_UNLCK and pid > 0 else None

    def kill(self, number: signal.Signals) -> None:
        """Have the attempt end: SIGTERM asks its whole tree to end, SIGKILL kills all of it."""
        pid = self.supervisor()
        seen = None if pid is None else process_tree.look_at(str(pid))
        # A number that was used anew between these two is no supervisor's.
        if pid is None or pid != self.supervisor():
            return
        asked = signal.SIGQUIT if number is signal.SIGKILL else number
        for each in (asked, signal.SIGCONT):
            if seen is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, each)
            else:
                process_tree.send(Process(pid, seen[1]), each)

    def kill_left_behind(self) -> int:
        """Kill its supervisor, and what is left of a tree whose supervisor is gone.

        Such processes are found by their environment, so one that emptied it is not. Returns
        how many were found.
        """
        pid = self.supervisor()
        seen = None if pid is None else process_tree.look_at(str(pid))
        if pid is not None and seen is not None and pid == self.supervisor():
            process_tree.send(Process(pid, seen[1]), signal.SIGKILL)
        count = 0
        for _ in range(20):
            found = list(_marked(self.mark))
            if not found:
                break
            count = max(count, len(found))
            for process in found:
                process_tree.send(process, signal.SIGKILL)
        return count

    def _tail(self, name: str, most: int) -> bytes:
        with suppress(OSError, UnusableFile), self.open_directory() as directory:
            return read_end(name, most, dir_fd=directory)
        return b""

    def _number(self, name: str) -> int | None:
        try:
            with self.open_directory() as directory:
                return int(read_regular(name, limit=64, dir_fd=directory))
        except (UnusableFile, ValueError):
            return None
        except OSError as error:
            if lacks_resources(error):
                raise
            return None

    def _is_there(self, name: str) -> bool:
        try:
            with self.open_directory() as directory:
                return is_regular(name, dir_fd=directory)
        except UnusableFile:
            # Somebody put something else in its place.
            return True
        except OSError as error:
            if lacks_resources(error):
                raise
            return False


def _write_new(name: str, data: bytes, directory: int) -> None:
    """Write a file whole, unless there is one."""
    new = f"{name}.{secrets.token_hex(4)}"
    descriptor = os.open(new, os.O_WRONLY | os.O_EXCL | _CREATE, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        try:
            os.link(new, name, src_dir_fd=directory, dst_dir_fd=directory)
        except FileExistsError:
            return
        except OSError:
            # Not every file system has links.
            os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=directory)


def _marked(mark: str) -> Iterator[Process]:
    """The processes whose environment has a mark."""
    wanted = f"{MARK}={mark}".encode()
    for name in process_tree.numbers():
        if int(name) == os.getpid():
            continue
        seen = process_tree.look_at(name)
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        if seen is not None and wanted in environment.split(b"\0"):
            yield Process(int(name), seen[1])


MARK: Final = "_ATTEMPT_MARK"
"""In the environment of an attempt's processes: see :attr:`AttemptDirectory.mark`."""
