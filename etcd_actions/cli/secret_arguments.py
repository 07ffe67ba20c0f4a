"""Hides passwords on the command line from the process list.

Every user of a machine can read the command lines of all processes. A process cannot change its
own in a portable way, but it can execute itself with another one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence

from etcd_actions.cli.first_signal import TERMINATION

_VARIABLE = "ETCD_ACTIONS_HIDDEN_ARGUMENTS"
_HIDDEN = "(hidden)"


def hide_secret_arguments() -> None:
    """Execute this process again, with the passwords in the visible arguments hidden.

    The real arguments are passed in the environment, which other users cannot read, and become
    ``sys.argv`` again. Nothing happens without a password, or if ``sys.argv`` was changed.
    """
    passed = os.environ.pop(_VARIABLE, None)
    if passed is not None:
        sys.argv[1:] = _arguments(passed)
        return
    arguments = sys.argv[1:]
    visible = visible_arguments(arguments)
    before = len(sys.orig_argv) - len(arguments)
    if visible == arguments or sys.orig_argv[before:] != arguments:
        return
    # exec removes the handlers: signals are blocked until the new ones are installed.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (*TERMINATION, signal.SIGHUP))
    try:
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:before], *visible],
            {**os.environ, _VARIABLE: json.dumps(arguments)},
        )
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        print(
            f"etcd-actions: the password stays visible in the process list: {error.strerror}",
            file=sys.stderr,
        )


def _arguments(passed: str) -> list[str]:
    """The arguments in the variable; ends the process if it contains something else."""
    try:
        arguments = json.loads(passed)
    except (ValueError, RecursionError):
        arguments = None
    if isinstance(arguments, list) and all(isinstance(each, str) for each in arguments):
        return arguments
    print(
        f"etcd-actions: {_VARIABLE} is this program's own variable, with other contents: unset it",
        file=sys.stderr,
    )
    raise SystemExit(2)


def visible_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments with their passwords hidden.

    A text that can be a flag counts as a flag, even if it is the value of another one: every
    possible password is hidden.
    """
    visible = list(arguments)
    for index, text in enumerate(arguments):
        flag, equals, value = text.partition("=")
        hide = {"--password": _hide, "--user": _hide_after_colon}.get(flag)
        if hide is None:
            continue
        if not equals:
            for following in arguments[index + 1 : index + 2]:
                visible[index + 1] = hide(following)
        elif visible[index] == text:
            visible[index] = f"{flag}={hide(value)}"
    return visible


def _hide(password: str) -> str:
    return _HIDDEN if password else password


def _hide_after_colon(user: str) -> str:
    name, colon, password = user.partition(":")
    return f"{name}{colon}{_hide(password)}"
