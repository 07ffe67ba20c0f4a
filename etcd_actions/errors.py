"""The errors of this package.

The module imports no other one, so that each package can translate the errors of the library below
it: callers see no exception of protobuf or msgspec.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

_LONGEST_REASON = 1_000
"""Characters; a reason may quote a value from outside."""


class EtcdActionsError(Exception):
    """Base of all errors of this package. They can be copied and pickled, without their cause."""

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self.args, self.__dict__)


class BackgroundFailure(EtcdActionsError):
    """A background task of a context, such as a client's, failed, so the context was left.

    ``__cause__`` is the error of the task, or an exception group of several. The body of the
    ``async with`` was cancelled. If the body raised an error itself, that is raised in place of
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
        key: The etcd key, empty if the bytes did not come from etcd.
        revision: ``mod_revision`` of the value, 0 if it is not known.
        reason: The problem, with the path of the field; truncated if it quotes much of the value.
        doubtful: Whether the value may be good, because the decoder failed for another reason, such
            as a lack of memory. Decoding it later may succeed.
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
    """etcd refused a request, or could not be reached."""


class Unavailable(EtcdError):
    """etcd was not reached, has no leader or did not answer in time.

    Nothing was changed by this request; it may be sent again.
    """


class OutcomeUnknown(Unavailable):
    """A write was sent, and its answer was lost.

    It may have been applied, or may be applied later. Read before you repeat it.
    """


class Compacted(EtcdError):
    """The requested revision is no longer in etcd's history.

    Attributes:
        compact_revision: The oldest revision that can still be read; 0 if etcd did not name it.
            The answer to a Range never does.
    """

    def __init__(self, message: str, *, compact_revision: int = 0) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision


class FutureRevision(EtcdError):
    """The requested revision is above the store's, which was replaced or restored from a copy."""


class NoSpace(EtcdError):
    """etcd's space quota is used up: it serves reads, watches and deletes only.

    The write may have been applied: etcd applies the first write above the quota, and answers it
    with the same error. Read before you repeat it.
    """


class RequestTooLarge(EtcdError):
    """The request is above etcd's ``--max-request-bytes``. Sending it again cannot help."""


class LeaseNotFound(EtcdError):
    """The lease has expired, was revoked, or never existed."""


class PermissionDenied(EtcdError):
    """The etcd user lacks a permission on the keys of this request."""


class NotForWorkers(PermissionDenied):
    """The service, which a worker uses in place of etcd, does not let workers do this."""


class Unauthenticated(EtcdError):
    """etcd requires a user, or does not accept this user or its token."""


class InvalidRequest(EtcdError):
    """etcd rejects the request as malformed, or does not know the method."""


class ActionError(EtcdActionsError):
    """A request cannot be fulfilled, because of its arguments or the state of the action."""


class NotFound(ActionError):
    """There is no such action."""


class AnotherAction(NotFound):
    """There is no such action: its key has the object of another one, which the message names.

    Attributes:
        discreet: The message without the other action's identity, for callers of the service.
    """

    def __init__(self, message: str, discreet: str = "there is no such action") -> None:
        super().__init__(message, discreet)
        self.discreet = discreet

    def __str__(self) -> str:
        return str(self.args[0])


class AlreadyExists(ActionError):
    """This action exists, and another request created it; the message describes it."""


class InvalidArgument(ActionError):
    """A field of a request has an unusable value.

    Attributes:
        field: The field, by its path in the request.
        reason: The problem with the value.
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
    """Another process runs the action, or may run it. The report was not written."""


class UnexpectedFailure(ActionError):
    """The request met an unforeseen error, which is logged. It may have been applied."""


class NotServed(ActionError):
    """The service or the command does not serve the request; the message says what to do."""


class Aborted(ActionError):
    """The parent does not exist, or it or an action above it is aborted."""


class RunServiceError(EtcdActionsError):
    """Flyte's run service did not accept a report."""


class RunServiceUnavailable(RunServiceError):
    """The run service was not reached, or may accept a later call.

    It may have accepted this one.
    """


class RunServiceActionUnknown(RunServiceUnavailable):
    """The run service has no record of the action. Report the record before the status.

    Attributes:
        code: A number of ``google.rpc.Code``.
    """

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class RunServiceRejected(RunServiceError):
    """The run service will never accept this report.

    Attributes:
        code: A number of ``google.rpc.Code``.
    """

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class ServiceError(EtcdActionsError):
    """The service that a command calls in place of etcd failed."""


class ServiceUnavailable(ServiceError):
    """The service was not reached, or may accept a later call.

    The request may have been applied.
    """


class ServiceRefused(ServiceError):
    """The service does not authorize this caller, or has no such method."""


_Error = TypeVar("_Error", bound=EtcdActionsError)


def first_error(group: BaseExceptionGroup[_Error]) -> _Error:
    """Return one error of a nursery's group, for callers that report one cause."""
    first = group.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


def leaf_errors(error: BaseException) -> Iterator[BaseException]:
    """The causes of an error: the members of its groups, and the errors of background tasks."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaf_errors(each)
    elif isinstance(error, BackgroundFailure) and error.__cause__ is not None:
        yield from leaf_errors(error.__cause__)
    else:
        yield error


def _restored(
    kind: type[EtcdActionsError], args: tuple[object, ...], attributes: dict[str, object]
) -> EtcdActionsError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error
