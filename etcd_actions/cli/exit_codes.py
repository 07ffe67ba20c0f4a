"""Exit codes, and which error ends with which."""

from __future__ import annotations

import enum
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from etcd_actions import errors
from etcd_actions._internal.logger import get_logger
from etcd_actions._internal.quoting import clipped, printable

_MOST_CHARACTERS = 8_000

_log = get_logger(__name__)


class ExitCode(enum.IntEnum):
    """How a command ends. A second signal ends it with 128 and the signal's number."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    UNAVAILABLE = 3
    REFUSED = 4
    EMBEDDED = 5
    INPUT = 6
    NOT_FOUND = 7
    WARNINGS = 8
    ERRORS = 9
    ACTION = 10
    RUN_FAILED = 11


MEANINGS: tuple[tuple[str, str], ...] = (
    ("0", "done, or ended by a first SIGTERM or Ctrl-C"),
    ("1", "unexpected failure; the log has the traceback"),
    ("2", "a flag, a variable or the installation is unusable"),
    ("3", "etcd, or the service, cannot be reached (run and watch wait for etcd)"),
    ("4", "etcd, the service, or kubectl, refuses: permission, authentication, quota"),
    ("5", "the embedded etcd: data directory in use, no start, ended, not running"),
    ("6", "a file is unusable: it cannot be read or written, or holds something else"),
    ("7", "no such action or run"),
    ("8", "doctor found warnings, and nothing worse"),
    ("9", "doctor found errors"),
    (
        "10",
        "what was asked of an action cannot be done, or it cannot be read; the message says why",
    ),
    ("11", "the run that was submitted did not succeed"),
    (
        "130, 143",
        "ended at once by a second Ctrl-C or SIGTERM, or by the first before a one-shot command "
        "was done",
    ),
)
"""Each exit code and what it means, for ``--help``."""

# The first kind that fits counts.
_CODES: tuple[tuple[type[errors.EtcdActionsError], ExitCode], ...] = (
    (errors.ConfigError, ExitCode.USAGE),
    (errors.InputError, ExitCode.INPUT),
    (errors.EmbeddedEtcdError, ExitCode.EMBEDDED),
    (errors.NotFound, ExitCode.NOT_FOUND),
    (errors.UnexpectedFailure, ExitCode.FAILURE),
    (errors.ActionError, ExitCode.ACTION),
    (errors.DecodeError, ExitCode.ACTION),
    (errors.RunServiceUnavailable, ExitCode.UNAVAILABLE),
    (errors.RunServiceError, ExitCode.REFUSED),
    (errors.ServiceUnavailable, ExitCode.UNAVAILABLE),
    (errors.ServiceError, ExitCode.REFUSED),
    (errors.Unavailable, ExitCode.UNAVAILABLE),
    (errors.EtcdError, ExitCode.REFUSED),
)

# For an error whose message has this part; the first that fits counts.
_ADVICE: tuple[tuple[type[errors.EtcdActionsError], str, str], ...] = (
    (
        errors.Unavailable,
        "it is for another name",
        "name one of the certificate's with --tls-server-name, or in --endpoints",
    ),
    (
        errors.Unavailable,
        "certificate verification failed",
        "give the authority that signed etcd's certificate with --cacert",
    ),
    (
        errors.Unavailable,
        "wants a client certificate",
        "give one that etcd's authority signed, with --cert and --key",
    ),
    (
        errors.Unavailable,
        "does it use TLS?",
        "for an etcd without TLS leave out https:// and what asks for it: see config show",
    ),
    (
        errors.Unavailable,
        "does it want TLS?",
        "if this etcd uses TLS, write https:// before its address, or give --cacert",
    ),
    (errors.Unavailable, "", "is etcd running, and is this its address? See --endpoints"),
    (
        errors.PermissionDenied,
        "",
        "grant the etcd user read and write on the prefix, or choose another with --prefix",
    ),
    (
        errors.Unauthenticated,
        "user name is empty",
        "this etcd wants a user: give --user and --password-file, or ETCDCTL_USER and "
        "ETCDCTL_PASSWORD",
    ),
    (errors.Unauthenticated, "", "is this the user, and the password? See config show"),
    (errors.Compacted, "", "etcd compacted its history meanwhile: try again"),
    (errors.NoSpace, "", "compact and defragment etcd, or raise its quota"),
    (errors.RequestTooLarge, "", "raise etcd's --max-request-bytes"),
)


# How a write to standard output fails.
_OF_OUTPUT = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}

_EXTRAS = {
    "connectrpc": "server",
    "etcd3": "gateway",
    "flyteidl2": "flyte",
    "grpc_health": "server",
    "grpc_reflection": "server",
    "h11": "server",
    "h2": "server",
    "opentelemetry": "telemetry",
    "prometheus_client": "server",
    "psutil": "executor",
}


def _extra_of(error: ModuleNotFoundError) -> str | None:
    """What has to be installed for a module that is missing."""
    return _EXTRAS.get((error.name or "").partition(".")[0])


def report(error: BaseException) -> ExitCode:
    """Say on stderr why the command ends, and with which code.

    An exception group with one known cause, or several, is told by the first. Anything
    that is no error of this package is a bug. What ends with :attr:`ExitCode.FAILURE` has its
    traceback in the log.
    """
    for leaf in _leaves(error):
        if isinstance(leaf, ModuleNotFoundError) and (extra := _extra_of(leaf)):
            say(f"{leaf}: pip install 'etcd-actions[{extra}]'")
            return ExitCode.USAGE
        if isinstance(leaf, OSError) and (code := _of_standard_output(leaf)) is not None:
            return code
        if not isinstance(leaf, errors.EtcdActionsError):
            _log.error("unexpected_failure", exc_info=error)
            say(f"unexpected failure: {type(leaf).__name__}: {leaf}".rstrip(": "))
            return ExitCode.FAILURE
    known = next(_leaves(error))
    message = str(known)
    advice = next(
        (text for kind, part, text in _ADVICE if isinstance(known, kind) and part in message), ""
    )
    code = next((code for kind, code in _CODES if isinstance(known, kind)), ExitCode.FAILURE)
    if code is ExitCode.FAILURE:
        _log.error("unexpected_failure", exc_info=error)
    say(f"{message}; {advice}" if advice else message)
    return code


def unwritable(error: OSError) -> errors.InputError:
    """The error for a standard output that cannot be written."""
    reason = os.strerror(error.errno or errno.EIO)
    return errors.InputError(f"standard output cannot be written: {reason}")


def _of_standard_output(error: OSError) -> ExitCode | None:
    """The exit code where standard output is the cause, else None.

    What it could not take fails again: what is left in Python's buffer, or, where there is no
    buffer, the end of a line.
    """
    if error.filename is not None or error.errno not in _OF_OUTPUT:
        return None
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        # What is left of it can be written nowhere.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        if isinstance(error, BrokenPipeError):
            # Nobody reads on, which is no error.
            return ExitCode.OK
        say(str(unwritable(error)))
        return ExitCode.INPUT
    return None


def was_interrupted(error: BaseException) -> bool:
    """Whether a Ctrl-C came where no signal was awaited yet, or any more."""
    return any(isinstance(leaf, KeyboardInterrupt) for leaf in _leaves(error))


def say(message: str) -> None:
    """Tell the user one thing on stderr, on one line that cannot drive a terminal."""
    line = printable(re.sub(r"[\r\n\t]+ *", " ", message.strip()))
    print(f"etcd-actions: {clipped(line, _MOST_CHARACTERS)}", file=sys.stderr, flush=True)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    elif isinstance(error, errors.BackgroundFailure) and error.__cause__ is not None:
        yield from _leaves(error.__cause__)
    else:
        yield error
