"""Every error that this package raises on purpose.

The tree is small, its leaves are nouns, and it imports nothing, so that each room can
translate what lies below it: no grpc, protobuf or msgspec exception crosses a boundary.
"""

from __future__ import annotations

from typing import TypeVar

_LONGEST_REASON = 1_000
"""Characters; a reason may quote a value from outside."""


class EtcdActionsError(Exception):
    """Base of all errors of this package. They can be copied and pickled, without their cause."""

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self.args, self.__dict__)


class BackgroundFailure(EtcdActionsError):
    """A background task of a client, a server or the like failed, so its context was left.

    ``__cause__`` is the error of the task, or an exception group of several. The body of the
    ``async with`` was cancelled. When the body itself raised, its error comes out in place of
    this one, with a note.
    """


class ConfigError(EtcdActionsError):
    """A flag, an environment variable or an argument has an unusable value.

    The message names it and says what to do.
    """


class InputError(EtcdActionsError):
    """A file that the user gave cannot be used; the message names file and line."""


class DecodeError(EtcdActionsError):
    """A stored value is not a TaskAction that this package can read.

    Attributes:
        key: The etcd key, empty where the bytes did not come from etcd.
        revision: ``mod_revision`` of the value, 0 where it is not known.
        reason: What is wrong, with the path of the field; cut where it quotes much of the value.
        doubtful: Whether the value may be good: the decoder failed for another reason, such as
            a lack of memory. Decoding it later may succeed.
    """

    def __init__(
        self, reason: str, *, key: bytes = b"", revision: int = 0, doubtful: bool = False
    ) -> None:
        if len(reason) > _LONGEST_REASON:
            reason = reason[:_LONGEST_REASON] + " ..."
        super().__init__(reason, key, revision)
        self.doubtful = doubtful
        self.reason = reason
        self.key = key
        self.revision = revision

    def __str__(self) -> str:
        where = f"{self.key.decode(errors='backslashreplace')} at revision {self.revision}: "
        return (where if self.key else "") + self.reason


class EmbeddedEtcdError(EtcdActionsError):
    """The embedded etcd could not be started, or ended by itself."""


class DataDirectoryInUse(EmbeddedEtcdError):
    """Another process runs an embedded etcd on the same data directory."""


class EtcdError(EtcdActionsError):
    """etcd refused a request, or could not be asked."""


class Unavailable(EtcdError):
    """etcd was not reached, has no leader or did not answer in time.

    Nothing was changed by this request; it may be sent again.
    """


class OutcomeUnknown(Unavailable):
    """A write was sent and its answer was lost.

    It may have been applied, or not, or may still be: read before deciding.
    """


class Compacted(EtcdError):
    """The revision asked for is no longer in etcd's history.

    Attributes:
        compact_revision: The oldest revision that can still be read; 0 where etcd did
            not name it (a Range does not).
    """

    def __init__(self, message: str, *, compact_revision: int = 0) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision


class FutureRevision(EtcdError):
    """The revision asked for is above the store's: the store is another one, or went back."""


class NoSpace(EtcdError):
    """etcd's space quota is used up: it serves reads, watches and deletes only.

    The write may have been applied: etcd applies the one that crosses the quota, and answers it
    with the same error. Read before deciding.
    """


class RequestTooLarge(EtcdError):
    """The request is above etcd's ``--max-request-bytes``. Sending it again cannot help."""


class LeaseNotFound(EtcdError):
    """The lease has expired or never was."""


class PermissionDenied(EtcdError):
    """The etcd user lacks a permission on the keys of this request."""


class Unauthenticated(EtcdError):
    """etcd wants a user, or does not accept the one given."""


class InvalidRequest(EtcdError):
    """etcd rejects the request as malformed, or does not know the method."""


class ActionError(EtcdActionsError):
    """What was asked of an action cannot be done: the caller's doing, or the action's state."""


class NotFound(ActionError):
    """There is no such action."""


class AnotherAction(NotFound):
    """There is no such action, and its key has another one; the message says which.

    Attributes:
        discreet: The same without whose it is.
    """

    def __init__(self, message: str, discreet: str = "there is no such action") -> None:
        super().__init__(message, discreet)
        self.discreet = discreet

    def __str__(self) -> str:
        return str(self.args[0])


class AlreadyExists(ActionError):
    """This very action exists, and another request made it; the message says what it is."""


class InvalidArgument(ActionError):
    """A field of a request has an unusable value.

    Attributes:
        field: The field, by its path in the request.
        reason: What is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class WrongType(InvalidArgument, TypeError):
    """An argument is of another type; the message names it and says which to give."""


class FailedPrecondition(ActionError):
    """The state of the action forbids it; the message says which state."""


class NameTaken(FailedPrecondition):
    """The key of the action holds the object of another one; the message says which.

    Flyte builds the name of an object of run and action only, so actions of several projects,
    domains and runs can have one key.
    """


class ClaimLost(FailedPrecondition):
    """Somebody else runs the action by now, or may: a report about it does not count."""


class UnexpectedFailure(ActionError):
    """The request met an error that is not foreseen; the log has it. It may have been done."""


class NotServed(ActionError):
    """What was asked for is not served here; the message names it, and what is."""


class Aborted(ActionError):
    """The parent is gone, or it or what is above it is being aborted."""


class RunServiceError(EtcdActionsError):
    """Flyte's run service did not accept what it was told."""


class RunServiceUnavailable(RunServiceError):
    """It was not reached, or asks to be told again; it may have accepted."""


class RunServiceActionUnknown(RunServiceUnavailable):
    """It knows no such action: its record is missing, and is to be told before the status.

    Attributes:
        code: A number of ``google.rpc.Code``.
    """

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class RunServiceRejected(RunServiceError):
    """It will never accept this.

    Attributes:
        code: A number of ``google.rpc.Code``.
    """

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class ServiceError(EtcdActionsError):
    """The service that was asked instead of etcd did not do it."""


class ServiceUnavailable(ServiceError):
    """It was not reached, or asks for another try; what was asked may have been done."""


class ServiceRefused(ServiceError):
    """It does not let this caller in, or has no such method."""


_Error = TypeVar("_Error", bound=EtcdActionsError)


def first_error(group: BaseExceptionGroup[_Error]) -> _Error:
    """One error of a group, to be told for all: nurseries raise groups, callers want causes."""
    first = group.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


def _restored(
    kind: type[EtcdActionsError], args: tuple[object, ...], attributes: dict[str, object]
) -> EtcdActionsError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error
