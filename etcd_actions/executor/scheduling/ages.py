"""The times at which actions were created and their attempts queued, on the monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass

from etcd_actions._internal.clock import Clock
from etcd_actions.model import ActionObject, ActionUpdate, Incarnation
from etcd_actions.model.durations import age_of


@dataclass(slots=True)
class _Age:
    incarnation: Incarnation
    created: float
    attempt: int
    # None: it was queued before the executor received it, and its history was not read yet.
    queued: float | None


class Ages:
    """The ages of the actions that are not terminal.

    An action that is received as it changes is new. The age of one of the first snapshot is
    computed once, by the wall clock; steps of that clock change nothing afterwards.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ages: dict[str, _Age] = {}

    def note(self, name: str, update: ActionUpdate, *, live: bool) -> None:
        """Store the age of an action; ``live`` is whether the update is not part of a snapshot."""
        now, attempt = self._clock.monotonic(), max(update.attempts, 1)
        age = self._ages.get(name)
        if age is None or age.incarnation != update.incarnation:
            created = now
            if not live:
                created -= age_of(
                    update.creation_timestamp, "metadata.creationTimestamp", self._clock.wall()
                )
            queued = created if attempt == 1 else None
            self._ages[name] = _Age(update.incarnation, created, attempt, queued)
        elif attempt > age.attempt:
            age.attempt, age.queued = attempt, now

    def drop(self, name: str) -> None:
        """Remove an action that is terminal."""
        self._ages.pop(name, None)

    def created(self, name: str) -> float:
        """The time of an action's creation; now if the action is unknown."""
        age = self._ages.get(name)
        return self._clock.monotonic() if age is None else age.created

    def queued(self, name: str, action: ActionObject) -> float:
        """The time at which the present attempt of an action was queued."""
        now, age = self._clock.monotonic(), self._ages.get(name)
        attempt = max(action.status.attempts, 1)
        if age is not None and age.attempt == attempt and age.queued is not None:
            return age.queued
        history = action.status.phase_history
        queued = self.created(name) if attempt == 1 else now
        if history and attempt > 1:
            past = age_of(history[-1].occurred_at, "status.phaseHistory", self._clock.wall())
            queued = now - past
        if age is not None and age.attempt <= attempt:
            age.attempt, age.queued = attempt, queued
        return queued
