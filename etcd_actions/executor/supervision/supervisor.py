"""The supervisor of an attempt: starts its main process, keeps its log, and ends its tree.

Each attempt has one such process, which outlives the executor. So it keeps the attempt's lock, and
stores the exit code of the main process. It is a child subreaper: the kernel makes it the parent of
each process that the main process leaves behind, whatever its session and group. The attempt ends
with its main process: the other processes get SIGTERM then, and SIGKILL after the grace.

It is run by ``python -I -S``, or in a fork of the fork server, by an interpreter that may have no
etcd_actions. So it imports modules of its own directory, and of the standard library.

It reports on a pipe, a JSON object a line:
``{"started": PID}`` or ``{"failed": MESSAGE, "errno": NUMBER, "where": STEP}``, then
``{"ended": CODE}``.

SIGTERM makes it end the tree, SIGQUIT without grace.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

if __package__:
    from etcd_actions.executor.supervision.bounded_log import BoundedLog
    from etcd_actions.executor.supervision.process_tree import (
        Process,
        descendants,
        end_orphans,
        send,
    )
else:
    # It is run as a file.
    from bounded_log import BoundedLog  # type: ignore[import-not-found,no-redef]
    from process_tree import Process, descendants, end_orphans, send  # type: ignore[import-not-found,no-redef]

__all__ = ["become_subreaper", "end_orphans", "main", "report_failure", "supervise"]

STARTED = "started"
EXIT = "exit"
SUPERVISOR = "supervisor"
WORK = "work"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Seconds after SIGKILL until a process that does not end is left.
_LEAVE_AFTER = 10.0
_CREATE = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PIPE_BYTES = 65536


def supervise(
    directory: int,
    lock: int,
    report: int,
    request: int,
    run: Callable[[dict[str, Any]], int] | None = None,
) -> NoReturn:
    """Supervise an attempt in this process; does not return.

    Args:
        directory: A descriptor of the attempt's directory.
        lock: A descriptor with the attempt's lock.
        report: The pipe of its reports.
        request: A descriptor of a file with the command.
        run: Called in the main process instead of executing a program; returns the exit code.
    """
    failure: dict[str, Any] | None = None
    try:
        for each in (directory, lock, report, request):
            os.set_inheritable(each, False)
        failure = _Supervisor(directory, report, request, run).work(lock)
    except BaseException as error:
        failure = _failure(error, "supervisor")
    # Before the report, so that the lock is free for a retry.
    with contextlib.suppress(OSError):
        os.close(lock)
    if failure is not None:
        _send(report, failure)
    os._exit(0)


class _Supervisor:
    def __init__(
        self,
        directory: int,
        report: int,
        request: int,
        run: Callable[[dict[str, Any]], int] | None,
    ) -> None:
        self._directory = directory
        self._report = report
        self._run = run
        with os.fdopen(request, "rb") as file:
            file.seek(0)
            self._request: dict[str, Any] = json.loads(file.read())
        self._signalled: set[int] = set()

    def work(self, lock: int) -> dict[str, Any] | None:
        """Supervise to the end; returns the failure of the start."""
        os.setsid()
        become_subreaper()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        # The kernel reports the process with this lock, so signals reach this one only.
        own = os.open(SUPERVISOR, os.O_RDWR | _CREATE, 0o600, dir_fd=self._directory)
        with contextlib.suppress(OSError):
            fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        log = BoundedLog(self._directory, self._request["log_bytes"])
        # Reserve space on the disk for the exit code.
        _write_file(self._directory, EXIT + ".new", b"\n" * 16)
        output, output_end = os.pipe()
        status, status_end = os.pipe()
        go, go_end = os.pipe()
        wake = self._catch_signals()
        number = os.fork()
        if number == 0:
            for each in (lock, own, self._report, output, status, go_end, *wake):
                os.close(each)
            self._become(output_end, status_end, go)
        for each in (output_end, status_end, go):
            os.close(each)
        failure = self._start(number, status, go_end)
        os.close(status)
        if failure is not None:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            with contextlib.suppress(OSError):
                os.unlink(STARTED, dir_fd=self._directory)
            return failure
        _send(self._report, {"started": number})
        try:
            self._follow(number, output, wake[0], log)
        finally:
            log.finish()
        return None

    def _catch_signals(self) -> tuple[int, int]:
        wake = os.pipe()
        for each in wake:
            os.set_blocking(each, False)

        def note(number: int, _frame: object) -> None:
            self._signalled.add(number)

        signal.set_wakeup_fd(wake[1], warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        return wake

    def _start(self, number: int, status: int, go: int) -> dict[str, Any] | None:
        """Store that the main process starts, then let it start; returns the failure."""
        try:
            message = _until(status, b"\n")
            if message != b"ready\n":
                return _failure_in(message + _until(status, b""))
            _write_file(self._directory, STARTED + ".new", str(number).encode())
            self._rename(STARTED)
            os.write(go, b"!")
        except OSError as error:
            return _failure(error, "state")
        finally:
            os.close(go)
        # The main process closes this when it starts: by itself, or by its execution.
        message = _until(status, b"")
        return _failure_in(message) if message else None

    def _follow(self, main: int, output: int, wake: int, log: BoundedLog) -> None:
        """Keep the log until the entire tree has ended."""
        os.set_blocking(output, False)
        poll = select.poll()
        poll.register(output, select.POLLIN)
        poll.register(wake, select.POLLIN)
        termination: _Termination | None = None
        main_lives = True
        while True:
            ready = [each for each, _ in poll.poll(None if termination is None else 50)]
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            if output in ready and not log.take(output):
                poll.unregister(output)
            for number, status in _reaped():
                if number == main:
                    main_lives = False
                    code = os.waitstatus_to_exitcode(status)
                    self._write_exit(code, log)
                    _send(self._report, {"ended": code})
            requested = self._signalled & {signal.SIGTERM, signal.SIGQUIT}
            if termination is None and (requested or not main_lives):
                if not main_lives and not _has_children(main):
                    break
                termination = _Termination(main, self._request["kill_grace"])
            if termination is not None:
                if signal.SIGQUIT in requested:
                    termination.at_once()
                if not termination.proceed():
                    break
        # The rest of the pipe, bounded: a process that was left may still write.
        for _ in range(16):
            if not select.select([output], [], [], 0)[0] or not log.take(output):
                break

    def _write_exit(self, code: int, log: BoundedLog) -> None:
        """Store the exit code of the main process."""
        data = str(code).encode()
        for fresh in (False, True):
            try:
                _write_file(self._directory, EXIT + ".new", data, truncate=fresh)
                self._rename(EXIT)
            except OSError:
                # On a full disk the exit code matters more.
                log.discard()
            else:
                return

    def _rename(self, name: str) -> None:
        directory = self._directory
        os.rename(name + ".new", name, src_dir_fd=directory, dst_dir_fd=directory)

    def _become(self, output: int, status: int, go: int) -> NoReturn:
        """Become the main process; does not return."""
        where = "process"
        try:
            parent = os.getppid()
            os.setsid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            signal.set_wakeup_fd(-1)
            for number in (
                signal.SIGCHLD,
                signal.SIGTERM,
                signal.SIGQUIT,
                signal.SIGHUP,
                signal.SIGUSR1,
            ):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            where = "directory"
            if self._request["own_directory"]:
                self._enter_own_directory()
            else:
                os.chdir(self._request["directory"])
            os.close(self._directory)
            os.write(status, b"ready\n")
            if os.read(go, 1) != b"!":
                os._exit(1)
            os.close(go)
            where = "program"
            if self._run is None:
                for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
                    signal.signal(number, signal.SIG_DFL)
                arguments = self._request["arguments"]
                os.execvpe(arguments[0], arguments, self._request["environment"])
            os.close(status)
        except BaseException as error:
            os.write(status, json.dumps(_failure(error, where)).encode())
            os._exit(127)
        os._exit(self._run(self._request))

    def _enter_own_directory(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(WORK, 0o700, dir_fd=self._directory)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        work = os.open(WORK, flags, dir_fd=self._directory)
        os.fchdir(work)
        os.close(work)


class _Termination:
    """Ends a tree: SIGTERM once for each process, after the grace SIGKILL."""

    def __init__(self, main: int, grace: float) -> None:
        self._main = main
        self._kill_from = time.monotonic() + grace
        self._signalled: set[Process] = set()

    def at_once(self) -> None:
        self._kill_from = min(self._kill_from, time.monotonic())

    def proceed(self) -> bool:
        """Signal the tree; False if it has ended, or cannot be ended."""
        if not _has_children(self._main):
            return False
        now = time.monotonic()
        if now > self._kill_from + _LEAVE_AFTER:
            return False
        kill = now >= self._kill_from
        for process in descendants(os.getpid()):
            if kill:
                send(process, signal.SIGKILL)
            elif process not in self._signalled:
                self._signalled.add(process)
                send(process, signal.SIGTERM)
                # A stopped process receives no other signal.
                send(process, signal.SIGCONT)
        if not sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                os.killpg(self._main, signal.SIGKILL if kill else signal.SIGTERM)
        return True


def _has_children(main: int) -> bool:
    """Whether a child lives; without a subreaper, whether the main process's group does."""
    try:
        if sys.platform.startswith("linux"):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        else:
            os.killpg(main, 0)
    except OSError:
        return False
    return True


def _reaped() -> Iterator[tuple[int, int]]:
    while True:
        try:
            number, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if number == 0:
            return
        yield number, status


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        arguments = [ctypes.c_ulong(each) for each in (value, 0, 0, 0)]
        ctypes.CDLL(None).prctl(option, *arguments)


def _write_file(directory: int, name: str, data: bytes, *, truncate: bool = True) -> None:
    """Write a small file; without ``truncate`` into its reserved space."""
    if truncate:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
    descriptor = os.open(name, os.O_WRONLY | _CREATE, 0o600, dir_fd=directory)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _until(descriptor: int, end: bytes) -> bytes:
    """Read until the end of a line, or to the end if ``end`` is empty."""
    found = b""
    while not (end and found.endswith(end)):
        part = os.read(descriptor, 1 if end else 4096)
        if not part:
            break
        found += part
    return found


def _failure_in(message: bytes) -> dict[str, Any]:
    """The failure that the main process reported."""
    if not message:
        return {"failed": "the process ended before it started", "errno": None, "where": "process"}
    failure: dict[str, Any] = json.loads(message)
    return failure


def report_failure(report: int, error: BaseException, where: str) -> None:
    """Report that a supervisor could not be started."""
    _send(report, _failure(error, where))


def become_subreaper() -> None:
    """Become the parent of each process of the tree that loses its own."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _failure(error: BaseException, where: str) -> dict[str, Any]:
    number = error.errno if isinstance(error, OSError) else None
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno:
        text = os.strerror(error.errno)
        if where in ("state", "supervisor") and error.filename is not None:
            text = f"{error.filename}: {text}"
    return {"failed": text[:1000], "errno": number, "where": where}


def _send(report: int, message: dict[str, Any]) -> None:
    # If the reader has closed the pipe, the files have the same content.
    with contextlib.suppress(OSError):
        os.write(report, json.dumps(message).encode() + b"\n")


def main() -> None:
    """Supervise in the background, in a process that is not a child of the executor."""
    directory, lock, report, request = (int(each) for each in sys.argv[1:5])
    if os.fork():
        os._exit(0)
    supervise(directory, lock, report, request)


if __name__ == "__main__":
    main()
