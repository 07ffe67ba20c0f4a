"""When a connection ends by itself, without work of the clock's at each request."""

from __future__ import annotations

import trio


class Deadline:
    """A time at which something ends, and why. It is moved often and reached seldom.

    Moving it to a later time only notes that: the scope's own deadline is corrected once that is
    reached.

    Attributes:
        at: The time.
        reason: What is true of the connection then.
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
            # To set it, even to what it is, costs more than all else here.
            return
        self._scope.deadline = at

    def scope(self) -> trio.CancelScope:
        """A scope that is cancelled at the deadline, or too early: see :attr:`is_reached`."""
        self._scope = trio.CancelScope(deadline=self.at)
        return self._scope

    @property
    def is_reached(self) -> bool:
        """Whether it is over."""
        return trio.current_time() >= self.at
