"""The code that a client gets for an error.

Flyte's SDK acts on codes, so they decide whether a run continues: it retries UNAVAILABLE, fails the
action at once on INVALID_ARGUMENT and NOT_FOUND, fails it as a part of an aborted run on ABORTED,
counts ALREADY_EXISTS as success, and retries RESOURCE_EXHAUSTED without limit. After CANCELED on a
stream it waits without limit, so CANCELED is never sent.
"""

from __future__ import annotations

from typing import Final

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from etcd_actions._internal.containment import Containment
from etcd_actions.blobs import BlobError, BlobExists, BlobUnusable
from etcd_actions.errors import (
    Aborted,
    ActionError,
    AlreadyExists,
    AnotherAction,
    ConfigError,
    DecodeError,
    EtcdActionsError,
    EtcdError,
    FailedPrecondition,
    InvalidArgument,
    NameTaken,
    NotForWorkers,
    NotFound,
    NotServed,
    RequestTooLarge,
    UnexpectedFailure,
)
from etcd_actions.server.caller import CALLER
from etcd_actions.web import ClientDisconnected

CODES: Final[tuple[tuple[type[EtcdActionsError], Code], ...]] = (
    (InvalidArgument, Code.INVALID_ARGUMENT),
    (AlreadyExists, Code.ALREADY_EXISTS),
    (NotFound, Code.NOT_FOUND),
    (FailedPrecondition, Code.FAILED_PRECONDITION),
    (Aborted, Code.ABORTED),
    (NotServed, Code.UNIMPLEMENTED),
    (UnexpectedFailure, Code.INTERNAL),
    (ActionError, Code.FAILED_PRECONDITION),
    # A retry cannot help, and RESOURCE_EXHAUSTED would be retried without limit.
    (RequestTooLarge, Code.INVALID_ARGUMENT),
    (NotForWorkers, Code.PERMISSION_DENIED),
    # Other errors of etcd are not caused by the client, and an operator may fix them.
    (EtcdError, Code.UNAVAILABLE),
    (DecodeError, Code.DATA_LOSS),
    (BlobExists, Code.ALREADY_EXISTS),
    (BlobUnusable, Code.FAILED_PRECONDITION),
    (BlobError, Code.UNAVAILABLE),
    (ConfigError, Code.UNAVAILABLE),
)
"""The first class that an error is an instance of counts."""

_ELSEWHERE: Final = (
    "the worker of this task has no more of etcd than actions (worker --service): run the task on "
    "a worker with --endpoints, or call the service itself, with a token of its clients"
)


class Refusal(ConnectError):
    """An error that the service itself raises, with its code."""


def as_connect_error(error: Exception, method: str, containment: Containment) -> ConnectError:
    """The error that a client is sent; an unexpected one is counted and logged."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ConnectError):
        return _of_the_library(error)
    for kind, code in CODES:
        if isinstance(error, kind):
            return Refusal(code, _message(error))
    if isinstance(error, ClientDisconnected):
        return Refusal(Code.UNAVAILABLE, str(error))
    with containment.unit("request", method):
        raise error
    return failure()


def _message(error: EtcdActionsError) -> str:
    """The message of an error, without the data of projects that the client may not use."""
    caller = CALLER.get(None)
    if caller is not None and caller.projects is not None:
        if isinstance(error, AnotherAction):
            return error.discreet
        if isinstance(error, NameTaken):
            return "action_id: the name is taken by an action of another run: give another one"
    return f"{error}: {_ELSEWHERE}" if isinstance(error, NotForWorkers) else str(error)


def failure() -> Refusal:
    """The error that a client is sent for an unexpected one."""
    return Refusal(Code.INTERNAL, "unexpected failure: the service's log has it")


def _of_the_library(error: ConnectError) -> ConnectError:
    if error.code is Code.CANCELED:
        return Refusal(Code.UNAVAILABLE, "the request was interrupted")
    if error.code is Code.RESOURCE_EXHAUSTED:
        # Its code for a message that is too large.
        return Refusal(Code.INVALID_ARGUMENT, error.message)
    return error
