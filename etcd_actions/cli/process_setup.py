"""What the process is, apart from its command: its descriptors, its children, its end.

This module imports nothing that is slow to import.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

from etcd_actions.cli.stderr import TolerantStderr

_UNWRITABLE = 6
# Objects that are made before the youngest are looked at, and such looks before older ones are.
_COLLECT_AFTER = (10_000, 20, 20)
# Raised by the process itself, or not to be caught: no use to wait for them.
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


def keep_descriptors() -> None:
    """See to it that the descriptors 0, 1 and 2 are no other file's.

    The first file that is opened gets the number of a standard stream that was closed: what is
    written to standard error would go into it. A closed stream is replaced by one that fails, as
    a closed one does. A write to standard error that fails is dropped and counted from here on.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is the one. Reading from it, or writing, fails.
            os.open(os.devnull, os.O_WRONLY if descriptor == 0 else os.O_RDONLY)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        # With "w" it is looked at only when something is written.
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = TolerantStderr(2)  # type: ignore[misc]


def reap_as_init() -> None:
    """Where this is process 1, go on as its child, and let process 1 reap what it adopts.

    Process 1 of a container without an init adopts every process whose parent has ended. Waiting
    for any child in the process that does the work would take the exit codes of its own ones.
    Process 1 hands on the signals that it is sent, and ends as its child does.
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
            # What the terminal sends, such as a Ctrl-C, its whole process group gets.
            os.kill(child, info.si_signo)


def _reap(child: int) -> None:
    """Reap what has ended; end as the child did once it has."""
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


def collect_later() -> None:
    """Collect no garbage until :func:`collect_from_now`, while modules are imported."""
    gc.disable()


def collect_from_now() -> None:
    """Collect garbage again where it was put off, but never look at what is there by now.

    What is imported stays for the whole life of the process, and each collection of the oldest
    objects would look at all of it. Little here is garbage in a cycle, so that a list of 100,000
    objects would be searched 450 times for next to nothing.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)
        gc.enable()


def has_terminal() -> bool:
    """Whether the process has a controlling terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def leave(code: int) -> NoReturn:
    """End the process with a code.

    What Python does at its end would wait for threads that may never return, and would give the
    signals back to the system, so that one that comes late changes the exit code.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads on.
        os._exit(code)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"etcd-actions: standard output cannot be written: {reason}", file=sys.stderr)
        code = code or _UNWRITABLE
    sys.stderr.flush()
    os._exit(code)
