"""The time at which a connection ends; moving it does not set a timer of trio."""

from __future__ import annotations

import trio


class Deadline:
    """A time and its reason. It is moved often and reached seldom.

    A move to a later time is only noted. The deadline of the scope is corrected when it is reached.
    """

    def __init__(self, at: float, reason: str) -> None:
        self.at = at
        self.reason = reason
        self._scope = trio.CancelScope(deadline=at)

    def move(self, at: float, reason: str) -> None:
        """Set another time and reason."""
        self.at = at
        self.reason = reason
        if self._scope.deadline <= at:
            # To set the scope's deadline costs more than everything else here.
            return
        self._scope.deadline = at

    def scope(self) -> trio.CancelScope:
        """A scope that is cancelled at the deadline, or earlier: see :attr:`is_reached`."""
        self._scope = trio.CancelScope(deadline=self.at)
        return self._scope

    @property
    def is_reached(self) -> bool:
        """Whether the time has come."""
        return trio.current_time() >= self.at
