"""TaskActions in etcd: reading one key, and changing it if it is still what was read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from etcd_actions.errors import Compacted, EtcdError, FutureRevision, first_error
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Etcd,
    Get,
    KeyRange,
    KeyValue,
    Put,
    RangeResult,
    Txn,
    TxnResult,
)
from etcd_actions.etcd.paging import open_pages
from etcd_actions.watch import Change

Commit = Callable[[Txn], Awaitable[TxnResult]]


class CasResult(NamedTuple):
    """What a compare-and-swap did: ``current`` is the key as it is now, None if it is gone."""

    applied: bool
    current: KeyValue | None


class Store:
    """Reads and writes of single keys.

    Every method raises :class:`~etcd_actions.errors.EtcdError` when etcd does not do it. A
    cancelled write may have been applied.

    Args:
        etcd: The connection.
        commit: Does the transactions, as a rule by group commit; etcd itself by default.
    """

    def __init__(self, etcd: Etcd, commit: Commit | None = None) -> None:
        self._etcd = etcd
        self._commit = commit or etcd.txn

    async def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction, maybe in one with others, each by itself."""
        return await self._commit(txn)

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """The key as it is, or was at ``revision``; None if it does, or did, not exist."""
        result = await self._etcd.range(KeyRange.of_key(key), revision=revision)
        return result.kvs[0] if result.kvs else None

    async def read(self, keys: KeyRange, *, revision: int = 0) -> tuple[list[KeyValue], int]:
        """All of a range and the revision that it was read at, which is one for all pages."""
        found: list[KeyValue] = []
        try:
            async with open_pages(self._etcd, keys, revision=revision) as pages:
                async for page in pages:
                    found += page.kvs
                    revision = page.revision
        except* EtcdError as group:
            error = first_error(group)
        else:
            return found, revision
        raise error

    async def reread(self, change: Change) -> Change | None:
        """Restore the value of a change, None where nobody needs it any more.

        The value is read at the change's own revision: the newest one would run ahead of
        changes, a delete for instance, that are still to come. Where a compaction took that
        revision, or a restored store never had it, it is good only if it is the newest.
        """
        try:
            kv = await self.get(change.key, revision=change.mod_revision)
        except (Compacted, FutureRevision):
            kv = await self.get(change.key)
        if kv is None or kv.mod_revision != change.mod_revision:
            return None
        return msgspec.structs.replace(
            change, value=kv.value, version=kv.version, lease=kv.lease
        )

    async def compare_and_put(self, seen: KeyValue, value: bytes) -> CasResult:
        """Replace ``seen`` by ``value`` if it has not changed; its lease stays.

        Equal bytes are not written, as a Kubernetes API server does.

        Raises:
            OutcomeUnknown: It may have been applied. Trying the same again is safe: it
                compares the revision.
            LeaseNotFound: The lease is about to take the key with it.
        """
        if value == seen.value:
            return CasResult(applied=False, current=seen)
        unchanged = Compare(
            seen.key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, seen.mod_revision
        )
        result = await self.txn(
            Txn(
                [unchanged],
                [Put(seen.key, value, seen.lease)],
                [Get(KeyRange.of_key(seen.key))],
            )
        )
        if result.succeeded:
            written = msgspec.structs.replace(
                seen, value=value, mod_revision=result.revision, version=seen.version + 1
            )
            return CasResult(applied=True, current=written)
        found = result.responses[0]
        assert isinstance(found, RangeResult)
        return CasResult(applied=False, current=found.kvs[0] if found.kvs else None)
