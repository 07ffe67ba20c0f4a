"""The interface of etcd for the other packages: a few values and two protocols.

Keys and values are bytes, and revisions are integers. :class:`~etcd_actions.etcd.client.EtcdClient`
implements :class:`Etcd` over each transport. All transports behave alike, and raise only the errors
of :mod:`etcd_actions.errors`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol, TypeAlias

import msgspec


class KeyRange(NamedTuple):
    """The keys from ``start`` (included) to ``end`` (excluded), in byte order."""

    start: bytes
    end: bytes

    @classmethod
    def of_key(cls, key: bytes) -> KeyRange:
        """The range of the one key ``key``."""
        return cls(key, key + b"\0")

    @classmethod
    def of_prefix(cls, prefix: bytes) -> KeyRange:
        """All keys that begin with ``prefix``, which is neither empty nor all 0xFF."""
        stripped = prefix.rstrip(b"\xff")
        if not stripped:
            raise ValueError(f"{prefix!r} is not a prefix to watch: give a byte below 0xFF")
        return cls(prefix, stripped[:-1] + bytes((stripped[-1] + 1,)))

    @property
    def is_one_key(self) -> bool:
        """Whether it is the range of one key, as :meth:`of_key` returns it."""
        start, end = self
        return len(end) == len(start) + 1 and end == start + b"\0"

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.start <= key < self.end


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """One key as etcd stores it.

    Attributes:
        key: The key.
        value: The value.
        create_revision: The revision of the incarnation's first put.
        mod_revision: The revision of its last put.
        version: The number of its puts.
        lease: The id of its lease; 0 without one.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0

    def plain(self) -> KeyValue:
        """The same key, without the fields of a subclass."""
        if type(self) is KeyValue:
            return self
        return KeyValue(
            self.key,
            self.value,
            self.create_revision,
            self.mod_revision,
            self.version,
            self.lease,
        )


class Event(KeyValue, frozen=True, gc=False):
    """A change of one key: its new state and, if requested, the one before.

    A delete has no value, and ``create_revision`` and ``version`` are 0.
    """

    prev_kv: KeyValue | None = None

    @property
    def is_delete(self) -> bool:
        """Whether the key was deleted; any put has a version of at least 1."""
        return self.version == 0


class RangeResult(NamedTuple):
    """The answer to a read of a range.

    Attributes:
        kvs: The keys, in byte order.
        more: Whether the range has more keys than ``limit``.
        total: The number of all keys in the range.
        revision: The store's newest revision when it answered, also for a read at an older one.
        cluster_id: The id of the cluster.
    """

    kvs: list[KeyValue]
    more: bool
    total: int
    revision: int
    cluster_id: int


class CompareTarget(enum.IntEnum):
    """The field of a key that a :class:`Compare` compares; the numbers are etcd's."""

    VERSION = 0
    CREATE_REVISION = 1
    MOD_REVISION = 2
    VALUE = 3
    LEASE = 4


class CompareResult(enum.IntEnum):
    """How a :class:`Compare` compares; the numbers are etcd's."""

    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


class Compare(NamedTuple):
    """One condition of a transaction.

    With ``range_end`` it has to hold for every existing key of the range. A key that does not exist
    has the version and the revisions 0.
    """

    key: bytes
    target: CompareTarget
    result: CompareResult
    operand: int | bytes
    range_end: bytes = b""

    @classmethod
    def unchanged(cls, key: bytes, mod_revision: int) -> Compare:
        """The compare that a key has this ``mod_revision``; with 0, that it does not exist."""
        return cls(key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, mod_revision)

    @classmethod
    def incarnation(cls, key: bytes, create_revision: int) -> Compare:
        """The compare that a key has this ``create_revision``; with 0, that it does not exist."""
        return cls(key, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, create_revision)


class Get(NamedTuple):
    """A read inside a transaction; it returns the writes before it, too."""

    keys: KeyRange
    limit: int = 0
    keys_only: bool = False


class Put(NamedTuple):
    """A write inside a transaction. ``lease`` 0 detaches the key from any lease."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """A deletion inside a transaction."""

    keys: KeyRange


class Txn(NamedTuple):
    """If each of ``compare`` holds, do ``success``, else ``failure``: atomically, at one revision.

    A transaction may nest others. All compares, nested ones too, use the state before the
    outermost transaction.
    """

    compare: Sequence[Compare]
    success: Sequence[Operation]
    failure: Sequence[Operation] = ()


Operation: TypeAlias = Get | Put | Delete | Txn


class PutResult(NamedTuple):
    """A put was done, at ``revision``."""

    revision: int


class DeleteResult(NamedTuple):
    """``deleted`` keys were deleted, at ``revision``."""

    deleted: int
    revision: int


class TxnResult(NamedTuple):
    """The branch that was taken, the answers of its operations, and the revision after it."""

    succeeded: bool
    responses: list[OperationResult]
    revision: int


OperationResult: TypeAlias = RangeResult | PutResult | DeleteResult | TxnResult


class Lease(NamedTuple):
    """A lease and the seconds that etcd granted, which may be more than were requested."""

    id: int
    ttl: int


class Status(NamedTuple):
    """The state of one member and its cluster, as the member reports it.

    Sizes are in bytes: ``db_size`` is the file's, ``db_size_in_use`` the size after a
    defragmentation. ``db_size_quota`` is 0 before etcd 3.6. ``errors`` has its alarms and the lack
    of a leader, as text.
    """

    version: str
    db_size: int
    leader: int
    revision: int
    cluster_id: int
    member_id: int
    db_size_in_use: int = 0
    db_size_quota: int = 0
    is_learner: bool = False
    errors: tuple[str, ...] = ()


class AlarmType(enum.IntEnum):
    """The reason of an alarm; the numbers are etcd's."""

    NONE = 0
    NOSPACE = 1
    CORRUPT = 2


class Alarm(NamedTuple):
    """An alarm, and the member that raised it."""

    member_id: int
    type: AlarmType


class Member(NamedTuple):
    """A member of the cluster, and its addresses for clients."""

    id: int
    name: str
    client_urls: tuple[str, ...]
    is_learner: bool


class PermissionType(enum.IntEnum):
    """The operations that a permission allows; the numbers are etcd's."""

    READ = 0
    WRITE = 1
    READWRITE = 2


class Permission(NamedTuple):
    """A permission of a role on the keys from ``start`` to ``end``, as etcd stores it.

    An empty ``end`` means the one key ``start``; an ``end`` of one zero byte all keys from
    ``start`` on.
    """

    type: PermissionType
    start: bytes
    end: bytes


class WatchCreate(NamedTuple):
    """One watcher of a stream.

    The caller chooses ``watch_id``. It has to be new on its stream: etcd refuses the id of a
    cancelled watcher, too.
    """

    watch_id: int
    keys: KeyRange
    start_revision: int
    prev_kv: bool = False
    progress_notify: bool = False


class WatchResponse(msgspec.Struct, frozen=True, gc=False):
    """One message of a watch stream.

    ``revision`` is the store's. It is not a resume point if there are events. It is 0 in the
    message that cancels for a compaction, which has ``compact_revision``. With ``fragment`` the
    next message may have more events of the last revision. ``watch_id`` -1 with ``canceled``
    refuses a request: see ``cancel_reason``.
    """

    watch_id: int
    revision: int
    cluster_id: int
    events: Sequence[Event] = ()
    created: bool = False
    canceled: bool = False
    fragment: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""


class WatchStream(Protocol):
    """Many watchers over one stream; entered and left by :meth:`Etcd.watch`.

    Requests are queued and never wait. The messages of one watcher arrive in the order in which
    etcd sent them. Over ``grpc`` those of all watchers of a stream do.
    """

    def create(self, request: WatchCreate, /) -> None:
        """Request a watcher; the answer has ``created``."""

    def cancel(self, watch_id: int, /) -> None:
        """End a watcher; the answer has ``canceled``."""

    def request_progress(self) -> None:
        """Request a progress notification. Reliable from etcd 3.4.25 and 3.5.8 on.

        A transport that cannot send it on an open stream sends it once, when it opens one.
        """

    async def receive(self) -> Sequence[WatchResponse]:
        """Return all messages that have arrived, at least one. A cancellation loses none.

        Raises:
            trio.EndOfChannel: The stream was silent for longer than its transport can detect a
                broken connection: open another one.
            EtcdError: The stream failed; all messages before the failure were returned.
        """


class Etcd(Protocol):
    """A connection to an etcd cluster. Any number of tasks may use it at a time.

    Each call ends within the request timeout of the settings. It raises:

    - :class:`~etcd_actions.errors.Unavailable` if etcd was not reached;
    - :class:`~etcd_actions.errors.OutcomeUnknown` for a write whose answer was lost;
    - another :class:`~etcd_actions.errors.EtcdError` if etcd refused it;
    - :class:`trio.ClosedResourceError` after the connection is closed.

    A cancelled write may have been applied.
    """

    async def range(
        self,
        keys: KeyRange,
        *,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
    ) -> RangeResult:
        """Read ``keys``, linearizable, in key order, at ``revision`` (0: the newest)."""

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> PutResult:
        """Write one key, whatever its present value."""

    async def delete(self, keys: KeyRange) -> DeleteResult:
        """Delete ``keys``."""

    async def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction."""

    async def compact(self, revision: int, *, physical: bool = False) -> None:
        """Remove the history below ``revision``, which itself stays readable."""

    async def lease_grant(self, ttl: int) -> Lease:
        """Grant a lease of ``ttl`` seconds."""

    async def lease_keep_alive(self, lease_id: int) -> Lease:
        """Renew a lease once; raises :class:`~etcd_actions.errors.LeaseNotFound`."""

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys."""

    async def status(self) -> Status:
        """Read the state of one member. Newer versions of etcd allow that to the role root only."""

    def watch(self) -> AbstractAsyncContextManager[WatchStream]:
        """Open a watch stream; leaving the context closes it."""
