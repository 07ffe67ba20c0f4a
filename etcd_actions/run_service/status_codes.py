"""What the codes mean that Flyte's run service answers with.

It answers in-band: the call succeeds, and the response has a ``google.rpc.Status``. An update
that is given up is a run that hangs forever, so in doubt a code is taken for a passing one:
a repeated report, after a back-off, does no harm. ``docs/run-service.md`` has a reason for each.
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
    """What becomes of a report."""

    ACCEPTED = "accepted"
    TRANSIENT = "transient"
    PERMANENT = "permanent"
    UNKNOWN_ACTION = "unknown action"
    """Of a status: the record is missing, and is to be reported first."""


ACCEPTED: Final = frozenset({Code.OK, Code.ALREADY_EXISTS})
"""ALREADY_EXISTS: an earlier report was applied, and its answer was lost."""

PERMANENT: Final = frozenset({Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED})
"""The same bytes would be refused again, however often they are sent to this server."""

_NO_ROW: Final = ("record not found", "no rows in result set")
"""What Go's database libraries say of a row that is not there (gorm's ``ErrRecordNotFound``,
``sql.ErrNoRows``); a service that hands it on as it is answers INTERNAL or UNKNOWN."""

_TOO_LARGE: Final = ("larger than max", "larger than configured max")

_LONGEST_MESSAGE: Final = 2_000
"""Characters: what comes from outside is kept with each dead letter, and logged."""

NO_TIME_LEFT: Final = "no time is left to send it in"


def meaning(code: int) -> Meaning:
    """What a code in a response means; one that is not known passes."""
    if code in ACCEPTED:
        return Meaning.ACCEPTED
    return Meaning.PERMANENT if code in PERMANENT else Meaning.TRANSIENT


def meaning_of_call(code: int, details: str = "") -> Meaning:
    """What a code means that the call itself ended with.

    It may come from a proxy, or from another server than meant: only what says that the
    message is malformed, or larger than any that the server takes, is permanent.
    """
    if code in ACCEPTED:
        return Meaning.ACCEPTED
    too_large = code == Code.RESOURCE_EXHAUSTED and any(text in details for text in _TOO_LARGE)
    return Meaning.PERMANENT if too_large or code == Code.INVALID_ARGUMENT else Meaning.TRANSIENT


def meaning_of_status(meant: Meaning, code: int, message: str) -> Meaning:
    """The same for the status of an action: it may say that there is no such action.

    Args:
        meant: What the code means otherwise.
        code: The code.
        message: What comes with it.
    """
    missing = code == Code.NOT_FOUND or (
        code in (Code.INTERNAL, Code.UNKNOWN) and any(text in message for text in _NO_ROW)
    )
    return Meaning.UNKNOWN_ACTION if missing and meant is Meaning.TRANSIENT else meant


def code_name(code: int) -> str:
    """A code for people."""
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
        method: Which call.
        code: What gRPC says of it.
        details: The same in words, perhaps empty.
        unsent: Whether the server certainly has not started on it: it never left this machine,
            or the server says so. Any other may still be applied.
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
