"""What a signal does, at any moment of the process's life.

The handlers are installed before anything slow is imported and stay until the process ends. They
run in the main thread, also while that waits in a write that nobody reads, where trio's own
receiver would not run any more.

A first SIGINT or SIGTERM ends the process

- at once while the command has begun nothing: there is nothing to put in order;
- in order once a command listens, see :meth:`Signals.listening`;
- not at all once the command is done: the process ends with the code that is already known.

A second one ends it at once, with 128 and its number.

This module imports nothing that is slow to import.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Protocol

ENDING: Final = (signal.SIGINT, signal.SIGTERM)

_GOES_ON: Final = frozenset({"run"})
_ORDERLY: Final = frozenset({"run", "watch", "record", "replay", "submit", "doctor"})


class Listener(Protocol):
    """What a command does about signals; called in a signal handler."""

    def asked_to_end(self, number: int, /) -> None:
        """A first SIGINT or SIGTERM has come."""

    def hung_up(self, number: int, /) -> None:
        """A SIGHUP has come."""


class _Phase(enum.Enum):
    BEFORE = enum.auto()
    LISTENED = enum.auto()
    AFTER = enum.auto()


class Signals:
    """The handler of SIGINT, SIGTERM and SIGHUP; made by :func:`handle_signals`.

    Args:
        command: The name of the command; it decides how the process ends while nothing was
            begun.
        owns_process: Whether the process ends with the command.

    Attributes:
        owns_process: See above.
        at_once: Called before a second signal ends the process, to restore the terminal.
    """

    def __init__(self, command: str, *, owns_process: bool) -> None:
        self.owns_process = owns_process
        self.at_once: Callable[[], None] = lambda: None
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
            self._listener.asked_to_end(number)

    def code_before(self, number: int) -> int:
        """The exit code for a first signal that comes before the command has begun anything.

        A command that lasts until it is asked to end was asked to. One that does one thing has
        not done it.
        """
        return 0 if self._command in _ORDERLY else 128 + number

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Give a listener the first signal. What comes after the body changes nothing."""
        self._listener, self._phase = listener, _Phase.LISTENED
        try:
            yield
        finally:
            self._phase = _Phase.AFTER
            # Whatever the process still waits for is to end in time, too.
            if not self.owns_process:
                self._listener = None

    def done(self) -> None:
        """The command is done: a first signal changes nothing any more."""
        self._phase = _Phase.AFTER

    def _hung_up(self, number: int) -> None:
        if self._phase is _Phase.LISTENED and self._listener is not None:
            self._listener.hung_up(number)
        elif self._phase is _Phase.BEFORE and self._command not in _GOES_ON:
            self._exit(self.code_before(number))

    def _exit(self, code: int) -> None:
        self.at_once()
        os._exit(code)


@contextmanager
def handle_signals(command: str, *, owns_process: bool = False) -> Iterator[Signals]:
    """Handle the signals of this process for as long as the context lasts.

    A SIGHUP that the process was started to ignore, as by ``nohup``, stays ignored.
    """
    signals = Signals(command, owns_process=owns_process)
    before: dict[int, Any] = {}
    for number in (*ENDING, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, signals)
    # Blocked by the parent of this process, or by its former self before it was executed.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, before)
    try:
        yield signals
    finally:
        if not owns_process:
            _restore(before)


@contextmanager
def current_signals() -> Iterator[Signals]:
    """The handler that is installed; where there is none, one for as long as the context lasts."""
    installed = signal.getsignal(signal.SIGTERM)
    if isinstance(installed, Signals):
        yield installed
    else:
        with handle_signals("") as signals:
            yield signals


def interrupted_code() -> int:
    """The exit code where a signal raised KeyboardInterrupt."""
    installed = signal.getsignal(signal.SIGTERM)
    if isinstance(installed, Signals):
        return installed.code_before(signal.SIGINT)
    return 128 + signal.SIGINT


@contextmanager
def raising() -> Iterator[None]:
    """Let a signal raise KeyboardInterrupt, for a wait that has to put the terminal right."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in ENDING}
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
