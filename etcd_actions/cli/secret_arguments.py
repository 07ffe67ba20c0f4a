"""Passwords on the command line, taken out of the process list.

Everybody on a machine can read everybody's command lines. A process cannot change its own in
a way that works everywhere, but it can become itself again with another one.
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
    """Execute this process anew, the same but for passwords in the visible arguments.

    The true arguments go by the environment, which others cannot read, and are ``sys.argv``
    as before when this returns. Where there is no password nothing happens, nor where
    ``sys.argv`` is not what the process was started with.
    """
    handed_over = os.environ.pop(_VARIABLE, None)
    if handed_over is not None:
        sys.argv[1:] = _arguments(handed_over)
        return
    arguments = sys.argv[1:]
    visible = visible_arguments(arguments)
    before = len(sys.orig_argv) - len(arguments)
    if visible == arguments or sys.orig_argv[before:] != arguments:
        return
    # Handlers are lost in between: a signal waits until the new ones are there.
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


def _arguments(handed_over: str) -> list[str]:
    """The arguments that the variable holds; ends the process where it holds something else."""
    try:
        arguments = json.loads(handed_over)
    except (ValueError, RecursionError):
        arguments = None
    if isinstance(arguments, list) and all(isinstance(each, str) for each in arguments):
        return arguments
    print(
        f"etcd-actions: {_VARIABLE} is this program's own variable, and holds something else: "
        "unset it",
        file=sys.stderr,
    )
    raise SystemExit(2)


def visible_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments with their passwords hidden.

    Whether a text is a flag or another flag's value is not asked: whatever could be a
    password is hidden, which costs nothing.
    """
    visible = list(arguments)
    for position, text in enumerate(arguments):
        flag, equals, value = text.partition("=")
        hide = {"--password": _hide, "--user": _hide_after_colon}.get(flag)
        if hide is None:
            continue
        if not equals:
            for following in arguments[position + 1 : position + 2]:
                visible[position + 1] = hide(following)
        elif visible[position] == text:
            visible[position] = f"{flag}={hide(value)}"
    return visible


def _hide(password: str) -> str:
    return _HIDDEN if password else password


def _hide_after_colon(user: str) -> str:
    name, colon, password = user.partition(":")
    return f"{name}{colon}{_hide(password)}"
