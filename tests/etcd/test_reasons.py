"""Which refusals are certain, from each of etcd's texts and over each transport."""

from __future__ import annotations

from etcd_actions.errors import EtcdError, NoSpace, OutcomeUnknown, Unavailable
from etcd_actions.etcd.gateway import errors as gateway_errors
from etcd_actions.etcd.gateway.errors import CallInfo
from etcd_actions.etcd.gateway.wire import Refusal
from etcd_actions.etcd.grpc import errors as grpc_errors
from etcd_actions.etcd.reasons import REASONS, Reason
from etcd_actions.http2 import CallFailed, Code
from tests.support.table import table

_CODES = [
    Code.UNAVAILABLE,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,
    Code.DATA_LOSS,
    Code.UNKNOWN,
]
"""Of those that versions of etcd have sent with these texts."""

OPEN = [
    "etcdserver: request timed out",
    "etcdserver: request timed out, possibly due to previous leader failure",
    "etcdserver: request timed out, possibly due to connection lost",
    "etcdserver: request timed out, waiting for the applied index took too long",
    "etcdserver: server stopped",
    "etcdserver: leader changed",
    "etcdserver: request cancelled",
    "transport is closing",
]


def both(code: Code, text: str, *, writes: bool) -> list[EtcdError]:
    """The error over gRPC, and over the gateway."""
    refusal = Refusal(code, text)
    failure = CallFailed(code, text, answered=True)
    return [
        grpc_errors.from_failure(failure, what="call", writes=writes),
        gateway_errors.from_refusal(refusal, CallInfo("call", writes)).error,
    ]


@table("code", _CODES, ids=lambda code: code.name)
@table("reason", REASONS, ids=lambda reason: reason.text)
def test_a_known_text_means_the_same_whatever_its_code(reason: Reason, code: Code) -> None:
    """So a write that a member refused is never of unknown outcome; and another is asked."""
    for error in both(code, f"etcdserver: {reason.text}", writes=True):
        assert type(error) is reason.kind
        assert not isinstance(error, OutcomeUnknown)
    assert not reason.elsewhere or reason.kind is Unavailable
    refusal = Refusal(code, f"etcdserver: {reason.text}")
    failed = gateway_errors.from_refusal(refusal, CallInfo("call", writes=True))
    assert failed.broken or not reason.elsewhere


@table("text", OPEN)
def test_what_may_have_been_proposed_is_of_unknown_outcome(text: str) -> None:
    """A read that fails so is Unavailable; a write may have been applied, or may be yet."""
    for error in both(Code.UNAVAILABLE, text, writes=True):
        assert type(error) is OutcomeUnknown
    for error in both(Code.UNAVAILABLE, text, writes=False):
        assert type(error) is Unavailable


def test_only_a_full_store_refuses_what_it_may_have_applied() -> None:
    """And says so where the error is described."""
    assert {reason.kind for reason in REASONS if not reason.certain} == {NoSpace}
    assert "may have been applied" in (NoSpace.__doc__ or "")
