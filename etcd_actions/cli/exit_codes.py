"""Exit codes, and the exit code and advice for each error."""

from __future__ import annotations

import enum
import errno
import os
import re
import sys
from pathlib import Path

from etcd_actions import errors
from etcd_actions._internal.logger import get_logger
from etcd_actions._internal.quoting import clipped, printable

# Characters of a message.
_MOST_CHARACTERS = 8_000

_log = get_logger(__name__)


class ExitCode(enum.IntEnum):
    """The exit code of a command; a second signal ends it with 128 and its number."""

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
    TIMEOUT = 12


MEANINGS: tuple[tuple[str, str], ...] = (
    ("0", "done, or ended by a first SIGTERM or Ctrl-C"),
    ("1", "unexpected failure; the log has the traceback"),
    ("2", "a flag, a variable or the installation is unusable"),
    ("3", "etcd, or the service, cannot be reached (run and watch wait for etcd)"),
    ("4", "etcd, the service, or kubectl, rejects it: permission, authentication, quota"),
    (
        "5",
        "the embedded etcd: its data directory is in use, it cannot start, it ended, or it is not "
        "running",
    ),
    ("6", "a file is unusable: it cannot be read or written, or has other contents"),
    ("7", "no such action or run"),
    ("8", "doctor found warnings, and nothing worse"),
    ("9", "doctor found errors"),
    ("10", "a change of an action is impossible, or it cannot be decoded; see the message"),
    ("11", "the run that was submitted, attached to or waited for did not succeed"),
    ("12", "wait: the phase was not reached within --timeout"),
    (
        "130, 143",
        "ended at once by a second Ctrl-C or SIGTERM, or a one-shot command by the first",
    ),
)
"""Each exit code and its meaning, for ``--help``."""

# The first kind that matches applies.
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

# By the kind of the error and a part of its message; the first that matches applies.
_ADVICE: dict[type[errors.EtcdActionsError], dict[str, str]] = {
    errors.Unavailable: {
        "quorum lost": "start the members that are down: see etcd-actions doctor",
        "it is for another name": "name one of the certificate's with --tls-server-name, or in "
        "--endpoints",
        "certificate verification failed": "give the authority that signed etcd's certificate "
        "with --cacert",
        "requires a client certificate": "give one that etcd's authority signed, with --cert and "
        "--key",
        "does it use TLS?": "for an etcd without TLS leave out https:// and the settings of TLS: "
        "see config show",
        "does it require TLS?": "if this etcd uses TLS, write https:// before its address, or give "
        "--cacert",
        "": "is etcd running, and is this its address? See --endpoints",
    },
    errors.ServiceUnavailable: {
        "quorum lost": "start the members that are down: see etcd-actions doctor",
    },
    errors.NotForWorkers: {"": "give --prefix and --namespace as the service has them"},
    errors.PermissionDenied: {
        "": "grant the etcd user read and write on the prefix, or choose another with --prefix"
    },
    errors.Unauthenticated: {
        "user name is empty": "this etcd needs a user: give --user and --password-file, or "
        "ETCDCTL_USER and ETCDCTL_PASSWORD",
        "": "check the user and the password: see config show",
    },
    errors.Compacted: {"": "etcd compacted its history during the command: retry"},
    errors.NoSpace: {"": "compact and defragment etcd, or raise its quota"},
    errors.RequestTooLarge: {"": "raise etcd's --max-request-bytes"},
}

# The errors of a write to standard output.
_OUTPUT_ERRORS = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}

_EXTRAS = {
    "connectrpc": "server",
    "etcd3": "gateway",
    "flyteidl2": "flyte",
    "h11": "server",
    "h2": "server",
    "opentelemetry": "telemetry",
    "prometheus_client": "server",
    "psutil": "executor",
}


def report(error: BaseException) -> ExitCode:
    """Print to standard error why the command ends, and return the exit code.

    For an exception group it reports the first cause. An error that is not of this package is a
    bug. The traceback of a :attr:`ExitCode.FAILURE` is logged.
    """
    for leaf in errors.leaf_errors(error):
        missing = (leaf.name or "") if isinstance(leaf, ModuleNotFoundError) else ""
        if extra := _EXTRAS.get(missing.partition(".")[0]):
            print_message(f"{leaf}: pip install 'etcd-actions[{extra}]'")
            return ExitCode.USAGE
        if isinstance(leaf, OSError) and (code := _output_error_code(leaf)) is not None:
            return code
        if not isinstance(leaf, errors.EtcdActionsError):
            _log.error("unexpected_failure", exc_info=error)
            print_message(f"unexpected failure: {type(leaf).__name__}: {leaf}".rstrip(": "))
            return ExitCode.FAILURE
    known = next(errors.leaf_errors(error))
    message = str(known)
    advice = next(
        (
            text
            for kind, texts in _ADVICE.items()
            if isinstance(known, kind)
            for part, text in texts.items()
            if part in message
        ),
        "",
    )
    code = next((code for kind, code in _CODES if isinstance(known, kind)), ExitCode.FAILURE)
    if code is ExitCode.FAILURE:
        _log.error("unexpected_failure", exc_info=error)
    print_message(f"{message}; {advice}" if advice else message)
    return code


def unwritable(error: OSError) -> errors.InputError:
    """The error of this package for a failed write to standard output."""
    reason = os.strerror(error.errno or errno.EIO)
    return errors.InputError(f"standard output cannot be written: {reason}")


def _output_error_code(error: OSError) -> ExitCode | None:
    """The exit code if standard output is the cause, else None.

    The write is repeated to find out: the rest of Python's buffer, or the end of a line.
    """
    if error.filename is not None or error.errno not in _OUTPUT_ERRORS:
        return None
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        if isinstance(error, BrokenPipeError):
            # The end of the reader is not an error.
            return ExitCode.OK
        print_message(str(unwritable(error)))
        return ExitCode.INPUT
    return None


def was_interrupted(error: BaseException) -> bool:
    """Whether an error is a Ctrl-C, as it is raised while no handler of signals is installed."""
    return any(isinstance(leaf, KeyboardInterrupt) for leaf in errors.leaf_errors(error))


def print_message(message: str) -> None:
    """Print a message to standard error, on one line without control characters."""
    line = printable(re.sub(r"[\r\n\t]+ *", " ", message.strip()))
    print(f"etcd-actions: {clipped(line, _MOST_CHARACTERS)}", file=sys.stderr, flush=True)
