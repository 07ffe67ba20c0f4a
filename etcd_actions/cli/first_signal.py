"""The handler of signals, from the first line of the process to its end.

It is installed before any slow import. It runs in the main thread, also while that is blocked in
a write, when trio's own receiver does not run.

A first SIGINT or SIGTERM ends the process

- at once before the command has started its work;
- in order once a command listens, see :meth:`Signals.listening`;
- not at all once the command is done: the process ends with the exit code that it has.

A second signal ends the process at once, with 128 and its number. This module has no slow import.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Protocol

TERMINATION: Final = (signal.SIGINT, signal.SIGTERM)

# The commands that a SIGHUP does not end before they listen.
_IGNORES_HANGUP: Final = frozenset({"run"})
# The commands that run until a signal: ended by one they have done their work.
_UNTIL_SIGNAL: Final = frozenset(
    {"run", "watch", "record", "replay", "submit", "attach", "top", "doctor", "logs"}
)


class Listener(Protocol):
    """The reaction of a command to signals; called in a signal handler."""

    def stop_requested(self, number: int, /) -> None:
        """Handle a first SIGINT or SIGTERM."""

    def hung_up(self, number: int, /) -> None:
        """Handle a SIGHUP."""


class _Phase(enum.Enum):
    """How far the command is: before, while, or after it listens to signals."""

    BEFORE = enum.auto()
    LISTENING = enum.auto()
    AFTER = enum.auto()


class Signals:
    """The handler of SIGINT, SIGTERM and SIGHUP; created by :func:`handle_signals`.

    Attributes:
        owns_process: Whether the process ends with the command.
        before_forced_exit: Called before a signal ends the process at once, to restore the
            terminal.
    """

    def __init__(self, command: str, *, owns_process: bool) -> None:
        self.owns_process = owns_process
        self.before_forced_exit: Callable[[], None] = lambda: None
        self._command = command
        self._received = 0
        self._phase = _Phase.BEFORE
        self._listener: Listener | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if number == signal.SIGHUP:
            self._hung_up(number)
            return
        self._received += 1
        if self._received > 1:
            self._exit(128 + number)
        if self._phase is _Phase.BEFORE:
            self._exit(self.code_before(number))
        if self._listener is not None:
            self._listener.stop_requested(number)

    def code_before(self, number: int) -> int:
        """The exit code for a first signal before the command has started its work.

        0 for a command that runs until a signal; a one-shot command has not done its work.
        """
        return 0 if self._command in _UNTIL_SIGNAL else 128 + number

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Send the first signal to a listener while the context is open.

        A first signal after that changes nothing: the command is done.
        """
        self._listener, self._phase = listener, _Phase.LISTENING
        try:
            yield
        finally:
            self._phase = _Phase.AFTER
            # The listener's grace also bounds the end of the process.
            if not self.owns_process:
                self._listener = None

    def done(self) -> None:
        """Ignore a first signal from now on: the command is done."""
        self._phase = _Phase.AFTER

    def _hung_up(self, number: int) -> None:
        if self._phase is _Phase.LISTENING and self._listener is not None:
            self._listener.hung_up(number)
        elif self._phase is _Phase.BEFORE and self._command not in _IGNORES_HANGUP:
            self._exit(self.code_before(number))

    def _exit(self, code: int) -> None:
        self.before_forced_exit()
        os._exit(code)


@contextmanager
def handle_signals(command: str, *, owns_process: bool = False) -> Iterator[Signals]:
    """Handle the signals of this process while the context is open.

    A SIGHUP that was ignored at the start, as by ``nohup``, stays ignored.
    """
    signals = Signals(command, owns_process=owns_process)
    before: dict[int, Any] = {}
    for number in (*TERMINATION, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, signals)
    # The parent, or secret_arguments before its exec, may have blocked them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, before)
    try:
        yield signals
    finally:
        if not owns_process:
            _restore(before)


@contextmanager
def current_signals() -> Iterator[Signals]:
    """The installed handler; if there is none, one while the context is open."""
    installed = signal.getsignal(signal.SIGTERM)
    if isinstance(installed, Signals):
        yield installed
    else:
        with handle_signals("") as signals:
            yield signals


def interrupted_code() -> int:
    """The exit code for a KeyboardInterrupt."""
    installed = signal.getsignal(signal.SIGTERM)
    if isinstance(installed, Signals):
        return installed.code_before(signal.SIGINT)
    return 128 + signal.SIGINT


@contextmanager
def signals_raise() -> Iterator[None]:
    """Have SIGINT and SIGTERM raise KeyboardInterrupt while the context is open.

    It is for a wait in a function that itself restores the terminal, such as a password prompt.
    """
    before: dict[int, Any] = {number: signal.getsignal(number) for number in TERMINATION}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
