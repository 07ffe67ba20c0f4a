"""The meaning of etcd's error texts.

Status codes are coarse and differ between versions, and the cancellation of a watch has only a
text. The texts are those of ``api/v3rpc/rpctypes/error.go`` in etcd's source, unchanged since 3.0.
3.5.1 sends another text for one error: that a token is older than a change of users.

After a text that is not listed, the outcome of a write is unknown. Such texts are "request timed
out", "server stopped" and "leader changed": etcd may have passed the write to raft before it sent
them (``processInternalRaftRequestOnce`` in ``server/etcdserver/v3_server.go``).
"""

from __future__ import annotations

from typing import NamedTuple

from etcd_actions import errors


class Reason(NamedTuple):
    """The meaning of one text.

    Attributes:
        text: A part of the message.
        kind: The error.
        elsewhere: Whether another member may accept the request: this one counts as broken.
        certain: Whether a write was certainly not applied.
    """

    text: str
    kind: type[errors.EtcdError]
    elsewhere: bool = False
    certain: bool = True


REASONS = (
    # A member's interceptors refuse the request before they examine it
    # (api/v3rpc/interceptor.go). A learner serves its own status and serializable reads only;
    # 3.6 answers with another code than 3.4 and 3.5. A member that has just started is not
    # capable until it knows the version of the cluster.
    Reason("rpc not supported for learner", errors.Unavailable, elsewhere=True),
    Reason("etcdserver: not capable", errors.Unavailable, elsewhere=True),
    Reason("etcdserver: no leader", errors.Unavailable, elsewhere=True),
    # The member refuses it before the proposal (v3_server.go), or its raft does (raft.go).
    Reason("too many requests", errors.Unavailable),
    Reason("raft proposal dropped", errors.Unavailable),
    Reason("request is too large", errors.RequestTooLarge),
    Reason("trying to send message larger than max", errors.RequestTooLarge),
    Reason("received message larger than max", errors.RequestTooLarge),
    # The applier of each member refuses it instead of applying it (apply/corrupt.go,
    # apply/apply_auth.go, the store of the leases, mvcc).
    Reason("etcdserver: corrupt cluster", errors.Unavailable),
    Reason("required revision has been compacted", errors.Compacted),
    Reason("required revision is a future revision", errors.FutureRevision),
    Reason("requested lease not found", errors.LeaseNotFound),
    Reason("permission denied", errors.PermissionDenied),
    Reason("invalid auth token", errors.Unauthenticated),
    Reason("user name is empty", errors.Unauthenticated),
    Reason("authentication failed", errors.Unauthenticated),
    Reason("revision of auth store is old", errors.Unauthenticated),
    Reason("revision in header is old", errors.Unauthenticated),
    # The write that exceeds the quota is applied, and answered with this error; only later writes
    # are refused (apply/quota.go, apply/capped.go).
    Reason("database space exceeded", errors.NoSpace, certain=False),
)


def reason_of(text: str) -> Reason | None:
    """The reason in a status message, or in the cancellation of a watch; None if unknown."""
    return next((each for each in REASONS if each.text in text), None)


def error_kind(text: str) -> type[errors.EtcdError] | None:
    """The error for a status message, or the cancellation of a watch; None if unknown."""
    found = reason_of(text)
    return None if found is None else found.kind


def is_member_error(text: str) -> bool:
    """Whether only another member may accept the request."""
    found = reason_of(text)
    return found is not None and found.elsewhere
