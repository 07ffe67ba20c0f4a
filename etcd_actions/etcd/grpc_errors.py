"""From gRPC's status to this package's errors."""

from __future__ import annotations

import grpc

from etcd_actions import errors
from etcd_actions.containment import describe
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.etcd.tls import explained

_UNSENT = (
    "failed to connect to all addresses",
    "DNS resolution failed",
    "errors resolving",
)

_BY_CODE: dict[grpc.StatusCode, type[errors.EtcdError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: errors.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: errors.InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: errors.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
}


def from_status(
    code: grpc.StatusCode, details: str, *, what: str, writes: bool = False
) -> errors.EtcdError:
    """The error for a failed call.

    A write is known not to have happened only where etcd refused it, or where it never
    left this machine; any other failure is an :class:`~etcd_actions.errors.OutcomeUnknown`.
    """
    message = f"{what}: {explained(details) or code.name}"
    kind = error_kind(details) or _BY_CODE.get(code)
    if kind is not None:
        return kind(message)
    if writes and not any(part in details for part in _UNSENT):
        return errors.OutcomeUnknown(message)
    return errors.Unavailable(message)


def unwritable(error: Exception, *, what: str) -> errors.EtcdError:
    """The error for a request that no message can be made of; nothing was sent."""
    return errors.InvalidRequest(f"{what}: the request cannot be written: {describe(error)}")


def unreadable(error: BaseException, *, what: str, writes: bool = False) -> errors.EtcdError:
    """The error for an answer that cannot be read; what it answers was done."""
    kind = errors.OutcomeUnknown if writes else errors.Unavailable
    return kind(f"{what}: the answer cannot be read: {describe(error)}")
