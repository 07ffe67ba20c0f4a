"""Translates failures of HTTP, and the gateway's error bodies, into this package's errors."""

from __future__ import annotations

import errno
import http
import ssl
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import NamedTuple

from etcd_actions import errors
from etcd_actions.etcd.gateway.wire import Refusal
from etcd_actions.etcd.reasons import error_kind, is_member_error
from etcd_actions.etcd.tls import explained

_DEADLINE_EXCEEDED = 4
_UNAVAILABLE = 14

_BY_CODE: dict[int, type[errors.EtcdError]] = {
    3: errors.InvalidRequest,
    5: errors.InvalidRequest,
    7: errors.PermissionDenied,
    9: errors.InvalidRequest,
    11: errors.InvalidRequest,
    12: errors.InvalidRequest,
    16: errors.Unauthenticated,
}
"""gRPC's status codes."""

_UNKNOWN_METHOD = b"Not Found"
"""The gateway's answer, in plain text and with status 404, to an unknown path."""


_OTHER_NAME = (62, 64)
"""OpenSSL's codes for a certificate of another host name or address."""


class ConnectFailed(OSError):
    """There is no connection; the text is the reason, for people."""


class CallInfo(NamedTuple):
    """A call: its name in messages, and whether it writes."""

    what: str
    writes: bool = False


class Failed(NamedTuple):
    """An error, and whether it means that the member cannot be reached."""

    error: errors.EtcdError
    broken: bool


def from_refusal(refusal: Refusal, call: CallInfo) -> Failed:
    """The error for a refusal by etcd; the same as over gRPC."""
    text = refusal.text
    broken = (
        refusal.code == _UNAVAILABLE
        or (refusal.code == _DEADLINE_EXCEEDED and not call.writes)
        or is_member_error(text)
    )
    kind = error_kind(text) or _BY_CODE.get(refusal.code)
    if kind is not None:
        return Failed(kind(f"{call.what}: {text}"), broken)
    return Failed(lost(call, text), broken)


def from_status(status: int, body: bytes, call: CallInfo) -> Failed:
    """The error for an answer that is not etcd's, but for example a proxy's."""
    if status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        text = f"{call.what}: a proxy says that the request is too large (HTTP 413)"
        return Failed(errors.RequestTooLarge(text), broken=False)
    if status == http.HTTPStatus.NOT_FOUND and body.strip() == _UNKNOWN_METHOD:
        text = f"{call.what}: etcd does not know the method (HTTP 404)"
        return Failed(errors.InvalidRequest(text), broken=False)
    return Failed(lost(call, f"{_status_text(status)}, and no answer of etcd's"), broken=True)


def from_unreadable(call: CallInfo, reason: str) -> Failed:
    """The error for an answer with a good status that cannot be read."""
    return Failed(lost(call, f"the answer is none of etcd's: {reason}"), broken=True)


def from_exception(error: BaseException, call: CallInfo, *, sent: bool) -> Failed:
    """The error for a request without an answer; ``sent`` is whether any of it may have left."""
    reason = failure_reason(root_cause(error))
    if not sent:
        return Failed(lost(call, f"cannot connect: {reason}", sent=False), broken=True)
    return Failed(lost(call, reason), broken=True)


def lost(call: CallInfo, reason: str, *, sent: bool = True) -> errors.Unavailable:
    """The error for a request without etcd's answer; ``sent`` is whether it may have arrived."""
    kind = errors.OutcomeUnknown if call.writes and sent else errors.Unavailable
    return kind(f"{call.what}: {reason}")


def root_cause(error: BaseException) -> BaseException:
    """The innermost error of socket, TLS or HTTP, which requests and urllib3 wrap."""
    found = error
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, (OSError, HTTPException)):
            found = at
        wrapped = next((each for each in at.args if isinstance(each, BaseException)), None)
        context = None if at.__suppress_context__ else at.__context__
        at = wrapped or at.__cause__ or context
    return found


def is_silence(error: BaseException) -> bool:
    """Whether the other side was silent for too long, while the connection may be intact."""
    cause = root_cause(error)
    return isinstance(cause, TimeoutError) and cause.errno != errno.ETIMEDOUT


def failure_reason(cause: BaseException) -> str:
    """An error as text, without addresses of objects and contents of messages."""
    match cause:
        case ConnectFailed():
            return str(cause)
        case ssl.SSLCertVerificationError() if cause.verify_code in _OTHER_NAME:
            return "certificate verification failed: it is for another name; see server_name"
        case ssl.SSLError():
            return explained(f"TLS: {cause}")
        case TimeoutError() if cause.errno is None:
            return "timed out"
        case RemoteDisconnected():
            return "the connection was closed without an answer"
        case IncompleteRead():
            return "the answer broke off"
        case OSError() if cause.strerror:
            return cause.strerror
        case HTTPException():
            return f"no HTTP answer ({type(cause).__name__})"
        case _:
            return f"failed ({type(cause).__name__})"


def _status_text(status: int) -> str:
    try:
        return f"HTTP {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"
