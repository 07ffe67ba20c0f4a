"""The rights of a worker in etcd: pure functions on its requests.

Each key that the table of :class:`WorkerRights` does not list is refused. A worker may change every
action that it sees, since it reports on them. It reaches neither the store's other keys nor the
leases of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from etcd_actions.errors import InvalidRequest, PermissionDenied
from etcd_actions.etcd import permissions
from etcd_actions.etcd.api import Delete, Get, KeyRange, Operation, PermissionType, Put, Txn
from etcd_actions.model import Keyspace

MOST_DEPTH: Final = 4
"""The most levels of nested transactions: group commit has two."""

_READ, _WRITE = PermissionType.READ, PermissionType.WRITE
_LARGEST_LEASE: Final = 2**63

Owns = Callable[[int], bool]
"""Whether a worker owns a lease."""


class _Area(NamedTuple):
    """Some keys. A worker may read them, and may do with them what the attributes allow.

    Attributes:
        keys: The keys.
        puts: Whether it may write them, one at a time.
        deletes: Whether it may delete them, one at a time.
        leased: Whether each write has to attach the key to a lease of the worker. If not, no write
            may attach a lease, since etcd would delete the key with it.
    """

    keys: KeyRange
    puts: bool = False
    deletes: bool = False
    leased: bool = False


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

        if keys.own.startswith(keys.prefix):
            raise ValueError(f"the prefix {keys.prefix!r} has this package's own keys, too")
        self._areas = (
            _Area(below(keys.prefix), puts=True),
            _Area(below(keys.traces), puts=True),
            _Area(below(keys.aborts), puts=True, deletes=True),
            _Area(below(keys.claims), puts=True, deletes=True, leased=True),
            _Area(KeyRange.of_prefix(keys.workers), puts=True, deletes=True, leased=True),
            _Area(KeyRange.of_prefix(keys.catalog), puts=True, deletes=True, leased=True),
            _Area(KeyRange.of_prefix(keys.images)),
            _Area(below(keys.runs)),
            _Area(below(keys.run_tasks)),
            _Area(below(keys.histories)),
        )

    def check_read(self, keys: KeyRange) -> None:
        """Check a read of some keys, or a watch of them.

        Raises:
            PermissionDenied: A worker may not read all of them.
        """
        self._area(keys, _READ)

    def check_txn(self, txn: Txn, owns: Owns) -> None:
        """Check a transaction with all that it nests, in both branches.

        Raises:
            PermissionDenied: A worker may not do one of its operations.
            InvalidRequest: It is nested too deeply.
        """
        for operation in _operations(txn):
            match operation:
                case Put(key, _, lease):
                    self._check_put(key, lease, owns)
                case Delete(keys):
                    self._check_delete(keys)
                case Get(keys):
                    self.check_read(keys)
                case Txn():
                    for compare in operation.compare:
                        one = KeyRange.of_key(compare.key)
                        end = compare.range_end
                        self.check_read(KeyRange(compare.key, end) if end else one)

    def _check_put(self, key: bytes, lease: int, owns: Owns) -> None:
        one = KeyRange.of_key(key)
        area = self._area(one, _WRITE)
        if not area.puts:
            raise _denied(_WRITE, one)
        if area.leased != (lease != 0) or (lease and not owns(lease)):
            reason = "needs a lease of that worker" if area.leased else "may not have a lease"
            words = permissions.key_in_words(one)
            raise PermissionDenied(f"permission denied: a worker's write of {words} {reason}")

    def _check_delete(self, keys: KeyRange) -> None:
        if keys != KeyRange.of_key(keys.start) or not self._area(keys, _WRITE).deletes:
            raise _denied(_WRITE, keys)

    def _area(self, keys: KeyRange, kind: PermissionType) -> _Area:
        """The area that has all of the keys."""
        for area in self._areas:
            # An end of one zero byte, etcd's for all keys from the start on, is below each start.
            if area.keys.start <= keys.start < keys.end <= area.keys.end:
                return area
        raise _denied(kind, keys)


def check_lease(lease: int, owns: Owns) -> None:
    """Check that a worker may renew or end a lease.

    Raises:
        PermissionDenied: It is not the worker's.
    """
    if not 0 < lease < _LARGEST_LEASE or not owns(lease):
        raise PermissionDenied("permission denied: the lease belongs to another client of etcd")


def _operations(txn: Txn, depth: int = 1) -> Iterator[Operation]:
    """A transaction and all operations that it nests."""
    if depth > MOST_DEPTH:
        raise InvalidRequest(f"a transaction of a worker nests at most {MOST_DEPTH} levels")
    yield txn
    for each in (*txn.success, *txn.failure):
        if isinstance(each, Txn):
            yield from _operations(each, depth + 1)
        else:
            yield each


def _denied(kind: PermissionType, keys: KeyRange) -> PermissionDenied:
    verb = "read" if kind is _READ else "write"
    return PermissionDenied(
        f"permission denied: a worker may not {verb} {permissions.key_in_words(keys)}"
    )
