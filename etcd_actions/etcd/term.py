"""One term of a leader, and the time in which it may make calls that nothing fences."""

from __future__ import annotations

import math
from typing import NamedTuple

import trio

from etcd_actions.etcd.api import Compare
from etcd_actions.etcd.session import MARGIN, Session

_LEAST_CALL = 0.25
"""The least part of the lease's sure time that has to remain for a call."""


class Leadership(NamedTuple):
    """The leadership of one term: the key, and the revision at which it was created."""

    key: bytes
    create_revision: int

    @property
    def fence(self) -> Compare:
        """A compare that holds in etcd while this term lasts, and never again."""
        return Compare.incarnation(self.key, self.create_revision)


class Term:
    """A time in which this process leads, unless its lease is not renewed.

    Args:
        leadership: The leadership.
        session: The lease to which its key is attached.

    Attributes:
        began: When this process received the answer that it leads, on trio's clock.
        over: Set when the term has ended.
        given_up: Whether this process gave the term up.
    """

    def __init__(self, leadership: Leadership, session: Session) -> None:
        self.leadership = leadership
        self.began: float = trio.current_time()
        self.over: trio.Event = session.over
        self.given_up = False
        self._session = session

    @property
    def ttl(self) -> int:
        """The lease's time to live, in seconds."""
        return self._session.lease.ttl

    @property
    def lasts(self) -> bool:
        """Whether the lease is surely alive at this moment."""
        return self._session.is_sure

    @property
    def least_call(self) -> float:
        """Seconds of the lease that have to remain for a call; less remain after a late renewal."""
        return self.ttl * (1 - MARGIN) * _LEAST_CALL

    def sure_until(self) -> float:
        """The time, on trio's clock, until which a call may last; in the past after the term."""
        return -math.inf if self.over.is_set() else self._session.deadline

    async def wait_sure(self) -> None:
        """Return once enough of the lease remains for a call; never after the term has ended.

        If enough remains at once, it is not a cancellation point, and no other task has run.
        """
        while self.sure_until() - trio.current_time() < self.least_call:
            if self.over.is_set():
                await trio.sleep_forever()
            await self._session.wait_renewed()
