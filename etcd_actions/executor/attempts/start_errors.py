"""Whose fault it is that an attempt could not be started: the action's, or the machine's."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from etcd_actions.executor.attempts.attempt_command import WORKDIR, Command
from etcd_actions.executor.attempts.not_started import NotStarted
from etcd_actions.model import ErrorState

CODE: Final = "NotStarted"

# What the machine lacks, for a while: it is the same for any action.
_MACHINE: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EROFS,
    }
)
# In our own directory: somebody put something else in the place of a file.
_PLANTED: Final = frozenset(
    {errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENXIO}
)
# Where a failure is that an action has no part in.
_OURS: Final = frozenset({"process", "state", "supervisor"})
# The kernel's limit of one argument, MAX_ARG_STRLEN, with its NUL.
_MOST_ARGUMENT: Final = 32 * os.sysconf("SC_PAGESIZE")
_SPARE: Final = 4096


def not_started(subject: object, number: int | None, text: str, where: str) -> NotStarted:
    """The error for a failure of the operating system.

    Args:
        subject: What could not be used; the message begins with it.
        number: The ``errno``; None where there is none.
        text: What went wrong.
        where: What was being done: ``program`` and ``directory`` are the action's, and so is
            ``outputs``; ``process``, ``state`` and ``supervisor`` are ours.
    """
    lacking = number in _MACHINE and (number != errno.EROFS or where in _OURS)
    by_machine = lacking or (where in _OURS and number not in _PLANTED)
    kind = "SYSTEM" if by_machine else "USER"
    return NotStarted(
        ErrorState(code=CODE, kind=kind, message=f"{subject}: {text}"), by_machine=by_machine
    )


def of_os_error(subject: object, error: OSError, where: str) -> NotStarted:
    """The error for an OSError; see :func:`not_started`."""
    return not_started(subject, error.errno, error.strerror or str(error), where)


def of_action(message: str) -> NotStarted:
    """The error for what can never be started; trying again does not help."""
    return NotStarted(ErrorState(code=CODE, kind="USER", message=message), by_machine=False)


def check_command(arguments: list[str], environment: dict[str, str], command: Command) -> None:
    """Refuse what no process can be given, the same for each way of starting.

    Raises:
        NotStarted: It is the action's fault; the message names what to change.
    """
    if not arguments or not arguments[0]:
        raise of_action("the program's name is empty")
    total = 0
    for number, argument in enumerate(arguments):
        total += _check_text(f"argument {number}", argument)
    for name, value in environment.items():
        if not name or "=" in name:
            raise of_action(f"environment variable {name!r}: it needs a name without '='")
        total += _check_text(f"environment variable {name!r}", f"{name}={value}")
    most = os.sysconf("SC_ARG_MAX")
    if most > 0 and total + _SPARE > most:
        raise of_action(
            f"the arguments and the environment take {total} bytes together: {most} are possible"
        )
    for label, path in ((WORKDIR, command.directory), ("the outputs' path", command.outputs)):
        if path is not None:
            _check_text(label, str(path))


def _check_text(what: str, text: str) -> int:
    """The bytes that it takes, with its pointer."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise of_action(f"{what} cannot be encoded: {error.reason}") from error
    if b"\0" in data:
        raise of_action(f"{what} has a NUL")
    if len(data) >= _MOST_ARGUMENT:
        raise of_action(f"{what} has {len(data)} bytes: fewer than {_MOST_ARGUMENT} are possible")
    return len(data) + 1 + 8


def own_directory(place: Path) -> Path:
    """Where a command runs that names no directory."""
    return place / "work"
