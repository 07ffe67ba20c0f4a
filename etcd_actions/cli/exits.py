"""Exit codes, and which error ends with which."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator

import structlog

from etcd_actions import errors

_log = structlog.get_logger(__name__)


class ExitCode(enum.IntEnum):
    """How a command ends. A second signal ends it with 128 and the signal's number."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    UNAVAILABLE = 3
    REFUSED = 4
    EMBEDDED = 5
    INPUT = 6


MEANINGS: tuple[tuple[str, str], ...] = (
    ("0", "done, or ended by a first SIGTERM or Ctrl-C"),
    ("1", "unexpected failure; the log has the traceback"),
    ("2", "a flag, a variable or the installation is unusable"),
    ("3", "etcd cannot be reached (replay; run and watch wait for it)"),
    ("4", "etcd refuses: permission, authentication, quota"),
    ("5", "the embedded etcd: data directory in use, no start, ended"),
    ("6", "the input file is unusable"),
    ("130, 143", "ended at once by a second Ctrl-C, or SIGTERM"),
)
"""Each exit code and what it means, for ``--help``."""

# The first kind that fits counts.
_CODES: tuple[tuple[type[errors.EtcdActionsError], ExitCode], ...] = (
    (errors.ConfigError, ExitCode.USAGE),
    (errors.InputError, ExitCode.INPUT),
    (errors.EmbeddedEtcdError, ExitCode.EMBEDDED),
    (errors.Unavailable, ExitCode.UNAVAILABLE),
    (errors.EtcdError, ExitCode.REFUSED),
)

_ADVICE: tuple[tuple[type[errors.EtcdActionsError], str], ...] = (
    (errors.Unavailable, "is etcd running, and is this its address? See --endpoints"),
    (
        errors.PermissionDenied,
        "grant the etcd user read and write on the prefix, or choose another with --prefix",
    ),
    (errors.Unauthenticated, "this etcd wants a user: name one without authentication"),
    (errors.NoSpace, "compact and defragment etcd, or raise its quota"),
    (errors.RequestTooLarge, "raise etcd's --max-request-bytes"),
)


def report(error: BaseException) -> ExitCode:
    """Say on stderr why the command ends, and with which code.

    An exception group with one known cause, or several, is told by the first. Anything
    that is no error of this package is a bug: its traceback goes to the log.
    """
    for leaf in _leaves(error):
        if not isinstance(leaf, errors.EtcdActionsError):
            _log.error("unexpected_failure", exc_info=error)
            say(f"unexpected failure: {type(leaf).__name__}: {leaf}".rstrip(": "))
            return ExitCode.FAILURE
    known = next(_leaves(error))
    advice = next((text for kind, text in _ADVICE if isinstance(known, kind)), "")
    say(f"{known}; {advice}" if advice else str(known))
    return next((code for kind, code in _CODES if isinstance(known, kind)), ExitCode.FAILURE)


def was_interrupted(error: BaseException) -> bool:
    """Whether a Ctrl-C came where no signal was awaited yet, or any more."""
    return any(isinstance(leaf, KeyboardInterrupt) for leaf in _leaves(error))


def say(message: str) -> None:
    """Tell the user one thing on stderr."""
    print(f"etcd-actions: {message}", file=sys.stderr, flush=True)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
