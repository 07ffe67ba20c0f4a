"""Translates a failed call into this package's errors."""

from __future__ import annotations

from etcd_actions import errors
from etcd_actions._internal.containment import describe
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.etcd.tls import explained
from etcd_actions.http2 import CallFailed, Code

_BY_CODE: dict[Code, type[errors.EtcdError]] = {
    Code.INVALID_ARGUMENT: errors.InvalidRequest,
    Code.FAILED_PRECONDITION: errors.InvalidRequest,
    Code.NOT_FOUND: errors.InvalidRequest,
    Code.UNIMPLEMENTED: errors.InvalidRequest,
    Code.OUT_OF_RANGE: errors.InvalidRequest,
    Code.PERMISSION_DENIED: errors.PermissionDenied,
    Code.UNAUTHENTICATED: errors.Unauthenticated,
}


def from_failure(failure: CallFailed, *, what: str, writes: bool = False) -> errors.EtcdError:
    """The error for a failed call.

    A write was certainly not applied only if etcd refused it, or if etcd certainly has not started
    it (:attr:`~etcd_actions.http2.CallFailed.not_done`). Any other failure of a write is an
    :class:`~etcd_actions.errors.OutcomeUnknown`.
    """
    details = failure.details
    message = f"{what}: {explained(details) or failure.code.name}"
    kind = error_kind(details)
    if kind is None and failure.answered:
        kind = _BY_CODE.get(failure.code)
    if kind is not None:
        return kind(message)
    if writes and not failure.not_done:
        return errors.OutcomeUnknown(message)
    return errors.Unavailable(message)


def unwritable(error: Exception, *, what: str) -> errors.EtcdError:
    """The error for a request that cannot be encoded; nothing was sent."""
    return errors.InvalidRequest(f"{what}: the request cannot be written: {describe(error)}")


def unreadable(error: BaseException, *, what: str, writes: bool = False) -> errors.EtcdError:
    """The error for an answer that cannot be decoded; the call itself was done."""
    kind = errors.OutcomeUnknown if writes else errors.Unavailable
    return kind(f"{what}: the answer cannot be read: {describe(error)}")
