"""Reads keys, and changes them by compare-and-swap."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from etcd_actions.errors import Compacted, EtcdError, FutureRevision, Unavailable, first_error
from etcd_actions.etcd.api import (
    Compare,
    Delete,
    Etcd,
    Get,
    KeyRange,
    KeyValue,
    Operation,
    OperationResult,
    Put,
    RangeResult,
    Txn,
    TxnResult,
)
from etcd_actions.etcd.paging import PAGE_BYTES, Rest, open_pages, read_page, read_pages
from etcd_actions.watch import Change

_NO_LEADER = "it was not written: this process is not the leader any more"

Commit = Callable[[Txn], Awaitable[TxnResult]]
Read = Callable[[Get], Awaitable[RangeResult]]


class CasResult(NamedTuple):
    """The result of a compare-and-swap: ``current`` is the present key; None if it is deleted."""

    applied: bool
    current: KeyValue | None


class KeyChange:
    """A change of one key, as a part of a transaction with others.

    Args:
        key: The key.
        change: Returns the new value for the present one; None for no change. May raise.
        seen: The key as it was last read or written; None if it was absent or not read.

    Attributes:
        seen: The argument; each transaction updates it.
    """

    __slots__ = ("_change", "_value", "key", "seen")

    def __init__(
        self,
        key: bytes,
        change: Callable[[KeyValue | None], bytes | None],
        seen: KeyValue | None = None,
    ) -> None:
        self.key = key
        self.seen = seen
        self._change = change
        self._value: bytes | None = None

    def operations(self) -> tuple[Compare, Sequence[Put], Get]:
        """The compare of a transaction, its puts if that holds, and its read if it does not."""
        self._value = self._change(self.seen)
        revision = 0 if self.seen is None else self.seen.mod_revision
        unchanged = Compare.unchanged(self.key, revision)
        puts = () if self._value is None else (Put(self.key, self._value),)
        return unchanged, puts, Get(KeyRange.of_key(self.key))

    def written(self, revision: int) -> None:
        """Note that the transaction was done, at a revision."""
        if self._value is not None:
            created, version = revision, 1
            if self.seen is not None:
                created, version = self.seen.create_revision, self.seen.version + 1
            self.seen = KeyValue(self.key, self._value, created, revision, version)

    def found(self, kv: KeyValue | None) -> None:
        """Note the key that the transaction read instead."""
        self.seen = kv


class Store:
    """Reads and writes single keys.

    Every method raises :class:`~etcd_actions.errors.EtcdError` if etcd refuses or is not reached. A
    cancelled write may have been applied.

    Args:
        etcd: The connection.
        commit: Does a transaction, usually by group commit; by default ``etcd`` does.
        read: Reads a key, usually by group commit; by default ``etcd`` does.
    """

    def __init__(self, etcd: Etcd, commit: Commit | None = None, read: Read | None = None) -> None:
        self._etcd = etcd
        self._commit = commit or etcd.txn
        self._read = read

    async def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction. It may be grouped with others; each succeeds or fails by itself."""
        return await self._commit(txn)

    async def read_txn(self, txn: Txn) -> TxnResult:
        """Do a transaction that only reads, ungrouped, so that etcd does not write it to its log.

        A transaction that only compares gets a read: without one the member answers from its own
        state, which may be older than that of the others.
        """
        if not txn.success and not txn.failure:
            txn = Txn(txn.compare, (Get(KeyRange.of_key(txn.compare[0].key)),))
        return await self._etcd.txn(txn)

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """The present key, or the key at ``revision``; None if it does not exist there.

        Reads of the present key may be grouped with those of other tasks.
        """
        keys = KeyRange.of_key(key)
        if revision or self._read is None:
            found = await self._etcd.range(keys, revision=revision)
        else:
            found = await self._read(Get(keys))
        return found.kvs[0] if found.kvs else None

    async def get_all(self, *keys: bytes) -> list[KeyValue | None]:
        """Several keys at one revision; None for each that does not exist."""
        result = await self.txn(Txn((), [Get(KeyRange.of_key(key)) for key in keys]))
        return [key_of(response) for response in result.responses]

    async def read(self, keys: KeyRange, *, revision: int = 0) -> tuple[list[KeyValue], int]:
        """All keys of a range, and the revision at which all pages were read."""
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

    def pages(
        self, keys: KeyRange, *, page_bytes: int = PAGE_BYTES, keys_only: bool = False
    ) -> AsyncGenerator[RangeResult]:
        """A range page by page at one revision. A caller that leaves early has to close it."""
        return read_pages(self._etcd, keys, page_bytes=page_bytes, keys_only=keys_only)

    async def page(
        self, rest: Rest, *, page_bytes: int = PAGE_BYTES
    ) -> tuple[RangeResult, Rest | None]:
        """The next page of a range in its present state, and the rest; None after the last page.

        Each page has a revision of its own.
        """
        return await read_page(self._etcd, rest, page_bytes=page_bytes)

    async def each(self, keys: KeyRange) -> AsyncGenerator[KeyValue]:
        """All keys of a range at one revision. A caller that leaves early has to close it."""
        async with aclosing(self.pages(keys)) as pages:
            async for page in pages:
                for kv in page.kvs:
                    yield kv

    async def reread(self, change: Change) -> Change | None:
        """Restore the value of a change; None if a newer change makes it unnecessary.

        The value is read at the change's own revision: the newest value could overtake changes that
        are still to come, such as a delete. If the revision is compacted, or a restored store does
        not have it, the value is restored only if it is the newest.
        """
        try:
            kv = await self.get(change.key, revision=change.mod_revision)
        except (Compacted, FutureRevision):
            kv = await self.get(change.key)
        if kv is None or kv.mod_revision != change.mod_revision:
            return None
        return change.with_value(kv)

    async def newest(self, change: Change) -> Change | None:
        """Restore the value of a change; None if the key has a newer one."""
        kv = await self.get(change.key)
        if kv is None or kv.mod_revision != change.mod_revision:
            return None
        return change.with_value(kv)

    async def compare_and_put(
        self,
        seen: KeyValue,
        value: bytes,
        *,
        lease: int | None = None,
        fence: Compare | None = None,
        companions: Sequence[KeyChange] = (),
    ) -> CasResult:
        """Replace ``seen`` by ``value`` if it has not changed.

        Equal bytes with the same lease are not written, as a Kubernetes API server does.

        Args:
            seen: The key as it was read.
            value: Its new value.
            lease: Its new lease; by default the present one.
            fence: A further compare. If it fails, the key is unchanged.
            companions: Changes of other keys in the same transaction: all are made, or none.

        Raises:
            OutcomeUnknown: It may have been applied. The same call may be repeated: it compares
                the revision.
            LeaseNotFound: There is no such lease. If the present lease has just expired, etcd
                deletes the key, too.
        """
        if lease is None:
            lease = seen.lease
        if value == seen.value and lease == seen.lease:
            return CasResult(applied=False, current=seen)
        put = Put(seen.key, value, lease)
        applied, current = await self._if_unchanged(seen, put, fence, companions)
        if applied is None:
            return CasResult(applied=False, current=current)
        written = KeyValue(seen.key, value, seen.create_revision, applied, seen.version + 1, lease)
        return CasResult(applied=True, current=written)

    async def compare_and_delete(
        self,
        seen: KeyValue,
        *,
        fence: Compare | None = None,
        companions: Sequence[KeyChange] = (),
    ) -> CasResult:
        """Delete ``seen`` if it has not changed, as :meth:`compare_and_put` replaces it.

        Raises:
            OutcomeUnknown: It may have been applied. The same call may be repeated.
        """
        delete = Delete(KeyRange.of_key(seen.key))
        applied, current = await self._if_unchanged(seen, delete, fence, companions)
        return CasResult(applied is not None, current)

    async def replace(
        self, key: bytes, value: bytes, before: KeyValue | None
    ) -> tuple[int, KeyValue | None]:
        """Write a key if it is unchanged since ``before``; None stands for a missing key.

        Returns:
            The revision of the write and None; or 0 and the present key.

        Raises:
            OutcomeUnknown: It may have been applied. The same call may be repeated.
        """
        unchanged = Compare.unchanged(key, 0 if before is None else before.mod_revision)
        result = await self._commit(
            Txn([unchanged], [Put(key, value)], [Get(KeyRange.of_key(key))])
        )
        return (result.revision, None) if result.succeeded else (0, key_of(result.responses[0]))

    async def get_or_create(self, key: bytes, value: Callable[[], bytes]) -> KeyValue:
        """Read a key; if it does not exist, create it. After a cancellation it may exist.

        Raises:
            Unavailable: Another client deleted it during the call.
        """
        kv = await self.get(key)
        if kv is None:
            await self.replace(key, value(), None)
            # Another process may have created it first: then its value is returned.
            kv = await self.get(key)
        if kv is None:
            name = key.decode(errors="backslashreplace")
            raise Unavailable(f"{name} was deleted while it was created")
        return kv

    async def change(self, changes: Sequence[KeyChange]) -> bool:
        """Make changes in one transaction; False, and none is made, if a key differs from ``seen``.

        No transaction is sent if none of them changes the last seen value.
        """
        operations = [change.operations() for change in changes]
        puts = [put for _, each, _ in operations for put in each]
        if not puts:
            return True
        compares, _, gets = zip(*operations, strict=True)
        result = await self._commit(Txn(compares, puts, gets))
        _learn(changes, result)
        return result.succeeded

    async def _if_unchanged(
        self,
        seen: KeyValue,
        change: Put | Delete,
        fence: Compare | None,
        companions: Sequence[KeyChange],
    ) -> tuple[int | None, KeyValue | None]:
        """The revision of the change; or None and the present key."""
        key = seen.key
        compares = [Compare.unchanged(key, seen.mod_revision)]
        if fence is not None:
            compares.append(fence)
        changes: list[Put | Delete] = [change]
        reads = [Get(KeyRange.of_key(key))]
        for companion in companions:
            compare, puts, get = companion.operations()
            compares.append(compare)
            changes += puts
            reads.append(get)
        result = await self._commit(Txn(compares, changes, reads))
        if result.succeeded:
            _learn(companions, result)
            return result.revision, None
        _learn(companions, result, 1)
        return None, key_of(result.responses[0])


class Fence:
    """A compare for all writes of a :class:`FencedStore`.

    Attributes:
        compare: The compare of one key's ``create_revision``; None for none.
    """

    def __init__(self) -> None:
        self.compare: Compare | None = None


class FencedStore(Store):
    """A store whose writes are made only while a fence holds.

    Otherwise each raises :class:`~etcd_actions.errors.Unavailable`, and writes nothing.

    Args:
        store: The store without a fence.
        fence: The fence; it is read for each write.
    """

    def __init__(self, store: Store, fence: Fence) -> None:
        super().__init__(store._etcd, self._commit_fenced, store._read)
        self._unfenced = store._commit
        self._fence = fence

    async def _commit_fenced(self, txn: Txn) -> TxnResult:
        """Do a transaction that compares the fence, too; one that only reads needs no fence."""
        fence = self._fence.compare
        if fence is None or not (_writes(txn.success) or _writes(txn.failure)):
            return await self._unfenced(txn)
        if _writes(txn.failure):
            result = await self._unfenced(Txn((fence,), (txn,)))
            if result.succeeded and isinstance(inner := result.responses[0], TxnResult):
                return inner
            raise Unavailable(_NO_LEADER)
        result = await self._unfenced(Txn((*txn.compare, fence), txn.success, txn.failure))
        if not result.succeeded:
            # A fence that did not hold never holds again, so a later read shows whether it did.
            holder = await self.get(fence.key)
            if (0 if holder is None else holder.create_revision) != fence.operand:
                raise Unavailable(_NO_LEADER)
        return result


def _writes(operations: Iterable[Operation]) -> bool:
    """Whether one of these operations may write."""
    return any(
        _writes((*each.success, *each.failure)) if isinstance(each, Txn) else type(each) is not Get
        for each in operations
    )


def _learn(changes: Iterable[KeyChange], result: TxnResult, start: int = 0) -> None:
    """Update changes by a result: they were made, or the present keys were read."""
    for index, change in enumerate(changes, start):
        if result.succeeded:
            change.written(result.revision)
        else:
            change.found(key_of(result.responses[index]))


def key_of(response: OperationResult) -> KeyValue | None:
    """The key in the answer to a read of one key; None for a missing key, and for a write."""
    return response.kvs[0] if isinstance(response, RangeResult) and response.kvs else None
