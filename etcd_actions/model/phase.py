"""The phase of an action, and the conditions in which it is stored."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from etcd_actions.model.names import OWN_DOMAIN


class Phase(enum.IntEnum):
    """The phase of an action, with the numbers of Flyte's ``ActionPhase``."""

    UNSPECIFIED = 0
    QUEUED = 1
    WAITING_FOR_RESOURCES = 2
    INITIALIZING = 3
    RUNNING = 4
    SUCCEEDED = 5
    FAILED = 6
    ABORTED = 7
    TIMED_OUT = 8
    PAUSED = 9
    RECOVERED = 10

    @property
    def is_terminal(self) -> bool:
        """Whether an action in this phase has ended (Flyte's ``isTerminalPhase``)."""
        return self in TERMINAL


SUCCESSES: Final = frozenset({Phase.SUCCEEDED, Phase.RECOVERED})
FAILURES: Final = (Phase.FAILED, Phase.TIMED_OUT, Phase.ABORTED)
TERMINAL: Final = frozenset({*SUCCESSES, *FAILURES})


class Condition(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """One entry of ``status.conditions``, a Kubernetes ``metav1.Condition``.

    Flyte's schema requires the five texts, so all are written, also empty ones.
    """

    type: str
    status: str
    """``True``, ``False`` or ``Unknown``."""
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""
    """RFC 3339."""
    observed_generation: int | msgspec.UnsetType = msgspec.UNSET


CONDITION_WAITING: Final = OWN_DOMAIN + "/WaitingForResources"
"""Ours: a queued action with this condition waits for resources.

Flyte has no condition for this phase; its executor writes ``Queued``. So do we, after this
condition, which Flyte's own readers ignore.
"""

_PROGRESSING = {
    "Queued": Phase.QUEUED,
    "Initializing": Phase.INITIALIZING,
    "Executing": Phase.RUNNING,
    "Paused": Phase.PAUSED,
}

_SUCCEEDED = {"Recovered": Phase.RECOVERED}
_FAILED = {"TimedOut": Phase.TIMED_OUT, "Aborted": Phase.ABORTED}


class ConditionLike(Protocol):
    """The fields of a condition that decide the phase."""

    @property
    def type(self) -> str:
        """``Progressing``, ``Succeeded``, ``Failed``, or another, which does not count."""

    @property
    def status(self) -> str:
        """``True``, ``False`` or ``Unknown``."""

    @property
    def reason(self) -> str:
        """The reason, one word in CamelCase."""


def phase_of(conditions: Iterable[ConditionLike]) -> Phase:
    """Read the phase from the conditions, as Flyte's ``GetPhaseFromConditions`` does.

    The first condition in the list that has a phase decides. A condition that is not ``True`` has
    none, nor has ``Progressing`` with a reason without a phase (``RetryableFailure``).

    Three cases differ from Flyte. A failure with the reason ``Aborted`` is ABORTED here; Flyte
    reads FAILED, and reports the abort by the deletion that follows. A success with the reason
    ``Recovered`` is RECOVERED here, and SUCCEEDED there. A queued action with `CONDITION_WAITING`
    before the other condition is WAITING_FOR_RESOURCES here, and QUEUED there.

    Returns:
        The phase; UNSPECIFIED if no condition has one.
    """
    waiting = False
    for condition in conditions:
        if condition.status != "True":
            continue
        kind = condition.type
        if kind == "Progressing":
            phase = _PROGRESSING.get(condition.reason)
            if phase is Phase.QUEUED and waiting:
                return Phase.WAITING_FOR_RESOURCES
            if phase is not None:
                return phase
        elif kind == "Succeeded":
            return _SUCCEEDED.get(condition.reason, Phase.SUCCEEDED)
        elif kind == "Failed":
            return _FAILED.get(condition.reason, Phase.FAILED)
        elif kind == CONDITION_WAITING:
            waiting = True
    return Phase.UNSPECIFIED
