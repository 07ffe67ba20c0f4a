"""What each code means, in a response and as the end of a call. The reasons are in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest

from etcd_actions.errors import RunServiceActionUnknown, RunServiceRejected, RunServiceUnavailable
from etcd_actions.http2 import Code
from etcd_actions.run_service import status_codes
from etcd_actions.run_service.status_codes import Meaning
from tests.support.table import table

DOCS = Path(__file__).parents[2] / "docs" / "run-service.md"

A, T, P = Meaning.ACCEPTED, Meaning.TRANSIENT, Meaning.PERMANENT

TABLE = {
    Code.OK: (A, A),
    Code.CANCELLED: (T, T),
    Code.UNKNOWN: (T, T),
    Code.INVALID_ARGUMENT: (P, P),
    Code.DEADLINE_EXCEEDED: (T, T),
    Code.NOT_FOUND: (T, T),
    Code.ALREADY_EXISTS: (A, A),
    Code.PERMISSION_DENIED: (T, T),
    Code.RESOURCE_EXHAUSTED: (T, T),
    Code.FAILED_PRECONDITION: (T, T),
    Code.ABORTED: (T, T),
    Code.OUT_OF_RANGE: (P, T),
    Code.UNIMPLEMENTED: (P, T),
    Code.INTERNAL: (T, T),
    Code.UNAVAILABLE: (T, T),
    Code.DATA_LOSS: (T, T),
    Code.UNAUTHENTICATED: (T, T),
}


@table("code", Code)
def test_each_code(code: Code) -> None:
    assert (status_codes.meaning(code), status_codes.meaning_of_call(code)) == TABLE[code]


def test_the_codes_are_those_of_grpc() -> None:
    assert {code.name: code.value for code in grpc.StatusCode} == {
        code.name: (code.value, grpc.StatusCode[code.name].value[1]) for code in Code
    }


@pytest.mark.parametrize("code", [17, 99, -1])
def test_a_code_of_the_future_passes(code: int) -> None:
    assert status_codes.meaning(code) is status_codes.meaning_of_call(code) is Meaning.TRANSIENT
    assert str(status_codes.error(T, code, "why")) == f"code {code}: why"


def test_the_docs_have_the_same_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \|", DOCS.read_text(), re.MULTILINE)
    assert {Code[name]: (Meaning(one), Meaning(other)) for name, one, other in rows} == TABLE


@pytest.mark.parametrize(
    "details",
    [
        "Received message larger than max (5000012 vs. 4194304)",
        "message size 5000012 is larger than configured max 4194304",
    ],
)
def test_a_message_above_the_limit_stays_so(details: str) -> None:
    """The server would refuse it for ever, and its status must not wait for that."""
    assert status_codes.meaning_of_call(Code.RESOURCE_EXHAUSTED, details) is Meaning.PERMANENT
    assert status_codes.meaning_of_call(Code.RESOURCE_EXHAUSTED, "too many requests") is T


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (Code.NOT_FOUND, ""),
        (Code.INTERNAL, "failed to update action: record not found"),
        (Code.UNKNOWN, "sql: no rows in result set"),
    ],
)
def test_a_status_of_an_action_without_a_record(code: Code, message: str) -> None:
    """Gorm's and database/sql's words for a missing row count, as far as the code says nothing."""
    assert status_codes.meaning_of_status(T, code, message) is Meaning.UNKNOWN_ACTION
    error = status_codes.error(Meaning.UNKNOWN_ACTION, code, message)
    assert isinstance(error, RunServiceActionUnknown)
    assert isinstance(error, RunServiceUnavailable)
    assert error.code == code


@pytest.mark.parametrize(
    ("meant", "code", "message"),
    [
        (T, Code.INTERNAL, "deadlock detected"),
        (T, Code.FAILED_PRECONDITION, "record not found"),
        (T, Code.UNAVAILABLE, "record not found"),
        (P, Code.INVALID_ARGUMENT, "record not found"),
        (A, Code.ALREADY_EXISTS, ""),
    ],
)
def test_any_other_answer_to_a_status_means_what_it_did(
    meant: Meaning, code: Code, message: str
) -> None:
    assert status_codes.meaning_of_status(meant, code, message) is meant


def test_the_errors() -> None:
    rejected = status_codes.error(P, Code.INVALID_ARGUMENT, "no spec")
    assert isinstance(rejected, RunServiceRejected)
    assert (rejected.code, str(rejected)) == (3, "INVALID_ARGUMENT: no spec")
    passing = status_codes.error(T, Code.ABORTED, "")
    assert isinstance(passing, RunServiceUnavailable)
    assert str(passing) == "ABORTED"
