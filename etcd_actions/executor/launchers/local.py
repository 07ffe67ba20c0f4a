"""Starts attempts on this machine: by the fork server with the SDK, the plain one, or exec."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.untrusted_files import UnusableFile, in_thread
from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import MARK, AttemptDirectory
from etcd_actions.executor.attempts.environment import helper_environment
from etcd_actions.executor.attempts.start_errors import NotStarted, not_started, of_os_error
from etcd_actions.executor.launchers.fork_server import ForkServer
from etcd_actions.executor.launchers.launcher import Look, State
from etcd_actions.executor.supervision import supervisor

# Seconds between two looks at the lock of an attempt.
_LOOK_EVERY: Final = 0.5
# Seconds from the start of a supervisor to its report.
_START_WITHIN: Final = 60.0
# Seconds after SIGKILL until a supervisor that is stopped or hangs is killed itself.
_KILLED_WITHIN: Final = 15.0
_FILES_WITHIN: Final = 60.0
_RUNNING: Final = Look(State.RUNNING)
_MOST_REPORT: Final = 1 << 20
_PROGRAM: Final = (
    "import sys; sys.path.append(sys.argv.pop(1)); import supervisor; supervisor.main()"
)
_DIRECTORY: Final = str(Path(supervisor.__file__).parent)

_log = structlog.get_logger(__name__)


class LocalLauncher:
    """Starts processes of this machine; each has a supervisor, which outlives this process.

    Args:
        nursery: Runs the tasks that read the supervisors' reports.
        kill_grace: Seconds between SIGTERM and SIGKILL.
        log_bytes: The most bytes of an attempt's log, while it grows and afterwards.
        fork_server: Starts the SDK's commands; None to execute them like others.
        plain_server: Starts other commands, faster than executing a supervisor for each.
        containment: Its boundaries.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        kill_grace: float,
        log_bytes: int = 10 * 1024 * 1024,
        fork_server: ForkServer | None = None,
        plain_server: ForkServer | None = None,
        containment: Containment | None = None,
    ) -> None:
        self._nursery = nursery
        self._kill_grace = kill_grace
        self._log_bytes = log_bytes
        self._fork_server = fork_server
        self._plain_server = plain_server
        self._containment = containment or Containment()
        self._reports: WeakKeyDictionary[AttemptDirectory, _Report] = WeakKeyDictionary()

    async def look(self, place: AttemptDirectory, *, within: float) -> Look:
        """See :meth:`Launcher.look`."""
        report = self._reports.get(place)
        with trio.move_on_after(within):
            if report is not None:
                await report.closed.wait()
            while (report is None or report.code is None) and place.is_alive:  # noqa: ASYNC110
                # Another executor's process sends no report.
                await trio.sleep(_LOOK_EVERY)
        code = None
        if report is not None:
            if not report.closed.is_set():
                return _RUNNING
            code = report.code
        if code is None:
            if place.is_alive:
                return _RUNNING
            try:
                code = place.exit_code
            except OSError:
                # There are too few descriptors now.
                return _RUNNING
        if code is None:
            # Its supervisor was killed, and with it the main process; others may live.
            await self._kill_left_behind(place)
        return Look(State.ENDED, code)

    async def stop(self, place: AttemptDirectory) -> None:
        """See :meth:`Launcher.stop`: a process that the kernel does not end is left after 30 s."""
        if await self._ended_within(place, self._kill_grace, signal.SIGTERM):
            return
        if await self._ended_within(place, _KILLED_WITHIN, signal.SIGKILL):
            return
        await self._kill_left_behind(place)
        if not await self._ended_within(place, _KILLED_WITHIN, None):
            _log.warning("attempt_not_ended", place=str(place.path))

    async def logs(self, place: AttemptDirectory) -> None:
        """None: the supervisor writes it."""

    async def _ended_within(
        self, place: AttemptDirectory, seconds: float, number: signal.Signals | None
    ) -> bool:
        with trio.move_on_after(seconds):
            while True:
                if number is not None:
                    place.kill(number)
                # The supervisor of a new attempt may not receive signals yet.
                if (await self.look(place, within=_LOOK_EVERY)).state is State.ENDED:
                    return True
        return False

    async def _kill_left_behind(self, place: AttemptDirectory) -> None:
        try:
            count = await in_thread(_FILES_WITHIN, "/proc", place.kill_left_behind)
        except UnusableFile as error:
            _log.warning("processes_not_searched", place=str(place.path), error=str(error))
            return
        if count:
            _log.warning("processes_left_behind", place=str(place.path), killed=count)

    async def start(self, place: AttemptDirectory, command: Command, lock: int) -> bool:
        """See :meth:`Launcher.start`; False if its supervisor, or the fork server, ended first."""
        request = {
            "arguments": command.arguments,
            "environment": command.environment | {MARK: place.mark},
            "directory": str(command.directory or place.path / supervisor.WORK),
            "own_directory": command.directory is None,
            "kill_grace": self._kill_grace,
            "log_bytes": self._log_bytes,
        }
        report = _Report()
        try:
            with place.open_directory() as directory, _file_of(request, place) as file:
                reader, writer = os.pipe()
                # The task closes the reader.
                self._nursery.start_soon(self._listen, report, reader, place)
                try:
                    hint = await self._hand_over(command, [directory, lock, writer, file])
                finally:
                    os.close(writer)
        except OSError as error:
            raise of_os_error("a process cannot be started", error, "process") from error
        with trio.move_on_after(_START_WITHIN):
            await report.decided.wait()
        if report.failure is not None:
            raise _failed(report.failure, request, place, hint)
        if report.started or place.was_started:
            self._reports[place] = report
            return True
        if not report.closed.is_set():
            await self._kill_left_behind(place)
            text = f"it did not start within {_START_WITHIN:g} s"
            raise not_started(command.arguments[0], None, text, "process")
        if hint:
            raise not_started("the supervisor", None, hint, "supervisor")
        return False

    async def _hand_over(self, command: Command, descriptors: list[int]) -> str:
        """Have a supervisor started; returns a hint for the message of a failure."""
        server = self._fork_server
        hint = ""
        # A path may name another program than the one that the server has imported.
        if server is not None and command.is_sdk and "/" not in command.arguments[0]:
            if await server.start(descriptors):
                return ""
            hint = server.trouble
        if self._plain_server is not None and await self._plain_server.start(descriptors):
            return hint
        launched: subprocess.CompletedProcess[bytes] = await trio.run_process(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, _DIRECTORY, *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            capture_stderr=True,
            pass_fds=descriptors,
            start_new_session=True,
            env=helper_environment(),
            cwd="/",
            check=False,
        )
        if launched.returncode:
            hint = launched.stderr.decode(errors="replace")[-1000:] or f"exit {launched.returncode}"
        return hint

    async def _listen(self, report: _Report, descriptor: int, place: AttemptDirectory) -> None:
        with self._containment.unit("attempt", str(place.path)):
            await report.listen(descriptor)


def _failed(
    failure: dict[str, Any], request: dict[str, Any], place: AttemptDirectory, hint: str
) -> NotStarted:
    where, number, text = str(failure.get("where")), failure.get("errno"), str(failure["failed"])
    subjects = {"program": request["arguments"][0], "directory": request["directory"]}
    return not_started(
        subjects.get(where, place.path),
        number if isinstance(number, int) else None,
        f"{text}; {hint}" if hint else text,
        where,
    )


class _Report:
    """The report of the supervisor of an attempt.

    Attributes:
        decided: Set once it was started, or failed, or its supervisor ended.
        closed: Set once its supervisor, and its entire tree, have ended.
        started: Whether it was started.
        failure: The report of a failed start.
        code: The exit code of its main process, if known.
    """

    def __init__(self) -> None:
        self.decided = trio.Event()
        self.closed = trio.Event()
        self.started = False
        self.failure: dict[str, Any] | None = None
        self.code: int | None = None

    async def listen(self, descriptor: int) -> None:
        """Read the report to its end."""
        os.set_blocking(descriptor, False)
        data = b""
        try:
            while True:
                try:
                    part = os.read(descriptor, 65536)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(descriptor)
                    continue
                if not part:
                    break
                data += part
                *lines, data = data.split(b"\n")
                for line in lines:
                    self._note(line)
                if len(data) > _MOST_REPORT:
                    data = b""
        finally:
            # If it was not read to its end, the lock shows when the attempt ends.
            os.close(descriptor)
            self.decided.set()
            self.closed.set()

    def _note(self, line: bytes) -> None:
        # A task runs as the same user, and can write to the pipe, too.
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(message, dict):
            return
        if "started" in message:
            self.started = True
        elif "failed" in message:
            self.failure = message
        elif isinstance(message.get("ended"), int) and self.code is None:
            self.code = message["ended"]
            return
        self.decided.set()


@contextmanager
def _file_of(request: dict[str, Any], place: AttemptDirectory) -> Iterator[int]:
    """A file with the request, without a name, so that no process can replace it."""
    data = json.dumps(request).encode()
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
        file = os.fdopen(descriptor, "w+b")
    else:
        file = tempfile.TemporaryFile(dir=place.path)  # noqa: SIM115 - closed below
    with file:
        file.write(data)
        file.flush()
        yield file.fileno()
