"""The protocol of launchers: start, look, stop, logs.

A launcher starts the command of an attempt, on this machine or by another engine. It identifies the
attempt by ``place.name``: characters of ``a-z A-Z 0-9 . _ -`` and one slash, at most 132. The name
is never that of another attempt or object, also on another machine. So a launcher of another engine
uses it as the name of its job there, and a second start finds the first one's. If it also has
``finds``, workers that use it hand attempts over, see :class:`SharedLauncher`.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol, runtime_checkable

from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory


class State(Enum):
    """How far an attempt is."""

    PENDING = "pending"
    """It was accepted, and its command does not run yet."""
    RUNNING = "running"
    ENDED = "ended"
    """No process of it lives, as far as the launcher can know."""


class Look(NamedTuple):
    """The state of an attempt.

    Attributes:
        state: How far it is.
        exit_code: The exit code of its command, negative for a signal; None if there is none.
        ended_at: When it ended, in seconds since 1970; None if that is unknown.
        reason: Why it ended without an exit code, in words.
    """

    state: State
    exit_code: int | None = None
    ended_at: float | None = None
    reason: str = ""


class LauncherUnavailable(Exception):
    """The launcher's engine does not answer now. The launcher logs it; the call is repeated."""


class Launcher(Protocol):
    """Starts attempts, and reports how they end. Attempts continue when it is closed.

    A cancelled call may have taken effect.
    """

    async def start(self, place: AttemptDirectory, command: Command, lock: int) -> bool:
        """Start an attempt; a second start of the same one starts nothing.

        Args:
            place: The attempt: its name is ``place.name``, its directory ``place.path``.
            command: Its arguments, environment, directory and resources.
            lock: The descriptor of its lock. While a process has it open, every other executor
                with this state directory takes the attempt for running.

        Returns:
            False if no process of it was started, and another try may help at once.

        Raises:
            NotStarted: No process of it runs, or that is unknown; see the error's attributes.
        """

    async def look(self, place: AttemptDirectory, *, within: float) -> Look:
        """The state of an attempt that was started.

        It may wait for ``within`` seconds for the end of the attempt.

        Raises:
            LauncherUnavailable: It cannot be known now.
        """

    async def stop(self, place: AttemptDirectory) -> None:
        """End an attempt: its processes get SIGTERM, and after a grace SIGKILL.

        It returns once no process of it lives. If that takes too long, it logs that, and returns.
        """

    async def logs(self, place: AttemptDirectory) -> bytes | None:
        """The log so far, or its last part; None if the attempt's directory already has it.

        Raises:
            LauncherUnavailable: It cannot be read now.
        """


@runtime_checkable
class SharedLauncher(Launcher, Protocol):
    """A launcher of an engine that several workers use: attempts live on without their worker.

    The next worker that claims the action follows the attempt, without the state directory of the
    first one. With any other launcher an attempt ends with its worker, and the next attempt starts.
    """

    async def finds(self, place: AttemptDirectory) -> bool:
        """Whether the engine knows an attempt, running or ended, by its name.

        Raises:
            LauncherUnavailable: It cannot be known now.
        """
