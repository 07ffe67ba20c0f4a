"""The process of a command: its descriptors, children, garbage collection and end.

This module has no slow import.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

from etcd_actions.cli.stderr import TolerantStderr

# The exit code if standard output cannot be written.
_UNWRITABLE = 6
# The arguments of gc.set_threshold: objects, then collections of younger generations.
_THRESHOLDS = (10_000, 20, 20)
# Raised by the process itself, or impossible to wait for.
_NOT_WAITED_FOR = {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGTRAP,
}


def reserve_standard_descriptors() -> None:
    """Reserve the descriptors 0, 1 and 2, and replace standard error by one that never fails.

    Without this, the first opened file would get the number of a closed standard stream, and
    receive the writes to that stream. Reads and writes of a reserved stream fail, as those of a
    closed one do. A failed write to standard error is dropped and counted.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one. Reading, or writing, fails.
            os.open(os.devnull, os.O_WRONLY if descriptor == 0 else os.O_RDONLY)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        # With "w" the descriptor is used only by writes.
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = TolerantStderr(2)  # type: ignore[misc]


def reap_as_init() -> None:
    """As process 1, continue in a child process, and reap adopted processes.

    Process 1 of a container without an init adopts every process whose parent has ended. If the
    working process waited for any child, it would lose the exit codes of its own children. Process
    1 forwards the signals that it receives, and ends as its child does.
    """
    if os.getpid() != 1:
        return
    waited_for = signal.valid_signals() - _NOT_WAITED_FOR
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        info = signal.sigwaitinfo(waited_for)
        if info.si_signo == signal.SIGCHLD:
            _reap(child)
        elif info.si_code <= 0:
            # Signals of the terminal, such as a Ctrl-C, reach the child anyway.
            os.kill(child, info.si_signo)


def _reap(child: int) -> None:
    """Reap all ended processes; if the child is among them, end as it did."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def pause_garbage_collection() -> None:
    """Disable garbage collection during imports, until :func:`resume_garbage_collection`."""
    gc.disable()


def resume_garbage_collection() -> None:
    """Enable garbage collection if it was disabled, for new objects only.

    Imported modules live as long as the process, and each full collection would traverse them.
    Few objects are in cycles: the default would traverse a list of 100,000 objects 450 times.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)
        gc.enable()


def has_terminal() -> bool:
    """Whether the process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def end_process(code: int) -> NoReturn:
    """End the process with a code, without Python's own exit.

    Python's exit would wait for threads that may never return. It would also restore the default
    handlers of signals, so that a late signal would change the exit code.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(code)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"etcd-actions: standard output cannot be written: {reason}", file=sys.stderr)
        code = code or _UNWRITABLE
    sys.stderr.flush()
    os._exit(code)
