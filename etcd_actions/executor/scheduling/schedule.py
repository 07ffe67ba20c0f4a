"""The actions that wait, and their alarms: a state machine without I/O.

An action that is not terminal and does not run here is in one of four states: ready, it waits for a
slot; delayed until a time; elsewhere, another executor has it; or unexamined, an earlier executor
may have started it. Each change costs O(log n). Times are on the monotonic clock.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from etcd_actions._internal.keyed_heap import KeyedHeap
from etcd_actions.executor.scheduling.turns import Order, Turns


class Due(Enum):
    """The purpose of an alarm."""

    AGAIN = "again"
    """The delay of an action has ended."""
    EXPIRED = "expired"
    """The action has waited too long for a slot."""
    VISIT = "visit"
    """The action's object has to be read."""
    NOTE = "note"
    """A state that could not be processed is retried."""


class Alarm(NamedTuple):
    """An alarm of an action."""

    due: Due
    name: str


class Schedule:
    """The state of each action that waits, and all alarms.

    Args:
        turns: The actions that are ready; by default with one slot.
    """

    def __init__(self, turns: Turns | None = None) -> None:
        self._ready = Turns(1) if turns is None else turns
        self._alarms: KeyedHeap[Alarm, float] = KeyedHeap()
        # Whether an update ends the delay.
        self._delayed: dict[str, bool] = {}
        self._elsewhere: set[str] = set()
        self._unexamined: dict[str, None] = {}
        # Actions that became ready, and for which no visit was requested yet.
        self._unvisited: dict[str, None] = {}

    def __len__(self) -> int:
        """The number of waiting actions, in all four states."""
        waiting = len(self._ready) + len(self._delayed) + len(self._elsewhere)
        return waiting + len(self._unexamined)

    @property
    def ready_count(self) -> int:
        """The number of actions that wait for a slot."""
        return len(self._ready)

    def ready(self, name: str, order: Order, run: str = "", most: int = 0) -> None:
        """Let an action start once a slot is free; see :meth:`Turns.ready`."""
        self._leave(name)
        self._ready.ready(name, run, order, most)
        self._unvisited[name] = None

    def reorder(self, name: str, order: Order) -> None:
        """Change the order of an action, if it is ready."""
        if name in self._ready:
            self._ready.reorder(name, order)

    def examine(self, name: str) -> None:
        """Mark an action as unexamined: an earlier executor may have started it."""
        self._leave(name)
        self._unexamined[name] = None

    def delay(self, name: str, until: float, *, wakes: bool) -> None:
        """Delay an action until a time; with ``wakes`` an update of it ends the delay early."""
        self._leave(name)
        self._delayed[name] = wakes
        self.at(Due.AGAIN, name, until)

    def hasten(self, name: str, until: float) -> None:
        """Move the end of a delay that no update ends; do nothing for any other state."""
        if self._delayed.get(name) is False:
            self.at(Due.AGAIN, name, until)

    def elsewhere(self, name: str) -> None:
        """Note that another executor has an action."""
        self._leave(name)
        self._elsewhere.add(name)

    def begin(self, name: str) -> None:
        """Remove an action that runs from now on."""
        self._leave(name)
        self.at(Due.EXPIRED, name, None)

    def drop(self, name: str) -> None:
        """Remove an action that is terminal, with its alarms."""
        self._leave(name)
        for due in Due:
            self.at(due, name, None)

    def at(self, due: Due, name: str, when: float | None) -> None:
        """Set or replace an alarm; None removes it."""
        if when is None:
            self._alarms.remove(Alarm(due, name))
        else:
            self._alarms.put(Alarm(due, name), when)

    def is_ready(self, name: str) -> bool:
        """Whether an action waits for a slot."""
        return name in self._ready

    @property
    def has_elsewhere(self) -> bool:
        """Whether another executor has any action."""
        return bool(self._elsewhere)

    def is_elsewhere(self, name: str) -> bool:
        """Whether another executor has an action."""
        return name in self._elsewhere

    def keeps_waiting(self, name: str) -> bool:
        """Whether an update changes nothing: the action is elsewhere, or has to wait for a time."""
        return name in self._elsewhere or self._delayed.get(name) is False

    def first(self) -> str | None:
        """The action that gets the next slot, if any."""
        return self._ready.first()

    def unexamined(self) -> list[str]:
        """The actions that have to be examined."""
        return list(self._unexamined)

    def is_unexamined(self, name: str) -> bool:
        """Whether an action has to be examined."""
        return name in self._unexamined

    def take_unvisited(self) -> list[str]:
        """The actions that became ready since the last call, and still are."""
        names, self._unvisited = [name for name in self._unvisited if name in self._ready], {}
        return names

    def keep_elsewhere(self, taken: set[str]) -> list[str]:
        """Keep the claimed actions elsewhere; remove and return the others."""
        free = [name for name in self._elsewhere if name not in taken]
        self._elsewhere.difference_update(free)
        return free

    def take_due(self, now: float) -> Alarm | None:
        """Remove and return the first alarm that is due, if any; a delay ends with its alarm."""
        if (first := self._alarms.first()) is None or first[1] > now:
            return None
        alarm = first[0]
        self._alarms.remove(alarm)
        if alarm.due is Due.AGAIN:
            self._delayed.pop(alarm.name, None)
        return alarm

    def next_alarm(self) -> float:
        """The time of the next alarm; infinity if there is none."""
        first = self._alarms.first()
        return float("inf") if first is None else first[1]

    def _leave(self, name: str) -> None:
        self._ready.remove(name)
        self._elsewhere.discard(name)
        self._unexamined.pop(name, None)
        if self._delayed.pop(name, None) is not None:
            self.at(Due.AGAIN, name, None)
