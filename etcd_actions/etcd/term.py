"""One term of a leader: when it may make calls that nothing fences."""

from __future__ import annotations

import math
from typing import NamedTuple

import trio

from etcd_actions.etcd.api import Compare, CompareResult, CompareTarget
from etcd_actions.etcd.session import MARGIN, Session

_LEAST_CALL = 0.25


class Leadership(NamedTuple):
    """One term of a leader: the key, and the revision at which it was created for that."""

    key: bytes
    create_revision: int

    @property
    def fence(self) -> Compare:
        """Holds in etcd while this term lasts, and never again."""
        return Compare(
            self.key, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, self.create_revision
        )


class Term:
    """A time in which this process leads, unless its lease is not renewed.

    Args:
        leadership: Which one it is.
        session: The lease that its key hangs on.

    Attributes:
        began: When this process learned that it leads, in trio's time.
        over: Set when it has ended for good.
        given_up: Whether this process ended it.
    """

    def __init__(self, leadership: Leadership, session: Session) -> None:
        self.leadership = leadership
        self.began = trio.current_time()
        self.over = session.over
        self.given_up = False
        self._session = session

    @property
    def ttl(self) -> int:
        """The lease's time to live, in seconds."""
        return self._session.lease.ttl

    @property
    def lasts(self) -> bool:
        """Whether the lease is surely alive at this very moment."""
        return self._session.is_sure

    @property
    def least_call(self) -> float:
        """Seconds that have to be left to start a call: a renewal is overdue before."""
        return self.ttl * (1 - MARGIN) * _LEAST_CALL

    def sure_until(self) -> float:
        """Until when a call to the outside may last, in trio's time; in the past when over."""
        return -math.inf if self.over.is_set() else self._session.deadline

    async def wait_sure(self) -> None:
        """Return once enough of the lease is left for a call; never when the term has ended.

        When it returns at once nothing else has run: it is no checkpoint then.
        """
        while self.sure_until() - trio.current_time() < self.least_call:
            if self.over.is_set():
                await trio.sleep_forever()
            await self._session.wait_renewed()
