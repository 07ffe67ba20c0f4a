"""A lease that is kept alive, as clientv3's ``concurrency.Session``.

A lease is surely alive for its time to live after its last renewal was *sent*, because etcd counts
from the later time at which it received the renewal. A session counts on this process's monotonic
clock, adds the time for which the machine was suspended, and subtracts a margin: for stopping the
work in progress, and for servers that count the deadline of a call from its arrival.

A write that compares a key attached to the lease is correct as long as etcd has the lease. A call
without such a compare may only be made while :attr:`Session.is_sure`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple, TypeAlias

import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.call_time import suspended
from etcd_actions._internal.logger import get_logger
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions._internal.retrying import Report, retrying, seldom
from etcd_actions.errors import EtcdError, LeaseNotFound, Unavailable
from etcd_actions.etcd.api import Etcd, Lease

_BACKOFF = Backoff(initial=0.05, cap=2.0)
_RENEWALS = 3
"""Renewals in a time to live."""
_ANSWERED = 0.5
"""The part of the time to live after which a renewal without an answer is sent again."""
_LEAST_MARGIN = 0.5
"""Seconds; the least margin."""
_REVOKE_TIMEOUT = 2.0
MARGIN = 0.1
"""The margin, as a part of the time to live."""

_log = get_logger(__name__)

Runner: TypeAlias = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
"""Runs a function that never returns, within a boundary for its exceptions."""


class Moment(NamedTuple):
    """A moment on trio's clock, and how long the machine had been suspended by then."""

    time: float
    suspended: float

    @classmethod
    def now(cls) -> Moment:
        """The present moment."""
        return cls(trio.current_time(), suspended())


class Session:
    """A lease, and how long it is surely alive; :func:`open_session` makes it.

    Args:
        etcd: The connection.
        lease: The lease that etcd granted.
        sent: When it was requested.
        replaces: See :func:`open_session`.

    Attributes:
        lease: The present lease.
        over: Set when the lease has ended; a lease that replaces it has another event.
        gone: Whether etcd has reported that the lease does not exist.
    """

    def __init__(self, etcd: Etcd, lease: Lease, sent: Moment, *, replaces: bool = False) -> None:
        self.lease: Lease = lease
        self.over: trio.Event = trio.Event()
        self.gone: bool = False
        self._etcd = etcd
        self._sent = sent
        self._replaces = replaces
        self._replacing = trio.Lock()
        self._renewed = trio.Event()

    @property
    def deadline(self) -> float:
        """The time, on trio's clock, until which the lease is surely alive; a renewal moves it."""
        margin = max(_LEAST_MARGIN, self.lease.ttl * MARGIN)
        asleep = suspended() - self._sent.suspended
        return self._sent.time + self.lease.ttl - margin - max(0.0, asleep)

    @property
    def is_sure(self) -> bool:
        """Whether the lease is surely alive at this moment."""
        return not self.over.is_set() and trio.current_time() < self.deadline

    def renewed(self, lease: Lease, sent: Moment) -> None:
        """Note a lease that etcd granted for a request sent at ``sent``."""
        self.lease, self._sent = lease, sent
        self._renewed.set()
        self._renewed = trio.Event()

    async def wait_renewed(self) -> None:
        """Return after the next renewal of the lease; never if the session has ended."""
        await self._renewed.wait()

    async def replace(self, lease_id: int) -> None:
        """Replace a lease that does not exist any more, unless another task has done that.

        Raises:
            EtcdError: etcd granted no lease.
        """
        async with self._replacing:
            if self.lease.id != lease_id:
                return
            sent = Moment.now()
            lease = await self._etcd.lease_grant(self.lease.ttl)
            _log.warning("lease_lost", lease=f"{lease_id:x}", replaced_by=f"{lease.id:x}")
            over, self.over = self.over, trio.Event()
            self.renewed(lease, sent)
            over.set()

    async def keep_alive(self, report: Report) -> None:
        """Renew the lease until the session has ended.

        Args:
            report: Called for each renewal that failed.
        """
        with trio.CancelScope() as scope:
            while not self.over.is_set():
                scope.deadline = math.inf if self._replaces else self.deadline
                await trio.sleep_until(self._sent.time + self.lease.ttl / _RENEWALS)
                async for attempt in retrying(_BACKOFF, on=EtcdError, report=report):
                    with attempt:
                        await self._renew()
        self.over.set()

    async def _renew(self) -> None:
        sent, before = Moment.now(), self.lease
        within = before.ttl * _ANSWERED
        try:
            # A member that has lost its leader withholds the answer for longer than a lease lives.
            with trio.move_on_after(within) as scope:
                lease = await self._etcd.lease_keep_alive(before.id)
            if scope.cancelled_caught:
                raise Unavailable(f"no answer to a renewal of a lease within {within:g} s")
        except LeaseNotFound:
            if self._replaces:
                await self.replace(before.id)
            else:
                self.gone = True
                self.over.set()
            return
        if not self._replaces and not self.is_sure:
            # Another task may have acted on the end of the lease already.
            self.over.set()
        elif self.lease is before:
            self.renewed(lease, sent)

    async def revoke(self) -> str:
        """End the session and revoke its lease, so that no process waits for it to expire.

        Returns:
            Why it could not be revoked; empty if it does not exist any more.
        """
        self.over.set()
        if self.gone:
            return ""
        with trio.move_on_after(_REVOKE_TIMEOUT, shield=True):
            try:
                await self._etcd.lease_revoke(self.lease.id)
            except LeaseNotFound:
                return ""
            except EtcdError as error:
                return str(error)
            else:
                return ""
        return f"no answer within {_REVOKE_TIMEOUT:g} s"


def _log_unrevoked(lease_id: int, reason: str) -> None:
    _log.debug("lease_not_revoked", lease=f"{lease_id:x}", error=reason)


@asynccontextmanager
async def open_session(
    etcd: Etcd,
    ttl: int,
    *,
    replaces: bool = False,
    report: Report | None = None,
    runner: Runner | None = None,
    unrevoked: Callable[[int, str], object] = _log_unrevoked,
) -> AsyncIterator[Session]:
    """Keep a lease alive, by one task, until the context is left.

    Leaving the context ends the session and revokes the lease, in at most two seconds, also after
    a cancellation. If etcd does not answer by then, the lease expires. The loss of the lease does
    not cancel the body: see :attr:`Session.over`.

    Args:
        etcd: The connection; its request timeout should be at most half of ``ttl``.
        ttl: Seconds for which the lease lives without a renewal.
        replaces: Whether a lost lease is replaced by another one, after etcd has reported that it
            does not exist: for writes that compare a key attached to the lease. Otherwise the
            session ends when the lease is lost, or was not renewed while it was surely alive.
        report: Called for each renewal that failed; by default the first, second, fourth ... are
            logged.
        runner: Runs the task; by default an unexpected exception of it ends the context.
        unrevoked: Called at the end with the lease's id and the reason, if it was not revoked.

    Raises:
        EtcdError: etcd granted no lease.
    """
    sent = Moment.now()
    session = Session(etcd, await etcd.lease_grant(ttl), sent, replaces=replaces)
    keep_alive = partial(session.keep_alive, report or seldom(_log, "lease_not_renewed"))
    try:
        async with owned_tasks("the lease session") as nursery:
            if runner is None:
                nursery.start_soon(keep_alive)
            else:
                nursery.start_soon(runner, keep_alive)
            yield session
            nursery.cancel_scope.cancel("the session is left")
    finally:
        if reason := await session.revoke():
            unrevoked(session.lease.id, reason)
