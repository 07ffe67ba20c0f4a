"""The leases of an etcd whose answers, delays and clock are the test's."""

from __future__ import annotations

from typing import cast

import trio

from etcd_actions.errors import EtcdError, LeaseNotFound, Unavailable
from etcd_actions.etcd.api import Etcd, Lease
from etcd_actions.etcd.session import Moment, Session


class Lessor:
    """Grants leases, which expire on trio's clock, and are renewed at the middle of a call.

    Attributes:
        latency: Seconds that a call takes.
        failure: What renewals and revocations fail with; None for nothing.
        refuses_grants: Whether no lease is granted.
        expires: Until when each lease lives.
        asked: When each renewal was asked for.
        granted: The ids of all leases, in order.
        revoked: The ids of those that were revoked.
    """

    def __init__(self) -> None:
        self.latency = 0.0
        self.failure: EtcdError | None = None
        self.refuses_grants = False
        self.expires: dict[int, float] = {}
        self.asked: list[float] = []
        self.granted: list[int] = []
        self.revoked: list[int] = []
        self._ttls: dict[int, int] = {}

    @property
    def etcd(self) -> Etcd:
        """This, as what a session asks."""
        return cast("Etcd", self)

    async def lease_grant(self, ttl: int) -> Lease:
        """See :meth:`Etcd.lease_grant`."""
        await trio.sleep(self.latency / 2)
        if self.refuses_grants:
            raise Unavailable("no lease is granted")
        lease_id = len(self.granted) + 1
        self.granted.append(lease_id)
        self._ttls[lease_id] = ttl
        self.expires[lease_id] = trio.current_time() + ttl
        await trio.sleep(self.latency / 2)
        return Lease(lease_id, ttl)

    async def lease_keep_alive(self, lease_id: int) -> Lease:
        """See :meth:`Etcd.lease_keep_alive`."""
        self.asked.append(trio.current_time())
        await trio.sleep(self.latency / 2)
        if self.failure is not None:
            raise self.failure
        if not self.lives(lease_id):
            raise LeaseNotFound("there is no such lease")
        self.expires[lease_id] = trio.current_time() + self._ttls[lease_id]
        await trio.sleep(self.latency / 2)
        return Lease(lease_id, self._ttls[lease_id])

    async def lease_revoke(self, lease_id: int) -> None:
        """See :meth:`Etcd.lease_revoke`."""
        await trio.sleep(self.latency)
        if self.failure is not None:
            raise self.failure
        if not self.lives(lease_id):
            raise LeaseNotFound("there is no such lease")
        self.revoked.append(lease_id)
        self.drop(lease_id)

    def lives(self, lease_id: int) -> bool:
        """Whether etcd has a lease at this moment."""
        return trio.current_time() < self.expires.get(lease_id, 0)

    def drop(self, lease_id: int) -> None:
        """Have a lease gone, as by somebody who revokes it."""
        self.expires.pop(lease_id, None)


def session_of(ttl: int) -> Session:
    """A session that nobody keeps alive."""
    return Session(Lessor().etcd, Lease(1, ttl), Moment.now())
