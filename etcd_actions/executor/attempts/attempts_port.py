"""What the executor needs of whatever starts processes."""

from __future__ import annotations

import errno
from typing import Final, Protocol

from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.not_started import NotStarted
from etcd_actions.model import ErrorState


class AttemptsPort(Protocol):
    """See :class:`~etcd_actions.executor.attempts.attempts.Attempts`."""

    @property
    def started(self) -> int:
        """Number of attempts that were started."""
        ...

    @property
    def adopted(self) -> int:
        """Number of attempts that were found started."""
        ...

    async def begin(self, place: AttemptDirectory, command: Command) -> None:
        """Start an attempt unless it was started before."""
        ...

    async def wait_ended(self, place: AttemptDirectory) -> None:
        """Return once it has ended."""
        ...

    def forget(self, place: AttemptDirectory) -> None:
        """Nobody asks for it any more."""
        ...

    async def end(self, place: AttemptDirectory) -> None:
        """End it; returns once it has ended."""
        ...


_MACHINE: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
    }
)


def is_of_machine(error: OSError) -> bool:
    """Whether the machine lacks something: the caller is not to blame."""
    return error.errno in _MACHINE


async def begin(attempts: AttemptsPort, place: AttemptDirectory, command: Command) -> None:
    """Start an attempt unless it was started before.

    Raises:
        NotStarted: It cannot be started.
    """
    try:
        await attempts.begin(place, command)
    except OSError as error:
        by_machine = is_of_machine(error)
        state = ErrorState(
            code="NotStarted",
            kind="SYSTEM" if by_machine else "USER",
            message=f"{command.arguments[0]}: {error}",
        )
        raise NotStarted(state, by_machine=by_machine) from error
