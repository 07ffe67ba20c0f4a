"""The meaning of the codes in the answers of Flyte's run service.

It answers in-band: the call succeeds, and the response has a ``google.rpc.Status``. A report that
is given up can be a run that hangs forever, and a repeated report does no harm. So a doubtful code
counts as transient. ``docs/run-service.md`` has the reason for each code.
"""

from __future__ import annotations

import enum
from typing import Final

from etcd_actions.errors import (
    RunServiceActionUnknown,
    RunServiceError,
    RunServiceRejected,
    RunServiceUnavailable,
)
from etcd_actions.http2 import Code


class Meaning(enum.Enum):
    """The meaning of a code for a report."""

    ACCEPTED = "accepted"
    TRANSIENT = "transient"
    PERMANENT = "permanent"
    UNKNOWN_ACTION = "unknown action"
    """The record is missing: it has to be reported before the status."""


ACCEPTED: Final = frozenset({Code.OK, Code.ALREADY_EXISTS})
"""ALREADY_EXISTS means that an earlier report was applied, and its answer was lost."""

PERMANENT: Final = frozenset({Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED})
"""The server would refuse the same bytes again."""

_NO_ROW: Final = ("record not found", "no rows in result set")
"""The messages of Go's database libraries about a missing row (gorm's ``ErrRecordNotFound``,
``sql.ErrNoRows``); a service that forwards such an error answers INTERNAL or UNKNOWN."""

_TOO_LARGE: Final = ("larger than max", "larger than configured max")

_LONGEST_MESSAGE: Final = 2_000
"""Characters; the message is logged, and kept with each dead letter."""

NO_TIME_LEFT: Final = "no time is left to send it in"


def meaning(code: int) -> Meaning:
    """The meaning of a code in a response; an unknown one is transient."""
    if code in ACCEPTED:
        return Meaning.ACCEPTED
    return Meaning.PERMANENT if code in PERMANENT else Meaning.TRANSIENT


def meaning_of_call(code: int, details: str = "") -> Meaning:
    """The meaning of the code of a call.

    A proxy or another server may have sent it. So it is permanent only if the message is malformed,
    or larger than the server accepts.
    """
    if code in ACCEPTED:
        return Meaning.ACCEPTED
    too_large = code == Code.RESOURCE_EXHAUSTED and any(text in details for text in _TOO_LARGE)
    return Meaning.PERMANENT if too_large or code == Code.INVALID_ARGUMENT else Meaning.TRANSIENT


def meaning_of_status(meant: Meaning, code: int, message: str) -> Meaning:
    """The meaning of a code for a status report: the action may be unknown.

    Args:
        meant: The meaning of the code for other reports.
        code: The code.
        message: The message with the code.
    """
    missing = code == Code.NOT_FOUND or (
        code in (Code.INTERNAL, Code.UNKNOWN) and any(text in message for text in _NO_ROW)
    )
    return Meaning.UNKNOWN_ACTION if missing and meant is Meaning.TRANSIENT else meant


def code_name(code: int) -> str:
    """The name of a code, for people."""
    try:
        return Code(code).name
    except ValueError:
        return f"code {code}"


def error(meant: Meaning, code: int, message: str) -> RunServiceError:
    """The error for a code that is not accepted."""
    name = code_name(code)
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + " ..."
    text = f"{name}: {message}" if message else name
    if meant is Meaning.PERMANENT:
        return RunServiceRejected(text, code=code)
    if meant is Meaning.UNKNOWN_ACTION:
        return RunServiceActionUnknown(text, code=code)
    return RunServiceUnavailable(text)


class CallFailed(Exception):
    """A call, or the stream that it went over, ended without an answer.

    Attributes:
        method: The method.
        code: The status code of gRPC.
        details: The reason as text; may be empty.
        unsent: Whether the server certainly did nothing: the call was not sent, or the server
            refused it. Any other call may still be applied.
    """

    def __init__(self, method: str, code: Code, details: str, *, unsent: bool = False) -> None:
        super().__init__(method, code, details)
        self.method = method
        self.code = code
        self.details = details
        self.unsent = unsent

    def error(self, meant: Meaning) -> RunServiceError:
        """The error for the caller."""
        return error(meant, self.code, f"{self.method}: {self.details}")
