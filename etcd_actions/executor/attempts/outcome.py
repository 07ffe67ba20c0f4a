"""The outcome of an attempt: its error file decides, then its outputs, then its exit code.

The SDK's command exits with 0 when its task fails, and may be killed after it wrote its outputs.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument, ExecutionError
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions._internal.untrusted_files import UnusableFile, in_thread, is_regular
from etcd_actions.executor.attempts.attempt_directory import (
    STARTED,
    AttemptDirectory,
    lacks_resources,
)
from etcd_actions.executor.attempts.output_directories import taken_by
from etcd_actions.executor.attempts.output_files import Outputs, has_file, read_file, remove_file
from etcd_actions.model import ErrorState
from etcd_actions.model.earlier_attempts import shortened

ERROR_FILE: Final = "error.pb"
OUTPUTS_FILE: Final = "outputs.pb"

# Bytes of an error file; a larger one is not read.
_MOST_ERROR_FILE: Final = 4 * 1024 * 1024
# Characters: the object with it has to fit into a request to etcd (1.5 MiB by default), and each
# subscriber receives it.
_MOST_MESSAGE: Final = 64 * 1024
_MOST_CODE: Final = 256
_FILES_WITHIN: Final = 60.0

_KINDS: Final = {ExecutionError.USER: "USER", ExecutionError.SYSTEM: "SYSTEM"}


class Outcome(NamedTuple):
    """The outcome of an attempt.

    Attributes:
        error: Why it failed; None for a success.
        recoverable: Whether a retry may help.
        is_unseen: Whether no process recorded how it ended.
    """

    error: ErrorState | None
    recoverable: bool = False
    is_unseen: bool = False


async def find_outcome(
    place: AttemptDirectory, outputs: Outputs, *, declares_outputs: bool
) -> Outcome:
    """Read the outcome of an attempt in a thread; a cancellation does not wait for the thread.

    The attempt has failed if the file system does not answer within a minute.
    """
    look = partial(outcome_of, place, outputs, declares_outputs=declares_outputs)
    try:
        return await in_thread(_FILES_WITHIN, outputs, look)
    except UnusableFile as error:
        return _failed("OutputsUnreadable", error, recoverable=True)


def outcome_of(place: AttemptDirectory, outputs: Outputs, *, declares_outputs: bool) -> Outcome:
    """Read the outcome of an attempt.

    Args:
        place: The attempt.
        outputs: The directory of its outputs.
        declares_outputs: Whether its task has outputs, so that exit code 0 without them is a
            failure.

    Raises:
        OSError: There are too few descriptors, or too little memory, to read that now; or the store
            of a URL does not answer.
    """
    if place.is_inferred and isinstance(outputs, Path):
        found = _own_files(place, outputs)
    else:
        found = _found(place, outputs, declares_outputs=declares_outputs)
    # An attempt takes the directory before it changes anything in it.
    if (other := taken_by(place, outputs)) is not None:
        message = (
            f"attempt {other.path} started with the same directory of outputs, {outputs}, before "
            "they were read: give each run an outputs' directory of its own"
        )
        return _failed("OutputsReplaced", message, recoverable=True)
    return found


def clear(outputs: Outputs) -> None:
    """Remove old outputs and errors before an attempt starts: they are not its outcome.

    Raises:
        UnusableFile: A URL cannot be used.
        OSError: One cannot be removed.
    """
    for name in (ERROR_FILE, OUTPUTS_FILE):
        remove_file(outputs, name)


def _found(place: AttemptDirectory, outputs: Outputs, *, declares_outputs: bool) -> Outcome:
    if (failure := _read_error(outputs)) is not None:
        return failure
    try:
        if has_file(outputs, OUTPUTS_FILE):
            return Outcome(None)
    except (OSError, UnusableFile) as error:
        return _unreadable("OutputsUnreadable", error)
    code = place.exit_code
    if code == 0 and not declares_outputs:
        return Outcome(None)
    lines = place.last_lines()
    end = f"; its log ends with:\n{lines}" if lines else ""
    if code == 0:
        message = f"the process exited with 0, and left no {outputs}/{OUTPUTS_FILE}{end}"
        return _failed("OutputsNotFound", message, recoverable=True)
    # As Flyte's executor reports a container that disappeared.
    how = _how(code, place.ended_because)
    failed = _failed("ProcessEnded", how + end, kind="SYSTEM", recoverable=True)
    return failed._replace(is_unseen=code is None and not place.ended_because)


def _own_files(place: AttemptDirectory, outputs: Path) -> Outcome:
    """Read the files that only this action's task can have written, during its attempt.

    The exit code, and older files, may be another object's.
    """
    try:
        started = (place.path / STARTED).lstat().st_mtime_ns
    except FileNotFoundError:
        started = None
    for name, look in ((ERROR_FILE, _read_error), (OUTPUTS_FILE, lambda _: Outcome(None))):
        with suppress(FileNotFoundError, NotADirectoryError, UnusableFile):
            if is_regular(outputs / name) and started is not None:
                written = (outputs / name).lstat().st_mtime_ns
                found = look(outputs) if written >= started else None
                if found is not None:
                    return found
    message = (
        f"an earlier version started it, in {place.path}, and there is neither an error nor "
        f"outputs in {outputs}"
    )
    return _failed("ProcessEnded", message, kind="SYSTEM", recoverable=True)


def _read_error(outputs: Outputs) -> Outcome | None:
    try:
        data = read_file(outputs, ERROR_FILE, limit=_MOST_ERROR_FILE)
        if data is None:
            return None
        found = ErrorDocument.FromString(data).error
    except BadMessage as error:
        return _failed(
            "ErrorUnreadable", f"{outputs}/{ERROR_FILE} is not an ErrorDocument: {error}"
        )
    except (OSError, UnusableFile) as error:
        return _unreadable("ErrorUnreadable", error)
    return _failed(
        found.code[:_MOST_CODE],
        shortened(found.message, _MOST_MESSAGE),
        # Without an origin the task is to blame.
        kind=_KINDS.get(found.origin, "USER"),
        recoverable=found.kind == ContainerError.RECOVERABLE,
    )


def _unreadable(code: str, error: OSError | UnusableFile) -> Outcome:
    if isinstance(error, OSError) and lacks_resources(error):
        raise error
    return _failed(code, error)


def _failed(
    code: str, message: object, *, kind: str = "USER", recoverable: bool = False
) -> Outcome:
    return Outcome(ErrorState(code=code, kind=kind, message=str(message)), recoverable)


def _how(code: int | None, reason: str) -> str:
    if code is None:
        return reason or "the process ended unseen, and left neither outputs nor an error"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            # A real-time signal, or a number that a task wrote.
            name = f"signal {-code}"
        return f"the process was ended by {name}"
    return f"the process exited with {code}"
