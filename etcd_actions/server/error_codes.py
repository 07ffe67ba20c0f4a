"""Which code a client gets for which error.

Flyte's SDK reacts to codes, so they decide whether a run goes on: UNAVAILABLE is tried again,
INVALID_ARGUMENT and NOT_FOUND fail the action at once, ABORTED fails it as a part of an aborted
run, ALREADY_EXISTS counts as done, and RESOURCE_EXHAUSTED is tried for ever. After CANCELED on a
stream it waits for ever, so nobody is ever told that.
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
    NotFound,
    NotServed,
    RequestTooLarge,
    UnexpectedFailure,
)
from etcd_actions.server.caller import CALLER
from etcd_actions.web import ClientGone

CODES: Final[tuple[tuple[type[EtcdActionsError], Code], ...]] = (
    (InvalidArgument, Code.INVALID_ARGUMENT),
    (AlreadyExists, Code.ALREADY_EXISTS),
    (NotFound, Code.NOT_FOUND),
    (FailedPrecondition, Code.FAILED_PRECONDITION),
    (Aborted, Code.ABORTED),
    (NotServed, Code.UNIMPLEMENTED),
    (UnexpectedFailure, Code.INTERNAL),
    (ActionError, Code.FAILED_PRECONDITION),
    # Sending it again cannot help, and RESOURCE_EXHAUSTED would be sent again for ever.
    (RequestTooLarge, Code.INVALID_ARGUMENT),
    # Whatever else etcd refuses is no client's doing, and somebody may mend it meanwhile.
    (EtcdError, Code.UNAVAILABLE),
    (DecodeError, Code.DATA_LOSS),
    (BlobExists, Code.ALREADY_EXISTS),
    (BlobUnusable, Code.FAILED_PRECONDITION),
    (BlobError, Code.UNAVAILABLE),
    (ConfigError, Code.UNAVAILABLE),
)
"""The first class that an error is of counts."""


class Refusal(ConnectError):
    """What the service itself refuses, with the code that is meant."""


def told(error: Exception, method: str, containment: Containment) -> ConnectError:
    """What a client is told of an error; one that nobody expected is counted and logged."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ConnectError):
        return _of_the_library(error)
    for kind, code in CODES:
        if isinstance(error, kind):
            return Refusal(code, _said(error))
    if isinstance(error, ClientGone):
        return Refusal(Code.UNAVAILABLE, str(error))
    with containment.unit("request", method):
        raise error
    return failure()


def _said(error: EtcdActionsError) -> str:
    """What an error says; to a client of some projects, nothing of another one's."""
    caller = CALLER.get(None)
    if caller is not None and caller.projects is not None:
        if isinstance(error, AnotherAction):
            return error.discreet
        if isinstance(error, NameTaken):
            return "action_id: the name is taken by an action of another run: give another one"
    return str(error)


def failure() -> Refusal:
    """What a client is told of an error that nobody expected."""
    return Refusal(Code.INTERNAL, "unexpected failure: the service's log has it")


def _of_the_library(error: ConnectError) -> ConnectError:
    if error.code is Code.CANCELED:
        return Refusal(Code.UNAVAILABLE, "the request was cut off")
    if error.code is Code.RESOURCE_EXHAUSTED:
        # It says so of a message that is too large.
        return Refusal(Code.INVALID_ARGUMENT, error.message)
    return error
