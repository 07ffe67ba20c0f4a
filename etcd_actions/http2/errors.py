"""The errors of a connection and of a call."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """The status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ErrorCode(enum.IntEnum):
    """The error codes of HTTP/2 (RFC 9113, section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def error_name(code: int) -> str:
    """The name of an error code of HTTP/2, registered or not."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"error {code:#x}"


class ProtocolError(Exception):
    """The server broke the rules of HTTP/2: the connection is unusable.

    Attributes:
        code: The code that the server is sent.
    """

    def __init__(self, message: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


class CallFailed(Exception):
    """A call ended without its answer.

    Attributes:
        code: The status; chosen here if the server sent none.
        details: The reason as text.
        not_done: Whether the server certainly did nothing: the call was not sent, or the server
            refused the stream.
        answered: Whether the server itself ended the call with this status.
        connected: Whether there was a connection; without one the call was not sent.
    """

    def __init__(
        self,
        code: Code,
        details: str,
        *,
        not_done: bool = False,
        answered: bool = False,
        connected: bool = True,
    ) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details
        self.not_done = not_done
        self.answered = answered
        self.connected = connected

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details}" if self.details else self.code.name
