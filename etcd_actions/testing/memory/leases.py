"""Leases and their keys, as etcd's lessor keeps them."""

from __future__ import annotations

from collections.abc import Iterable

from etcd_actions.etcd.api import Lease
from etcd_actions.testing.memory.keyspace import Refused

MOST_TTL = 9_000_000_000

_FIRST_ID = 0x6D65_6D6F_7279_0001


class Leases:
    """All leases, of at least some seconds; times are trio's."""

    def __init__(self, least_ttl: int) -> None:
        self._least_ttl = least_ttl
        self._next = _FIRST_ID
        self._ttls: dict[int, int] = {}
        self._expires: dict[int, float] = {}
        self._keys: dict[int, set[bytes]] = {}
        self._lease_of: dict[bytes, int] = {}

    @property
    def next_expiry(self) -> float:
        """When the next lease expires unless it is renewed; infinite without one."""
        return min(self._expires.values(), default=float("inf"))

    def expired(self, now: float) -> list[int]:
        """The leases whose time has passed, in the order of their expiry."""
        over = [lease for lease, end in self._expires.items() if end <= now]
        return sorted(over, key=self._expires.__getitem__)

    def grant(self, ttl: int, now: float, lease_id: int = 0) -> Lease:
        """Make a lease, with the next id unless one is given."""
        if ttl > MOST_TTL:
            raise Refused("etcdserver: too large lease TTL")
        if lease_id in self._ttls:
            raise Refused("etcdserver: lease already exists")
        lease = Lease(lease_id or self._next, max(ttl, self._least_ttl))
        self._next += not lease_id
        self._ttls[lease.id] = lease.ttl
        self._expires[lease.id] = now + lease.ttl
        self._keys[lease.id] = set()
        return lease

    def renew(self, lease_id: int, now: float) -> Lease:
        """Renew a lease; a TTL of 0 means that there is no such lease."""
        if lease_id not in self._ttls:
            return Lease(lease_id, 0)
        self._expires[lease_id] = now + self._ttls[lease_id]
        return Lease(lease_id, self._ttls[lease_id])

    def require(self, lease_ids: Iterable[int]) -> None:
        """Refuse leases that do not exist."""
        if any(lease_id not in self._ttls for lease_id in lease_ids):
            raise Refused("etcdserver: requested lease not found")

    def end(self, lease_id: int) -> list[bytes]:
        """Remove a lease; return its keys in order, for their deletion."""
        self.require([lease_id])
        del self._ttls[lease_id], self._expires[lease_id]
        return sorted(self._keys.pop(lease_id))

    def attach(self, key: bytes, lease_id: int) -> None:
        """Attach a key to a lease and to no other; 0 for none."""
        self._keys.get(self._lease_of.pop(key, 0), set()).discard(key)
        if lease_id:
            self._lease_of[key] = lease_id
            self._keys[lease_id].add(key)
