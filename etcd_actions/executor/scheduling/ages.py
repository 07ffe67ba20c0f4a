"""When actions and their attempts began to count, on the monotonic clock.

What is seen as it comes is new. Only of what was there before, when the executor began to look, the
wall clock is asked once: how old it is. From then on its age grows with the monotonic clock,
whatever the wall clock is set to.
"""

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
    # None: it began before it was seen, and its history was not read yet.
    queued: float | None


class Ages:
    """The ages of all actions that are not over.

    Args:
        clock: What they are counted on.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ages: dict[str, _Age] = {}

    def note(self, name: str, update: ActionUpdate, *, live: bool) -> None:
        """Take in a state of an action.

        Args:
            name: Which action.
            update: The state.
            live: Whether it is told as it comes, so that an unknown action is a new one.
        """
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
        """The action is over."""
        self._ages.pop(name, None)

    def created(self, name: str) -> float:
        """When the action was created; of one that is over, now."""
        age = self._ages.get(name)
        return self._clock.monotonic() if age is None else age.created

    def queued(self, name: str, action: ActionObject) -> float:
        """When the present attempt of an action was queued."""
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
