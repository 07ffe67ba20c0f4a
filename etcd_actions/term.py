"""One term of a leader: how long its lease is surely alive.

A lease is alive for its time to live from the moment on at which its last renewal was *sent*:
etcd counts from when it got it. The leader counts on its monotonic clock, adds the time for which
the machine was suspended, and leaves a margin: for stopping what is under way, and for servers
that count the deadline of a call from when they got it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import trio

from etcd_actions.call_time import suspended
from etcd_actions.etcd.api import Compare, CompareResult, CompareTarget

_LEAST_MARGIN = 0.5
_MARGIN = 0.1
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


class Moment(NamedTuple):
    """A moment on trio's clock, and how long the machine had been suspended by then."""

    time: float
    suspended: float

    @classmethod
    def now(cls) -> Moment:
        """This one."""
        return cls(trio.current_time(), suspended())


class Term:
    """A time in which this process leads, unless it is not renewed.

    Args:
        leadership: Which one it is.
        asked: When its lease was asked for.
        ttl: The time to live that etcd granted, in seconds.

    Attributes:
        began: When this process learned that it leads, in trio's time.
        over: Set when it has ended for good.
        given_up: Set when this process ended it.
    """

    def __init__(self, leadership: Leadership, asked: Moment, ttl: int) -> None:
        self.leadership = leadership
        self.began = trio.current_time()
        self.over = trio.Event()
        self.given_up = trio.Event()
        self._renewed = trio.Event()
        self._asked = asked
        self._ttl = ttl

    @property
    def ttl(self) -> int:
        """The lease's time to live, in seconds."""
        return self._ttl

    @property
    def deadline(self) -> float:
        """Until when the lease is surely alive, in trio's time; it moves with each renewal."""
        margin = max(_LEAST_MARGIN, self._ttl * _MARGIN)
        asleep = suspended() - self._asked.suspended
        return self._asked.time + self._ttl - margin - max(0.0, asleep)

    @property
    def lasts(self) -> bool:
        """Whether the lease is surely alive at this very moment."""
        return not self.over.is_set() and trio.current_time() < self.deadline

    @property
    def least_call(self) -> float:
        """Seconds that have to be left for a call to be begun: a renewal is overdue before."""
        return self._ttl * (1 - _MARGIN) * _LEAST_CALL

    def sure_until(self) -> float:
        """Until when a call to the outside may last, in trio's time; in the past when over."""
        return -math.inf if self.over.is_set() else self.deadline

    def renewed(self, asked: Moment, ttl: int) -> None:
        """A renewal that was asked for at ``asked`` was granted."""
        self._asked, self._ttl = asked, ttl
        self._renewed.set()
        self._renewed = trio.Event()

    async def wait_sure(self) -> None:
        """Return once enough of the lease is left for a call; never when the term is over.

        When it returns at once nothing else has run: it is no checkpoint then.
        """
        while self.sure_until() - trio.current_time() < self.least_call:
            if self.over.is_set():
                await trio.sleep_forever()
            await self._renewed.wait()
