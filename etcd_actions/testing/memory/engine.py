"""A member without connections: the effect of each call on keys, leases and watchers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeAlias, cast

import trio

from etcd_actions.etcd import rpc
from etcd_actions.etcd.api import (
    Alarm,
    AlarmType,
    Delete,
    DeleteResult,
    Event,
    KeyRange,
    Lease,
    Member,
    Put,
    PutResult,
    RangeResult,
    Status,
    Txn,
    TxnResult,
)
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.rpc import Request, Result, Rpc
from etcd_actions.etcd.versions import EtcdVersion
from etcd_actions.testing.memory import transactions
from etcd_actions.testing.memory.keyspace import Keyspace, Refused
from etcd_actions.testing.memory.leases import Leases

Order: TypeAlias = Literal["any", "answers_first", "events_first"]

MOST_BYTES = 1024 * 1024 * 3 // 2
"""The size limit of a request: the default of etcd's ``--max-request-bytes``."""

_MEMBER = 0x6D65_6D62_6572_0001
_PUT_OVERHEAD = 16
_LATE = 5


class Watching(Protocol):
    """The receiver of each revision: a watch stream."""

    def publish(self, changes: Sequence[Event], /) -> None:
        """Receive the changes of the newest revision."""

    def look(self) -> None:
        """Compute the time of the next wake-up again."""


class Engine:
    """One member, without its connections.

    Args:
        order: As of ``MemoryStore``.
        seed: As of ``MemoryStore``.
        least_ttl: As of ``MemoryStore``.

    Attributes:
        endpoint: Its address for clients.
        version: The version of etcd whose behaviour it has.
        cluster_id: Another one for each store, as for each cluster.
        keyspace: The keys.
        alarms: The raised alarms.
        suspended: Whether no call and no stream gets an answer.
    """

    def __init__(self, *, order: Order, seed: int, least_ttl: int) -> None:
        self.endpoint = "memory:2379"
        self.version = EtcdVersion(3, 5, 16)
        self.cluster_id = random.SystemRandom().getrandbits(63) | 1
        self.keyspace = Keyspace()
        self.alarms: set[AlarmType] = set()
        self.suspended = False
        self._order = order
        self._random = random.Random(seed)
        self._leases = Leases(least_ttl)
        self._watching: dict[Watching, None] = {}

    def serves(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint is this member's."""
        return str(endpoint) == self.endpoint

    @contextmanager
    def watched_by(self, stream: Watching) -> Iterator[None]:
        """Deliver each revision to a stream until the context ends."""
        self._watching[stream] = None
        try:
            yield
        finally:
            del self._watching[stream]

    def advance(self) -> float:
        """Expire the leases whose time has passed; return when the next one expires."""
        for lease_id in self._leases.expired(trio.current_time()):
            self._revoke(lease_id)
        return self._leases.next_expiry

    def do(self, method: Rpc[Request, Result], request: Request, size: int) -> Result:
        """Do one call at once.

        Args:
            method: The method.
            request: Its request.
            size: Bytes of the request.

        Raises:
            Refused: etcd answers such a request with this error.
        """
        self.advance()
        if method.writes and size + _PUT_OVERHEAD > MOST_BYTES:
            raise Refused("etcdserver: request is too large")
        return cast(Result, _METHODS[method.name](self, request))

    def pauses(self, late_if: Order) -> int:
        """The cancellation points that a message takes to arrive: more if it is the late one."""
        if self._order == "any":
            return self._random.randrange(_LATE)
        return _LATE if self._order == late_if else 0

    def _commit(self) -> None:
        changes = self.keyspace.commit()
        if changes:
            for stream in list(self._watching):
                stream.publish(changes)

    def _put_key(self, put: Put) -> None:
        if not put.key:
            raise Refused("etcdserver: key is not provided")
        self.keyspace.put(put.key, put.value, put.lease)
        self._leases.attach(put.key, put.lease)

    def _delete_keys(self, keys: KeyRange) -> int:
        deleted = self.keyspace.delete(keys)
        for kv in deleted:
            self._leases.attach(kv.key, 0)
        return len(deleted)

    def _refuse_without_space(self) -> None:
        if AlarmType.NOSPACE in self.alarms:
            raise Refused("etcdserver: mvcc: database space exceeded")

    def _range(self, request: rpc.RangeRequest) -> RangeResult:
        found = self.keyspace.range(
            request.keys,
            revision=request.revision,
            limit=request.limit,
            keys_only=request.keys_only,
            count_only=request.count_only,
        )
        return found._replace(cluster_id=self.cluster_id)

    def _put(self, put: Put) -> PutResult:
        self._refuse_without_space()
        self._leases.require({put.lease} - {0})
        self._put_key(put)
        self._commit()
        return PutResult(self.keyspace.revision)

    def _delete(self, delete: Delete) -> DeleteResult:
        deleted = self._delete_keys(delete.keys)
        self._commit()
        return DeleteResult(deleted, self.keyspace.revision)

    def _txn(self, txn: Txn) -> TxnResult:
        transactions.check(txn)
        if transactions.puts_anything(txn):
            self._refuse_without_space()
        branches = transactions.decide(self.keyspace, txn)
        self._leases.require(transactions.leases_of(txn, branches))
        result = transactions.apply(txn, branches, self.keyspace, self._put_key, self._delete_keys)
        self._commit()
        return transactions.stamped(result, self.keyspace.revision)

    def _compact(self, request: rpc.CompactRequest) -> None:
        self.keyspace.compact(request.revision)

    def _grant(self, request: rpc.GrantRequest) -> Lease:
        self._refuse_without_space()
        lease = self._leases.grant(request.ttl, trio.current_time(), request.id)
        # Readers wait no longer than until the first lease expires.
        for stream in self._watching:
            stream.look()
        return lease

    def _revoke(self, lease_id: int) -> None:
        for key in self._leases.end(lease_id):
            self._delete_keys(KeyRange.of_key(key))
        self._commit()

    def _status(self) -> Status:
        size = self.keyspace.size + 1
        errors = tuple(f"memberID:{_MEMBER} alarm:{alarm.name}" for alarm in sorted(self.alarms))
        revision = self.keyspace.revision
        return Status(
            str(self.version),
            size,
            _MEMBER,
            revision,
            self.cluster_id,
            _MEMBER,
            size,
            0,
            errors=errors,
        )

    def _alarms(self) -> tuple[Alarm, ...]:
        return tuple(Alarm(_MEMBER, alarm) for alarm in sorted(self.alarms))

    def _members(self) -> tuple[Member, ...]:
        return (Member(_MEMBER, "memory", (f"http://{self.endpoint}",), False),)

    def _no_user(self) -> tuple[str, ...]:
        raise Refused("etcdserver: user name not found")

    def _no_role(self) -> tuple[str, ...]:
        raise Refused("etcdserver: role name not found")


_METHODS: dict[str, Callable[[Engine, Any], Any]] = {
    rpc.RANGE.name: Engine._range,
    rpc.PUT.name: Engine._put,
    rpc.DELETE.name: Engine._delete,
    rpc.TXN.name: Engine._txn,
    rpc.COMPACT.name: Engine._compact,
    rpc.LEASE_GRANT.name: Engine._grant,
    rpc.LEASE_KEEP_ALIVE.name: lambda store, lease_id: store._leases.renew(
        lease_id, trio.current_time()
    ),
    rpc.LEASE_REVOKE.name: Engine._revoke,
    rpc.STATUS.name: lambda store, _: store._status(),
    rpc.ALARMS.name: lambda store, _: store._alarms(),
    rpc.MEMBERS.name: lambda store, _: store._members(),
    rpc.AUTH_STATUS.name: lambda _store, _: False,
    rpc.USER_ROLES.name: lambda store, _: store._no_user(),
    rpc.ROLE_PERMISSIONS.name: lambda store, _: store._no_role(),
}
