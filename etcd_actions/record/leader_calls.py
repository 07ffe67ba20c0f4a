"""Calls of the leader to a server that cannot check who is the leader: the run service.

Each call starts and ends while the leader's lease is surely alive. The lease is checked directly
before the call, with no cancellation point in between. So a process that was stopped, partitioned
or suspended sends nothing before the check. The next leader can compute until when a call may still
arrive.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from etcd_actions._internal.call_time import call_until
from etcd_actions.errors import RunServiceRejected, RunServiceUnavailable
from etcd_actions.etcd.term import Term

LANDING = 0.5
"""Seconds after a call's deadline in which the server may still apply the call: it counts the
deadline from the call's arrival."""

_CLOSE = 0.05
"""Seconds by which two clocks may differ on when a deadline has passed."""


class LeaseTooShort(RunServiceUnavailable):
    """A call was not made, or not finished: the lease may expire too soon."""


class LeaderCalls:
    """The calls of one process, in all of its terms.

    Attributes:
        hold_until: The time until which calls of earlier leaders may still arrive, on trio's clock.
    """

    def __init__(self) -> None:
        self._term: Term | None = None
        self._uncertain_until = -math.inf
        self._closed = False
        self.hold_until: float = -math.inf

    def start(self, term: Term | None, hold_until: float) -> None:
        """Make calls in this term from now on.

        Args:
            term: Calls are made only while its lease is surely alive; None for no limit.
            hold_until: See the attribute.
        """
        self._term, self.hold_until = term, hold_until
        self._closed = False

    def close(self) -> None:
        """Make no more calls in this term."""
        self._closed = True

    @property
    def uncertain_until(self) -> float:
        """The time until which a call of this process or of an earlier leader may still arrive."""
        return max(self.hold_until, self._uncertain_until)

    @property
    def term_revision(self) -> int:
        """The revision at which the term started; other leaders may have reported older states.

        It is 0 without a term.
        """
        return 0 if self._term is None else self._term.leadership.create_revision

    async def make(self, call: Callable[[], Awaitable[None]]) -> None:
        """Make one call once enough of the lease remains. A cancelled call may have been applied.

        Raises:
            LeaseTooShort: The lease's time ended before the call did, or the term is closed.
        """
        term = self._term
        if term is None:
            await call()
            return
        await term.wait_sure()
        if self._closed:
            raise LeaseTooShort("this process stops: its term is closed")
        until = term.sure_until()
        settled = False
        try:
            with call_until(term.sure_until) as scope:
                await call()
                settled = True
        except RunServiceRejected:
            settled = True
            raise
        except Exception as error:
            if trio.current_time() < until - _CLOSE:
                raise
            raise LeaseTooShort(f"it ended with the time of the lease: {error}") from error
        finally:
            if not settled:
                self._uncertain_until = max(self._uncertain_until, until + LANDING)
        if scope.cancelled_caught:
            raise LeaseTooShort("it ended with the time of the lease")
