"""How an attempt ended: its error file decides, then its outputs, then its exit code.

The SDK's command exits with 0 when its task fails, and may be killed after all is written.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import NamedTuple

from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument, ExecutionError
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions.executor.places import AttemptPlace
from etcd_actions.model import ErrorState

ERROR_FILE = "error.pb"
OUTPUTS_FILE = "outputs.pb"

_KINDS = {ExecutionError.USER: "USER", ExecutionError.SYSTEM: "SYSTEM"}


class Outcome(NamedTuple):
    """``error`` is None for a success; ``recoverable`` says whether trying again may help."""

    error: ErrorState | None
    recoverable: bool = False


def outcome_of(place: AttemptPlace, outputs: Path) -> Outcome:
    """Look at what an attempt left behind."""
    failure = _read_error(outputs / ERROR_FILE)
    if failure is not None:
        return failure
    code = place.exit_code
    if (outputs / OUTPUTS_FILE).exists() or code == 0:
        return Outcome(None)
    lines = place.last_lines()
    message = _how(code) + (f"; its log ends with:\n{lines}" if lines else "")
    # As Flyte's executor does with a container that just went away.
    return Outcome(ErrorState(code="ProcessEnded", kind="SYSTEM", message=message), True)


def clear(outputs: Path) -> None:
    """Take away what would be mistaken for the outcome of an attempt that is to begin."""
    for name in (ERROR_FILE, OUTPUTS_FILE):
        (outputs / name).unlink(missing_ok=True)


def _read_error(path: Path) -> Outcome | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return Outcome(ErrorState(code="ErrorUnreadable", kind="SYSTEM", message=str(error)))
    try:
        found = ErrorDocument.FromString(data).error
    except BadMessage as error:
        message = f"{path} is no ErrorDocument: {error}"
        return Outcome(ErrorState(code="ErrorUnreadable", kind="SYSTEM", message=message))
    state = ErrorState(
        code=found.code,
        # What the SDK does not say is the task's own doing.
        kind=_KINDS.get(found.origin, "USER"),
        message=found.message,
    )
    return Outcome(state, found.kind == ContainerError.RECOVERABLE)


def _how(code: int | None) -> str:
    if code is None:
        return "the process ended unseen, and left neither outputs nor an error"
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process exited with {code}"
