"""The methods of etcd's API that are used here, each with its request and its result.

A transport encodes the requests and decodes the results of all of them, by
:mod:`~etcd_actions.etcd.messages` and :mod:`~etcd_actions.etcd.gateway.wire`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from etcd_actions.etcd.api import (
    Alarm,
    Delete,
    DeleteResult,
    KeyRange,
    Lease,
    Member,
    Permission,
    Put,
    PutResult,
    RangeResult,
    Status,
    Txn,
    TxnResult,
)

Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False, kw_only=True)
class Rpc(Generic[Request, Result]):
    """One method.

    Attributes:
        name: Service and method, as in gRPC's path.
        path: Its path in the JSON gateway, below the API prefix.
        writes: Whether it writes: after a lost answer its outcome is unknown.
        streams: Whether it is a stream; one request and one answer are used.
        needs_leader: Whether a member without a leader has to refuse it at once.
        authenticated: Whether it is sent with the user's token.
    """

    name: str
    path: str
    writes: bool = False
    streams: bool = False
    needs_leader: bool = True
    authenticated: bool = True


class RangeRequest(NamedTuple):
    """See :meth:`~etcd_actions.etcd.api.Etcd.range`."""

    keys: KeyRange
    revision: int = 0
    limit: int = 0
    keys_only: bool = False
    count_only: bool = False


class CompactRequest(NamedTuple):
    """See :meth:`~etcd_actions.etcd.api.Etcd.compact`."""

    revision: int
    physical: bool


class GrantRequest(NamedTuple):
    """See :meth:`~etcd_actions.etcd.api.Etcd.lease_grant`. etcd chooses the id if it is 0."""

    ttl: int
    id: int = 0


class AuthenticateRequest(NamedTuple):
    """A user's name and password. Its text hides the password."""

    name: str
    password: str

    def __repr__(self) -> str:
        return f"AuthenticateRequest(name={self.name!r})"


RANGE: Rpc[RangeRequest, RangeResult] = Rpc(name="KV/Range", path="/kv/range")
PUT: Rpc[Put, PutResult] = Rpc(name="KV/Put", path="/kv/put", writes=True)
DELETE: Rpc[Delete, DeleteResult] = Rpc(name="KV/DeleteRange", path="/kv/deleterange", writes=True)
TXN: Rpc[Txn, TxnResult] = Rpc(name="KV/Txn", path="/kv/txn", writes=True)
COMPACT: Rpc[CompactRequest, None] = Rpc(name="KV/Compact", path="/kv/compaction", writes=True)
LEASE_GRANT: Rpc[GrantRequest, Lease] = Rpc(
    name="Lease/LeaseGrant", path="/lease/grant", writes=True
)
LEASE_KEEP_ALIVE: Rpc[int, Lease] = Rpc(
    name="Lease/LeaseKeepAlive", path="/lease/keepalive", streams=True
)
"""The request is the lease's id; etcd answers an unknown one with a TTL of 0."""
LEASE_REVOKE: Rpc[int, None] = Rpc(name="Lease/LeaseRevoke", path="/lease/revoke", writes=True)
STATUS: Rpc[None, Status] = Rpc(
    name="Maintenance/Status", path="/maintenance/status", needs_leader=False
)
ALARMS: Rpc[None, tuple[Alarm, ...]] = Rpc(name="Maintenance/Alarm", path="/maintenance/alarm")
MEMBERS: Rpc[None, tuple[Member, ...]] = Rpc(
    name="Cluster/MemberList", path="/cluster/member/list", needs_leader=False
)
AUTHENTICATE: Rpc[AuthenticateRequest, str] = Rpc(
    name="Auth/Authenticate", path="/auth/authenticate", authenticated=False
)
"""The result is the token."""
AUTH_STATUS: Rpc[None, bool] = Rpc(name="Auth/AuthStatus", path="/auth/status")
"""Whether authentication is on; from etcd 3.5 on."""
USER_ROLES: Rpc[str, tuple[str, ...]] = Rpc(name="Auth/UserGet", path="/auth/user/get")
ROLE_PERMISSIONS: Rpc[str, tuple[Permission, ...]] = Rpc(name="Auth/RoleGet", path="/auth/role/get")
