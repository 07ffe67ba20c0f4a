"""The directory of an attempt: its files, its lock, and its processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from etcd_actions._internal.call_time import boot_time
from etcd_actions._internal.untrusted_files import (
    UnusableFile,
    is_regular,
    open_regular,
    read_end,
    read_regular,
    replace_file,
)
from etcd_actions.executor.supervision import process_tree, supervisor
from etcd_actions.executor.supervision.bounded_log import LOG, LOG_BEFORE
from etcd_actions.executor.supervision.process_tree import Process
from etcd_actions.model import Incarnation

STARTED: Final = supervisor.STARTED
"""The file with the pid of the main process, written before that process runs its program."""
EXIT: Final = supervisor.EXIT
"""The file with the exit code of the main process, negative for a signal."""
LOCK: Final = "lock"
CLOCK: Final = "clock"
"""The file with the attempt's start, in seconds since the machine's start, and the boot id."""
MARK: Final = "_ATTEMPT_MARK"
"""The variable in the environment of an attempt's processes: see :attr:`AttemptDirectory.mark`."""

_OBJECT: Final = "object"
# Bytes of the key, and characters of the uid, that are written for operators.
_MOST_SHOWN: Final = 1024
# Bytes of a log's line about missing bytes.
_HEADER: Final = 64
# Bytes of the file that names the object.
_MOST_NOTE: Final = 64 * 1024
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# Names of objects' directories: the present form, and the uid of an earlier version.
_PRESENT: Final = re.compile(r"-[0-9a-f]{40}$")
_BEFORE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
# This process lacks descriptors or memory: that is not an error of the file.
_LACKING: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = structlog.get_logger(__name__)


def lacks_resources(error: OSError) -> bool:
    """Whether a file could not be read for lack of descriptors or memory, so a retry may help."""
    return error.errno in _LACKING


class AttemptDirectory:
    """The directory of one attempt of one incarnation of an action.

    The attempt's supervisor keeps a file in it locked for as long as it lives, by an inherited
    descriptor. So each later executor can detect whether the attempt lives. A task runs as the
    same user, so no file is trusted: each is opened without following links, and only if regular.

    Attributes:
        path: The directory.
        incarnation: The object of the attempt; None if only the directory is known.
        is_inferred: Whether only the uid identifies the object: an earlier version of this package
            started the attempt.
        reported_exit: The exit code that the launcher reported; the file is not read then.
        ended_because: Why it ended without an exit code, in the launcher's words.
    """

    def __init__(self, state_dir: Path, incarnation: Incarnation, attempt: int) -> None:
        self.path = state_dir / "attempts" / incarnation.path_component / str(attempt)
        self.incarnation: Incarnation | None = incarnation
        self.is_inferred = False
        self.reported_exit: int | None = None
        self.ended_because = ""

    @classmethod
    def at(
        cls, path: Path, incarnation: Incarnation | None = None, *, is_inferred: bool = False
    ) -> AttemptDirectory:
        """The attempt of a path."""
        place = cls.__new__(cls)
        place.path, place.reported_exit, place.ended_because = path, None, ""
        place.incarnation, place.is_inferred = incarnation, is_inferred
        return place

    @property
    def state_dir(self) -> Path:
        """The executor's directory."""
        return self.path.parents[2]

    @property
    def name(self) -> str:
        """The attempt's path below ``attempts``: the object's directory, a slash, the number."""
        return "/".join(self.path.parts[-2:])

    @property
    def mark(self) -> str:
        """A text in the environment of the attempt's processes, by which they are found."""
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:32]

    def note_object(self) -> bool:
        """Store the attempt's object unless one is stored; return whether that one is the same.

        Raises:
            OSError: The file cannot be written or read.
        """
        incarnation = self.incarnation
        assert incarnation is not None
        owner = incarnation.path_component
        note = {
            "object": owner,
            # Operators read the rest; the program does not.
            "key": incarnation.key[:_MOST_SHOWN].decode(errors="backslashreplace"),
            "create_revision": incarnation.create_revision,
            "uid": incarnation.uid[:_MOST_SHOWN],
        }
        with self.open_directory() as directory:
            for _ in range(2):
                try:
                    found = json.loads(read_regular(_OBJECT, limit=_MOST_NOTE, dir_fd=directory))
                except FileNotFoundError:
                    _write_new(_OBJECT, json.dumps(note).encode(), directory)
                except (UnusableFile, ValueError, RecursionError):
                    return False
                else:
                    return isinstance(found, dict) and found.get("object") == owner
        return False

    def make(self) -> None:
        """Create the directory, for this user only."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def open_directory(self) -> Iterator[int]:
        """A descriptor of the directory, for as long as the context lasts.

        Raises:
            OSError: The directory does not exist, or its path names something else.
        """
        opened = os.open(self.state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in self.path.parts[-3:]:
                below = os.open(name, _DIRECTORY, dir_fd=opened)
                os.close(opened)
                opened = below
            yield opened
        finally:
            os.close(opened)

    def try_lock(self) -> int | None:
        """Lock the attempt: a descriptor, to be closed; None while its supervisor lives.

        Raises:
            UnusableFile: The lock is not a regular file.
            OSError: The lock cannot be opened.
        """
        with self.open_directory() as directory:
            with suppress(FileExistsError):
                os.close(os.open(LOCK, os.O_RDWR | os.O_EXCL | _CREATE, 0o600, dir_fd=directory))
            descriptor = open_regular(LOCK, os.O_RDWR, dir_fd=directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return descriptor

    def check_files(self) -> None:
        """Check that the names of the attempt's files are free, or of regular files.

        Raises:
            UnusableFile: One is not; the message names it.
            OSError: One cannot be checked.
        """
        with self.open_directory() as directory:
            for name in (LOG, EXIT, supervisor.SUPERVISOR):
                try:
                    is_regular(name, dir_fd=directory)
                except UnusableFile as error:
                    raise UnusableFile(f"{self.path}/{error}") from None

    @property
    def is_alive(self) -> bool:
        """Whether its supervisor lives, by the lock; True if the lock cannot be opened now."""
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
        """The pid of the main process, by its file; None before its start.

        Send no signal to it: a task may have changed the file.
        """
        try:
            return self._number(STARTED)
        except OSError:
            return None

    @property
    def was_started(self) -> bool:
        """Whether the main process was started.

        Raises:
            OSError: There are too few descriptors, or too little memory, to read that now.
        """
        try:
            with self.open_directory() as directory:
                return is_regular(STARTED, dir_fd=directory)
        except UnusableFile:
            # A task replaced the file.
            return True
        except OSError as error:
            if lacks_resources(error):
                raise
            return False

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None if no supervisor wrote one.

        Raises:
            OSError: There are too few descriptors, or too little memory, to read that now.
        """
        return self._number(EXIT) if self.reported_exit is None else self.reported_exit

    def note_started(self) -> None:
        """Store that it was started, unless its supervisor did that.

        A failure is logged: a later executor calls the launcher again, which starts nothing twice.
        """
        try:
            if not self.was_started:
                replace_file(self.path / STARTED, b"")
        except OSError as error:
            _log.debug("start_not_noted", directory=str(self.path), error=str(error))

    def note_end(self, code: int | None, reason: str) -> None:
        """Note how it ended; the exit code is stored, too, unless its supervisor did that.

        A failure is logged: a later executor reads the end from the launcher again.
        """
        self.reported_exit, self.ended_because = code, reason
        try:
            if code is not None and not (self.path / EXIT).exists():
                replace_file(self.path / EXIT, str(code).encode())
        except OSError as error:
            _log.debug("end_not_noted", directory=str(self.path), error=str(error))

    def write_log(self, data: bytes, most: int) -> None:
        """Replace the log by the last ``most`` bytes of ``data``.

        Raises:
            OSError: It cannot be written.
        """
        omitted = len(data) - (most - _HEADER)
        if omitted > 0:
            data = b"(%d bytes are omitted here)\n" % omitted + data[omitted:]
        replace_file(self.path / LOG, data)

    def running_for(self) -> float | None:
        """Seconds since the start of the attempt, also by an earlier executor; None before it.

        Without the file of :meth:`note_start` the wall clock decides.
        """
        if (started := self._noted_start()) is not None:
            return max(0.0, boot_time() - started)
        try:
            return max(0.0, time.time() - (self.path / STARTED).lstat().st_mtime)
        except OSError:
            return None

    def note_start(self, seconds: float) -> None:
        """Store that the attempt started so many seconds ago, unless a start is stored.

        A failure is logged: then the wall clock measures the attempt.
        """
        if self._noted_start() is not None:
            return
        text = f"{boot_time() - seconds:.3f} {_boot_id()}\n"
        try:
            replace_file(self.path / CLOCK, text.encode())
        except OSError as error:
            _log.debug("beginning_not_noted", directory=str(self.path), error=str(error))

    def last_lines(self, most: int = 20) -> str:
        """The last lines of the log, for an error without a message of its own."""
        end = b""
        for name in (LOG, LOG_BEFORE):
            if len(end) < 4096:
                with suppress(OSError, UnusableFile), self.open_directory() as directory:
                    end = read_end(name, 4096 - len(end), dir_fd=directory) + end
        return "\n".join(end.decode(errors="replace").splitlines()[-most:])

    def supervisor(self) -> int | None:
        """The pid of the process that has the supervisor's lock, by the kernel; None if free."""
        try:
            with self.open_directory() as directory:
                descriptor = open_regular(supervisor.SUPERVISOR, os.O_RDWR, dir_fd=directory)
        except (OSError, UnusableFile):
            return None
        try:
            return process_tree.lock_owner(descriptor)
        finally:
            os.close(descriptor)

    def kill(self, number: signal.Signals) -> None:
        """Have the supervisor end its process tree: after the grace for SIGTERM, else at once."""
        self._signal_supervisor(
            signal.SIGQUIT if number is signal.SIGKILL else number, signal.SIGCONT
        )

    def kill_left_behind(self) -> int:
        """Kill the supervisor, and the processes whose environment has the mark.

        Returns:
            How many had it.
        """
        self._signal_supervisor(signal.SIGKILL)
        count = 0
        for _ in range(20):
            found = list(_marked(self.mark))
            if not found:
                break
            count = max(count, len(found))
            for process in found:
                process_tree.send(process, signal.SIGKILL)
        return count

    def _signal_supervisor(self, *numbers: signal.Signals) -> None:
        pid = self.supervisor()
        seen = None if pid is None else process_tree.look_at(str(pid))
        # If the number was reused between the two reads, it is not a supervisor's.
        if pid is None or pid != self.supervisor():
            return
        for number in numbers:
            if seen is not None:
                process_tree.send(Process(pid, seen[1]), number)
            else:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)

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

    def _noted_start(self) -> float | None:
        with suppress(OSError, ValueError, UnusableFile):
            data = read_regular(self.path / CLOCK, limit=200)
            started, _, boot = data.decode().partition(" ")
            if boot.strip() == _boot_id() and math.isfinite(float(started)):
                return min(float(started), boot_time())
        return None


def directory_of(state_dir: Path, incarnation: Incarnation, attempt: int) -> AttemptDirectory:
    """The directory of an attempt, which need not exist.

    An earlier version named directories by the uid alone. An attempt that it started stays in that
    directory, and is not started again. A uid does not identify an object: the first object that
    is read gets the attempt, for good.

    Args:
        state_dir: The executor's directory.
        incarnation: The attempt's object.
        attempt: The number of the attempt, from 1 on.

    Raises:
        OSError: There are too few descriptors, or too little memory, to read that now.
    """
    place = AttemptDirectory(state_dir, incarnation, attempt)
    path = state_dir / "attempts" / _name_before(incarnation.uid) / str(attempt)
    try:
        path.lstat()
    except OSError as error:
        if lacks_resources(error):
            raise
        return place
    before = AttemptDirectory.at(path, incarnation, is_inferred=True)
    if place.was_started or not (before.was_started or before.is_alive):
        return place
    if not before.note_object():
        _log.warning(
            "attempt_of_another_object", directory=str(path), object=place.path.parent.name
        )
        return place
    return before


def started_attempts(state_dir: Path, attempts: Mapping[str, tuple[Incarnation, int]]) -> set[str]:
    """The names of the attempts, each an object and a number, that were started here.

    Raises:
        OSError: There are too few descriptors, or too little memory, to read that now.
    """
    return {
        name
        for name, (incarnation, number) in attempts.items()
        if directory_of(state_dir, incarnation, number).was_started
    }


def directory_names(incarnation: Incarnation) -> set[str]:
    """The names of the directories that may have attempts of an object."""
    return {incarnation.path_component, _name_before(incarnation.uid)}


def _name_before(uid: str) -> str:
    """The name that an earlier version gave the directory of an object."""
    # A uid may be the present name of another object's directory.
    if _BEFORE.fullmatch(uid) and not _PRESENT.search(uid):
        return uid
    return "." + hashlib.sha256(uid.encode(errors="surrogatepass")).hexdigest()


def _boot_id() -> str:
    with suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return "unknown"


def _write_new(name: str, data: bytes, directory: int) -> None:
    """Write a file in one step, unless it exists."""
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
    variable = f"{MARK}={mark}".encode()
    for name in process_tree.numbers():
        if int(name) == os.getpid():
            continue
        seen = process_tree.look_at(name)
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        if seen is not None and variable in environment.split(b"\0"):
            yield Process(int(name), seen[1])
