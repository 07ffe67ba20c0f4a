"""The cached results in etcd: entries that are not used expire with their leases."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec
import trio

from etcd_actions.catalog.cached_result import Entry, decode, encode
from etcd_actions.errors import DecodeError, LeaseNotFound
from etcd_actions.etcd.api import Etcd, KeyValue, Put, Txn
from etcd_actions.storage.store import Store

_DAY: Final = 24 * 3600.0
# A lease is shared by the writes of a tenth of the time that entries are kept.
_SHARED: Final = 10
# Seconds: a century. etcd accepts nine billion seconds.
_LONGEST: Final = 100 * 365 * _DAY


class Found(NamedTuple):
    """An entry with its key and value."""

    entry: Entry
    kv: KeyValue


class Catalog:
    """Reads and writes entries. Each method raises ``EtcdError`` if etcd fails.

    Entries are attached to leases, which the entries of a period share. The use of an entry moves
    it to a younger lease; without use for ``keep`` seconds it expires with its lease.

    Args:
        etcd: Grants leases.
        store: Reads and writes entries.
        keep: The least number of seconds that an entry is kept after its last use.
        clock: The time, aware.
    """

    def __init__(
        self,
        etcd: Etcd,
        store: Store,
        keep: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._etcd = etcd
        self._store = store
        self._keep = min(keep, _LONGEST)
        self._share = min(self._keep / _SHARED, _DAY)
        self._clock = clock
        self._lease = 0
        self._lease_until = -math.inf

    async def look(self, key: bytes, cache_key: str) -> Found | None:
        """The result of a call; None without one. An entry that cannot be decoded is deleted."""
        kv = await self._store.get(key)
        if kv is None:
            return None
        try:
            return Found(decode(kv.value, cache_key), kv)
        except DecodeError:
            await self._store.compare_and_delete(kv)
            return None

    async def put(self, key: bytes, entry: Entry) -> None:
        """Write a result; replaces another one."""
        while True:
            lease = await self._young_lease()
            value = encode(msgspec.structs.replace(entry, kept_until=self._kept_until()))
            try:
                await self._store.txn(Txn([], [Put(key, value, lease)]))
            except LeaseNotFound:
                self._forget_lease(lease)
            else:
                return

    async def renew(self, found: Found) -> None:
        """Renew the lease of a used entry, unless that was done recently."""
        entry = found.entry
        until = self._kept_until()
        if found.kv.lease and until - entry.kept_until < timedelta(seconds=self._share):
            return
        lease = await self._young_lease()
        value = encode(msgspec.structs.replace(entry, kept_until=until))
        try:
            await self._store.compare_and_put(found.kv, value, lease=lease)
        except LeaseNotFound:
            # The next use renews it.
            self._forget_lease(lease)

    async def forget(self, found: Found) -> None:
        """Delete an unusable entry, unless it was replaced."""
        await self._store.compare_and_delete(found.kv)

    def _kept_until(self) -> datetime:
        return self._clock() + timedelta(seconds=self._keep)

    async def _young_lease(self) -> int:
        """A lease that lasts at least as long as entries are kept."""
        if not self._lease or trio.current_time() >= self._lease_until:
            until = trio.current_time() + self._share
            granted = await self._etcd.lease_grant(math.ceil(self._keep + self._share))
            self._lease, self._lease_until = granted.id, until
        return self._lease

    def _forget_lease(self, lease: int) -> None:
        if lease == self._lease:
            self._lease = 0
