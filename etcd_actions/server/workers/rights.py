"""The rights of a worker in etcd: pure functions on its requests.

Each key that the table of :class:`WorkerRights` does not list is refused. A worker may change every
action that it sees: it reports on actions, and aborts, visits and new children change those of
other workers, too. Claims and offers belong to the worker's name that created them. A worker does
not reach the store's other keys.

A transaction also has limits, so that it cannot block etcd or exhaust its memory: see
:data:`MOST_GETS` and the following.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from etcd_actions.errors import InvalidRequest, NotForWorkers
from etcd_actions.etcd import permissions
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Get,
    KeyRange,
    Operation,
    PermissionType,
    Put,
    Txn,
)
from etcd_actions.model import Keyspace
from etcd_actions.server.workers.leases import LeaseKind

MOST_DEPTH: Final = 4
"""The most levels of nested transactions: group commit has two."""
MOST_GETS: Final = 256
"""The most reads of a transaction; a group that has more is halved."""
MOST_RANGES: Final = 64
"""The most reads of ranges of a transaction, and as many compares of ranges."""
MOST_OF_A_SMALL_VALUE: Final = 32 * 1024
"""Bytes of a marker, a claim or an offer: a transaction may read many of them."""

_READ, _WRITE = PermissionType.READ, PermissionType.WRITE
_LARGEST_LEASE: Final = 2**63

Owned = Callable[[int], LeaseKind | None]
"""The kind of a lease; None if the worker does not own it."""

_Equal: TypeAlias = Mapping[tuple[bytes, CompareTarget], int | bytes]
"""The operands of the compares of one level that have to be equal, by key and target."""


class _Area(NamedTuple):
    """Some keys. A worker may read them, and may do with them what the attributes allow.

    Attributes:
        keys: The keys.
        puts: Whether it may write them, one at a time.
        deletes: Whether it may delete them, one at a time.
        leased: Whether each write has to attach the key to a lease of the worker. If not, no write
            may attach a lease, since etcd would delete the key with it.
        owned: Whether a key belongs to the name that created it: it is created only if it is
            absent, on a lease that ends soon without its owner, and deleted only by its name.
        small: Whether values are small, and ranges may be read and compared in a transaction.
    """

    keys: KeyRange
    puts: bool = False
    deletes: bool = False
    leased: bool = False
    owned: bool = False
    small: bool = False


class WorkerRights:
    """The rights of workers on one prefix.

    Args:
        keys: The keyspace.
        namespace: The only namespace whose actions workers see; None for all.

    Raises:
        ValueError: Actions and this package's own keys have no separate prefixes.
    """

    def __init__(self, keys: Keyspace, namespace: str | None) -> None:
        def below(prefix: bytes) -> KeyRange:
            only = b"" if namespace is None else namespace.encode() + b"/"
            return KeyRange.of_prefix(prefix + only)

        def owned(keys: KeyRange) -> _Area:
            return _Area(keys, puts=True, deletes=True, leased=True, owned=True, small=True)

        if keys.own.startswith(keys.prefix):
            raise ValueError(f"the prefix {keys.prefix!r} has this package's own keys, too")
        entries = KeyRange.of_prefix(keys.catalog + b"entries/")
        self._areas = (
            _Area(below(keys.prefix), puts=True),
            _Area(below(keys.traces), puts=True),
            _Area(below(keys.aborts), puts=True, deletes=True, small=True),
            owned(below(keys.claims)),
            owned(KeyRange.of_prefix(keys.workers)),
            owned(KeyRange.of_prefix(keys.catalog + b"reserved/")),
            _Area(entries, puts=True, deletes=True, leased=True),
            _Area(KeyRange.of_prefix(keys.images)),
            _Area(below(keys.runs)),
            _Area(below(keys.run_tasks)),
            _Area(below(keys.histories)),
        )

    def check_read(self, keys: KeyRange) -> None:
        """Check a read of some keys, or a watch of them.

        Raises:
            NotForWorkers: A worker may not read all of them.
        """
        self._area(keys, _READ)

    def check_txn(self, txn: Txn, owned: Owned) -> int:
        """Check a transaction with all that it nests, in both branches; returns its reads.

        Raises:
            NotForWorkers: A worker may not do one of its operations.
            InvalidRequest: It is nested too deeply, or reads too much.
        """
        check = _Check(self._area, owned)
        check.txn(txn, ())
        return check.gets

    def _area(self, keys: KeyRange, kind: PermissionType) -> _Area:
        """The area that has all of the keys."""
        for area in self._areas:
            # An end of one zero byte, etcd's for all keys from the start on, is below each start.
            if area.keys.start <= keys.start < keys.end <= area.keys.end:
                return area
        raise _denied(kind, keys)


class _Check:
    """The check of one transaction.

    Args:
        area: Returns the area of some keys, or raises NotForWorkers.
        owned: See :data:`Owned`.

    Attributes:
        gets: Number of reads.
    """

    def __init__(self, area: Callable[[KeyRange, PermissionType], _Area], owned: Owned) -> None:
        self._area = area
        self._owned = owned
        self.gets = 0
        # The reads of ranges, the compares of ranges, and those of ranges of actions.
        self._ranges = self._compared = self._wide = 0

    def txn(self, txn: Txn, levels: Sequence[_Equal]) -> None:
        """Check one level of a transaction.

        Args:
            txn: The level.
            levels: The compares that hold where it is done, of the levels above.
        """
        if len(levels) >= MOST_DEPTH:
            raise InvalidRequest(f"a transaction of a worker nests at most {MOST_DEPTH} levels")
        for compare in txn.compare:
            self._compare(compare)
        self._branch(txn.success, (*levels, _equal_operands(txn.compare)))
        if txn.compare:
            self._branch(txn.failure, (*levels, {}))
        else:
            self._never(txn.failure)

    def _never(self, operations: Iterable[Operation]) -> None:
        """Check a branch that is never taken: group commit has a put there for etcd's quota."""
        for operation in operations:
            if not isinstance(operation, Put) or operation.value or operation.lease:
                raise InvalidRequest("a branch that is never taken has empty puts only")
            one = KeyRange.of_key(operation.key)
            if not self._area(one, _WRITE).puts:
                raise _denied(_WRITE, one)

    def _branch(self, operations: Iterable[Operation], levels: Sequence[_Equal]) -> None:
        for operation in operations:
            match operation:
                case Put():
                    self._put(operation, levels)
                case Delete(keys):
                    self._delete(keys, levels)
                case Get(keys):
                    self._get(keys)
                case Txn():
                    self.txn(operation, levels)

    def _compare(self, compare: Compare) -> None:
        if not compare.range_end:
            self._area(KeyRange.of_key(compare.key), _READ)
            return
        keys = KeyRange(compare.key, compare.range_end)
        if self._area(keys, _READ).small or keys.is_one_key:
            self._compared += 1
        else:
            # The end of an abort looks once whether its run has newer actions.
            self._wide += 1
        if self._compared > MOST_RANGES or self._wide > 1:
            raise InvalidRequest(
                f"a transaction of a worker compares at most {MOST_RANGES} ranges, and one of "
                "actions"
            )

    def _get(self, keys: KeyRange) -> None:
        area = self._area(keys, _READ)
        self.gets += 1
        if not keys.is_one_key:
            self._ranges += 1
            if not area.small:
                raise NotForWorkers(
                    "permission denied: a worker reads no range of "
                    f"{permissions.key_in_words(area.keys)} in a transaction"
                )
        if self.gets > MOST_GETS or self._ranges > MOST_RANGES:
            raise InvalidRequest(
                f"a transaction of a worker has at most {MOST_GETS} reads, and {MOST_RANGES} of "
                "ranges"
            )

    def _put(self, put: Put, levels: Sequence[_Equal]) -> None:
        key, value, lease = put
        one = KeyRange.of_key(key)
        area = self._area(one, _WRITE)
        if not area.puts:
            raise _denied(_WRITE, one)
        kind = self._owned(lease) if lease else None
        if area.leased != (lease != 0) or (lease and kind is None):
            raise _lacks(one, "needs a lease of its own" if area.leased else "may not have a lease")
        if area.small and len(value) > MOST_OF_A_SMALL_VALUE:
            raise InvalidRequest(
                f"{permissions.key_in_words(one)} has at most {MOST_OF_A_SMALL_VALUE} bytes"
            )
        if not area.owned:
            return
        if kind is not LeaseKind.SHORT:
            raise _lacks(one, "needs a lease of an hour at most")
        absent = (key, CompareTarget.CREATE_REVISION)
        if all(held.get(absent) != 0 for held in levels):
            raise _lacks(one, "is created, and not replaced: compare that it does not exist")

    def _delete(self, keys: KeyRange, levels: Sequence[_Equal]) -> None:
        area = self._area(keys, _WRITE)
        if not keys.is_one_key or not area.deletes:
            raise _denied(_WRITE, keys)
        if not area.owned:
            return
        of_lease = (keys.start, CompareTarget.LEASE)
        for held in levels:
            lease = held.get(of_lease)
            # One without a lease has no owner, and would never expire.
            if isinstance(lease, int) and (not lease or self._owned(lease) is not None):
                return
        raise _lacks(keys, "is deleted by its owner: compare that it has a lease of the worker")


def check_lease(lease: int, owned: Owned) -> None:
    """Check that a worker may renew or end a lease.

    Raises:
        NotForWorkers: It is not the worker's.
    """
    if not 0 < lease < _LARGEST_LEASE or owned(lease) is None:
        raise NotForWorkers("permission denied: the lease belongs to another client of etcd")


def _equal_operands(compares: Iterable[Compare]) -> _Equal:
    """The operands of the compares of single keys that have to be equal."""
    return {
        (each.key, each.target): each.operand
        for each in compares
        if each.result is CompareResult.EQUAL and not each.range_end
    }


def _lacks(keys: KeyRange, reason: str) -> NotForWorkers:
    return NotForWorkers(
        f"permission denied: {permissions.key_in_words(keys)} of a worker {reason}"
    )


def _denied(kind: PermissionType, keys: KeyRange) -> NotForWorkers:
    verb = "read" if kind is _READ else "write"
    return NotForWorkers(
        f"permission denied: a worker may not {verb} {permissions.key_in_words(keys)}"
    )
