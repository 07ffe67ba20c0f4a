"""How an attempt ended: its error file decides, then its outputs, then its exit code.

The SDK's command exits with 0 when its task fails, and may be killed after all is written.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument, ExecutionError
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions._internal.untrusted_files import (
    UnusableFile,
    clear_away,
    in_thread,
    is_regular,
    read_regular,
)
from etcd_actions.executor.attempts.attempt_directory import (
    STARTED,
    AttemptDirectory,
    lacks_resources,
)
from etcd_actions.executor.attempts.output_directories import taken_by
from etcd_actions.model import ErrorState

ERROR_FILE = "error.pb"
OUTPUTS_FILE = "outputs.pb"

_MOST_ERROR_FILE: Final = 4 * 1024 * 1024
# It goes to etcd, which takes 1.5 MiB in all, and on to the subscribers of the action.
_MOST_MESSAGE: Final = 64 * 1024
_MOST_CODE: Final = 256
_FILES_WITHIN: Final = 60.0

_KINDS = {ExecutionError.USER: "USER", ExecutionError.SYSTEM: "SYSTEM"}


class Outcome(NamedTuple):
    """``error`` is None for a success; ``recoverable`` says whether trying again may help."""

    error: ErrorState | None
    recoverable: bool = False


async def find_outcome(
    place: AttemptDirectory, outputs: Path, *, declares_outputs: bool
) -> Outcome:
    """Look at what an attempt left behind, in a thread that cancelling leaves alone.

    A file system that does not answer is an error of the attempt, after a minute.
    """
    look = partial(outcome_of, place, outputs, declares_outputs=declares_outputs)
    try:
        return await in_thread(_FILES_WITHIN, outputs, look)
    except UnusableFile as error:
        return _unreadable("OutputsUnreadable", error, recoverable=True)


def outcome_of(place: AttemptDirectory, outputs: Path, *, declares_outputs: bool) -> Outcome:
    """Look at what an attempt left behind.

    Args:
        place: The attempt.
        outputs: The directory of its outputs.
        declares_outputs: Whether its task has outputs: exit code 0 without them is a failure
            then.

    Raises:
        OSError: This cannot be told now, for want of descriptors or memory.
    """
    found = _look(place, outputs, declares_outputs=declares_outputs)
    # An attempt takes the directory before it changes anything in it.
    if (other := taken_by(place, outputs)) is not None:
        message = (
            f"attempt {other.path} was begun with the same directory of outputs, {outputs}, before "
            "they were read: give each run an outputs' directory of its own"
        )
        return Outcome(ErrorState(code="OutputsReplaced", kind="USER", message=message), True)
    return found


def _look(place: AttemptDirectory, outputs: Path, *, declares_outputs: bool) -> Outcome:
    if place.is_inferred:
        return _look_at_own(place, outputs)
    failure = _read_error(outputs / ERROR_FILE)
    if failure is not None:
        return failure
    try:
        if is_regular(outputs / OUTPUTS_FILE):
            return Outcome(None)
    except (OSError, UnusableFile) as error:
        if isinstance(error, OSError) and lacks_resources(error):
            raise
        return _unreadable("OutputsUnreadable", error)
    code = place.exit_code
    if code == 0 and not declares_outputs:
        return Outcome(None)
    lines = place.last_lines()
    end = f"; its log ends with:\n{lines}" if lines else ""
    if code == 0:
        message = f"the process exited with 0, and left no {outputs / OUTPUTS_FILE}{end}"
        return Outcome(ErrorState(code="OutputsNotFound", kind="USER", message=message), True)
    # As Flyte's executor does with a container that just went away.
    return Outcome(ErrorState(code="ProcessEnded", kind="SYSTEM", message=_how(code) + end), True)


def _look_at_own(place: AttemptDirectory, outputs: Path) -> Outcome:
    """Look at the files that only this action's task can have written, while it ran.

    An exit code does not say whose it is, and neither does what was there before.
    """
    try:
        began = (place.path / STARTED).lstat().st_mtime_ns
    except FileNotFoundError:
        began = None
    for name, look in ((ERROR_FILE, _read_error), (OUTPUTS_FILE, lambda _: Outcome(None))):
        with suppress(FileNotFoundError, NotADirectoryError, UnusableFile):
            if is_regular(outputs / name) and began is not None:
                written = (outputs / name).lstat().st_mtime_ns
                found = look(outputs / name) if written >= began else None
                if found is not None:
                    return found
    message = (
        f"the version before started it, in {place.path}, and neither an error nor outputs in "
        f"{outputs} say how it ended"
    )
    return Outcome(ErrorState(code="ProcessEnded", kind="SYSTEM", message=message), True)


def clear(outputs: Path) -> None:
    """Take away what would be mistaken for the outcome of an attempt that is to begin.

    A directory gets another name, since what is in it is not ours to remove.

    Raises:
        OSError: It cannot be taken away.
    """
    for name in (ERROR_FILE, OUTPUTS_FILE):
        clear_away(outputs / name)


def _read_error(path: Path) -> Outcome | None:
    try:
        data = read_regular(path, limit=_MOST_ERROR_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnusableFile) as error:
        if isinstance(error, OSError) and lacks_resources(error):
            raise
        return _unreadable("ErrorUnreadable", error)
    try:
        found = ErrorDocument.FromString(data).error
    except BadMessage as error:
        return _unreadable("ErrorUnreadable", f"{path} is no ErrorDocument: {error}")
    state = ErrorState(
        code=found.code[:_MOST_CODE],
        # What the SDK does not say is the task's own doing.
        kind=_KINDS.get(found.origin, "USER"),
        message=_shortened(found.message),
    )
    return Outcome(state, found.kind == ContainerError.RECOVERABLE)


def _unreadable(code: str, error: object, *, recoverable: bool = False) -> Outcome:
    return Outcome(ErrorState(code=code, kind="USER", message=str(error)), recoverable)


def _shortened(message: str) -> str:
    if len(message) <= _MOST_MESSAGE:
        return message
    half = _MOST_MESSAGE // 2
    left_out = len(message) - 2 * half
    return f"{message[:half]}\n({left_out} characters are left out)\n{message[-half:]}"


def _how(code: int | None) -> str:
    if code is None:
        return "the process ended unseen, and left neither outputs nor an error"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            # A real-time signal, or what a task wrote.
            name = f"signal {-code}"
        return f"the process was ended by {name}"
    return f"the process exited with {code}"
