"""The values of the outbox: a queued report of a change, and the last report about a key."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec

from etcd_actions.model import ACTION_TYPE_TRACE, ActionObject, ActionUpdate, Incarnation
from etcd_actions.record.recorder import TerminalState
from etcd_actions.watch import Change

NOT_TERMINAL: Final = -1
"""The number of a report that is not about a terminal state; no mark has it."""


class QueuedReport(Change, frozen=True, gc=False):
    """A change with the parts that its report needs.

    A DELETED change without an update stands for a request: the reports of dead letters about a
    deleted object are repeated.

    Attributes:
        update: The update that reports a deletion; None for a state.
        read: Whether the value was read in this term, when it was the newest.
        action: The decoded value, if it is available.
        delivered: When the watch delivered it, by :func:`time.perf_counter`; 0 if the lag of its
            report does not count.
    """

    update: ActionUpdate | None = None
    read: bool = False
    action: ActionObject | None = None
    delivered: float = 0.0

    @classmethod
    def of(
        cls,
        change: Change,
        update: ActionUpdate | None = None,
        *,
        read: bool = False,
        action: ActionObject | None = None,
        delivered: float = 0.0,
    ) -> QueuedReport:
        """The report of a change."""
        dropped = change.value_dropped
        return cls(
            change.kind,
            change.kv,
            value_dropped=dropped,
            update=update,
            read=read,
            action=action,
            delivered=delivered,
        )

    def without_value(self) -> Change:
        """The same change with its value dropped."""
        return msgspec.structs.replace(super().without_value(), action=None)


def untimed(change: Change) -> Change:
    """The same change, whose lag does not count again."""
    if not isinstance(change, QueuedReport):
        return change
    return msgspec.structs.replace(change, delivered=0.0)


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
