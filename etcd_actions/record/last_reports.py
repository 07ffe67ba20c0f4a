"""The last report about each key: what the run service accepted, and what has yet to be marked."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec

from etcd_actions.model import ACTION_TYPE_TRACE, ActionUpdate, Incarnation
from etcd_actions.record.recorder import TerminalState

NOT_TERMINAL: Final = -1
"""The number of a report that is not about a terminal state; no mark has it."""


class Accepted(NamedTuple):
    """A terminal state that the run service accepted.

    Attributes:
        incarnation: The incarnation of the object.
        state: The state.
        companions: Whether our own run service's part has yet to be written, with the mark.
    """

    incarnation: Incarnation
    state: TerminalState
    companions: bool


class LastReport(msgspec.Struct, gc=False):
    """The last report about a key.

    Attributes:
        accepted: A terminal state that has yet to be marked.
        started: When the accepted call started, on trio's clock.
        ended: The incarnation and the attempts of the last terminal state that was accepted.
        mark: The number of the mark of the last reported terminal state; :data:`NOT_TERMINAL` if
            another state was reported, maybe without success, since; None if nothing was reported
            in this term.
    """

    accepted: Accepted | None = None
    started: float = -math.inf
    ended: tuple[Incarnation, int] | None = None
    mark: int | None = None

    def has_ended(self, update: ActionUpdate) -> bool:
        """Whether a terminal state of the update's attempt, or of a later one, was accepted."""
        if update.action_type == ACTION_TYPE_TRACE or self.ended is None:
            return False
        incarnation, attempts = self.ended
        return incarnation == update.incarnation and update.attempts <= attempts


class LastReports(dict[bytes, LastReport]):
    """The last reports, by key."""

    def start_term(self) -> None:
        """Forget the accepted states and the marks: other leaders may have reported since."""
        for reported in self.values():
            reported.accepted = reported.mark = None

    def of(self, key: bytes) -> LastReport:
        """The last report about a key; an empty one is added if there was none."""
        return self.setdefault(key, LastReport())

    def is_other_mark(self, key: bytes, mark: int) -> bool:
        """Whether a mark is about another state than the last reported one of a key.

        It is if a writer puts an older copy of an object back, together with its mark. Flyte's own
        mark, a label alone, has the number 0 and is about each object that has it.
        """
        reported = self.get(key)
        last = None if reported is None else reported.mark
        return mark != 0 and last is not None and last != mark
