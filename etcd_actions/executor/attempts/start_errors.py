"""Errors of an attempt that was not started: the action is to blame, or the machine."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from etcd_actions.executor.attempts.attempt_command import WORKDIR, Command
from etcd_actions.model import ErrorState

CODE: Final = "NotStarted"

# The machine lacks something for a while, for each action alike.
_MACHINE: Final = frozenset(
    {
        *(errno.EAGAIN, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE),
        *(errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC),
    }
)
# In the executor's own directory these mean that another process, such as a task, replaced a file.
_PLANTED: Final = frozenset(
    {errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENXIO}
)
# The steps of a start in which the action has no part.
_OURS: Final = frozenset({"process", "state", "supervisor"})
# The kernel's limit of one argument, MAX_ARG_STRLEN, with its NUL.
_MOST_ARGUMENT: Final = 32 * os.sysconf("SC_PAGESIZE")
# Bytes that the kernel needs in addition, as for the program's path.
_SPARE: Final = 4096


class NotStarted(Exception):
    """An attempt could not be started: no process of it runs, unless ``may_run`` is set.

    Attributes:
        error: The error that the action ends with, if the machine is not to blame.
        by_machine: Whether the machine lacks something (space, memory, descriptors, processes), or
            the launcher does not answer, so that a later start may succeed.
        may_run: Whether it may run, since an answer of its launcher was lost. Until a later call
            finds that it does not, an abort has to end it.
    """

    def __init__(self, error: ErrorState, *, by_machine: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.by_machine = by_machine
        self.may_run = False

    @classmethod
    def because(cls, message: str, *, by_machine: bool = False, code: str = CODE) -> NotStarted:
        """The error with a message, of kind SYSTEM if the machine is to blame, else USER."""
        kind = "SYSTEM" if by_machine else "USER"
        return cls(ErrorState(code=code, kind=kind, message=message), by_machine=by_machine)

    @classmethod
    def unknown(cls, message: str) -> NotStarted:
        """The error if it is not known now whether the attempt runs; see ``may_run``."""
        failure = cls.because(message, by_machine=True)
        failure.may_run = True
        return failure


class OutputsInUse(Exception):
    """An attempt was not started, since another one that lives has its directory of outputs."""

    def __init__(self, holder: Path) -> None:
        super().__init__(f"attempt {holder} has the same directory of outputs")


def is_of_machine(error: OSError) -> bool:
    """Whether the machine lacks something, so that the action is not to blame."""
    return error.errno in _MACHINE


def not_started(subject: object, number: int | None, text: str, where: str) -> NotStarted:
    """The error for a failure of the operating system.

    Args:
        subject: The thing that could not be used; the message begins with it.
        number: The ``errno``, if there is one.
        text: The failure.
        where: The step that failed: ``program``, ``directory`` and ``outputs`` are the action's;
            ``process``, ``state`` and ``supervisor`` are ours.
    """
    is_ours = where in _OURS
    by_machine = number in _MACHINE or (is_ours and number not in _PLANTED)
    return NotStarted.because(f"{subject}: {text}", by_machine=by_machine)


def of_os_error(subject: object, error: OSError, where: str) -> NotStarted:
    """The error for an OSError; see :func:`not_started`."""
    return not_started(subject, error.errno, error.strerror or str(error), where)


def check_command(arguments: list[str], environment: dict[str, str], command: Command) -> None:
    """Refuse arguments and variables that no process can have, for each way of starting alike.

    Raises:
        NotStarted: The action is to blame; the message names what to change.
    """
    if not arguments or not arguments[0]:
        raise NotStarted.because("the program's name is empty")
    total = 0
    for number, argument in enumerate(arguments):
        total += _check_text(f"argument {number}", argument)
    for name, value in environment.items():
        if not name or "=" in name:
            raise NotStarted.because(f"environment variable {name!r}: it needs a name without '='")
        total += _check_text(f"environment variable {name!r}", f"{name}={value}")
    most = os.sysconf("SC_ARG_MAX")
    if most > 0 and total + _SPARE > most:
        raise NotStarted.because(
            f"the arguments and the environment take {total} bytes together: {most} are possible"
        )
    for label, path in ((WORKDIR, command.directory), ("the outputs' path", command.outputs)):
        if path is not None:
            _check_text(label, str(path))


def _check_text(what: str, text: str) -> int:
    """The bytes that a text takes in the memory of a new process: with its NUL and its pointer."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise NotStarted.because(f"{what} cannot be encoded: {error.reason}") from error
    if b"\0" in data:
        raise NotStarted.because(f"{what} has a NUL")
    if len(data) >= _MOST_ARGUMENT:
        raise NotStarted.because(
            f"{what} has {len(data)} bytes: fewer than {_MOST_ARGUMENT} are possible"
        )
    return len(data) + 1 + 8
