"""Which refusals are certain, from each of etcd's texts and over each transport."""

from __future__ import annotations

import grpc
import pytest

from etcd_actions.errors import EtcdError, NoSpace, OutcomeUnknown, Unavailable
from etcd_actions.etcd import gateway_errors, grpc_errors
from etcd_actions.etcd.gateway_errors import Asked
from etcd_actions.etcd.gateway_wire import Refusal
from etcd_actions.etcd.reasons import REASONS, Reason

_CODES = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNKNOWN,
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


def both(code: grpc.StatusCode, text: str, *, writes: bool) -> list[EtcdError]:
    """The error over gRPC, and over the gateway."""
    number: int = code.value[0]
    refusal = Refusal(number, text)
    return [
        grpc_errors.from_status(code, text, what="call", writes=writes),
        gateway_errors.from_refusal(refusal, Asked("call", writes)).error,
    ]


@pytest.mark.parametrize("code", _CODES, ids=lambda code: code.name)
@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.text)
def test_a_known_text_means_the_same_whatever_its_code(
    reason: Reason, code: grpc.StatusCode
) -> None:
    """So a write that a member refused is never of unknown outcome; and another is asked."""
    for error in both(code, f"etcdserver: {reason.text}", writes=True):
        assert type(error) is reason.kind
        assert not isinstance(error, OutcomeUnknown)
    assert not reason.elsewhere or reason.kind is Unavailable
    refusal = Refusal(code.value[0], f"etcdserver: {reason.text}")
    failed = gateway_errors.from_refusal(refusal, Asked("call", writes=True))
    assert failed.broken or not reason.elsewhere


@pytest.mark.parametrize("text", OPEN)
def test_what_may_have_been_proposed_is_of_unknown_outcome(text: str) -> None:
    """A read that fails so is Unavailable; a write may have been applied, or may be yet."""
    for error in both(grpc.StatusCode.UNAVAILABLE, text, writes=True):
        assert type(error) is OutcomeUnknown
    for error in both(grpc.StatusCode.UNAVAILABLE, text, writes=False):
        assert type(error) is Unavailable


def test_only_a_full_store_refuses_what_it_may_have_applied() -> None:
    """And says so where the error is described."""
    assert {reason.kind for reason in REASONS if not reason.certain} == {NoSpace}
    assert "may have been applied" in (NoSpace.__doc__ or "")
