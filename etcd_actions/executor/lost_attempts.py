"""Attempts that end without an outcome: their worker died, or could not renew its claims.

Another worker has neither their directory nor their processes. So it never repeats an attempt: it
starts the next one, whose outputs have a directory of their own, and a process of the lost attempt
that still writes harms nothing. A lost attempt does not count as one of the task's retries.
"""

from __future__ import annotations

from typing import Final

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.model import ErrorState, Phase
from etcd_actions.model.earlier_attempts import earlier_attempts

WORKER_LOST: Final = "WorkerLost"
"""The worker died, or its claim could expire before it was renewed."""
WORKER_STOPPED: Final = "WorkerStopped"
"""The worker was stopped, and the attempt did not end within the worker's ``--grace``."""
MOST_LOST: Final = 5
"""Workers that may be lost while they run one action; then it fails, as the likely cause."""

STARTED: Final = (Phase.INITIALIZING, Phase.RUNNING)
"""The phases of an action whose present attempt was started, or is about to be."""

_NOT_STARTED: Final = "NotStarted"
_FILE: Final = "lost"
_MESSAGES: Final = {
    WORKER_LOST: "its worker died, or could not renew its claim: its outcome is unknown",
    WORKER_STOPPED: "its worker was stopped before it ended",
}


def note_lost(place: AttemptDirectory, code: str) -> None:
    """Note that an attempt is lost, before its processes are ended.

    Raises:
        OSError: It cannot be written.
    """
    (place.path / _FILE).write_text(code)


def loss_of(action: StoredAction, place: AttemptDirectory) -> ErrorState | None:
    """The error of the present attempt if it is lost; None if it runs, has ended or can start.

    Args:
        action: The action, claimed by this worker.
        place: The attempt's directory here.
    """
    found = noted_loss(place)
    if found is None and action.phase in STARTED and not place.path.is_dir():
        return _error(WORKER_LOST)
    return found


def noted_loss(place: AttemptDirectory) -> ErrorState | None:
    """The error of an attempt that :func:`note_lost` noted; None if there is no note."""
    try:
        text = (place.path / _FILE).read_text()
    except (OSError, ValueError):
        return None
    return _error(text if text in _MESSAGES else WORKER_LOST)


def unseen_loss() -> ErrorState:
    """The error of an attempt that an earlier process of this worker started.

    It has ended together with that process and its guard, as by a crash of the machine, and none of
    them recorded how.
    """
    return _error(WORKER_LOST)


def losses(action: StoredAction, code: str = "") -> int:
    """The number of lost attempts that the object has an error of; with ``code``, of this code."""
    codes = [each.code for each in earlier_attempts(action)]
    # NotStarted: the machine could not start the attempt, so it never ran.
    lost = (code,) if code else (*_MESSAGES, _NOT_STARTED)
    return sum(each in lost for each in codes)


def _error(code: str) -> ErrorState:
    return ErrorState(code=code, kind="SYSTEM", message=_MESSAGES[code])
