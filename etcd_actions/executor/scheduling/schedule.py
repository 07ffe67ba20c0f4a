"""Which action is attended to next, and when: a state machine without I/O.

An action that is not over and not attended to is in one of these places: ready, and waiting for
room; delayed until a time; elsewhere, with another executor; or unexamined, because it may have
been started before us. It is in one place at a time, and whatever touches it costs O(log n).
Times are on the monotonic clock.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from etcd_actions._internal.keyed_heap import KeyedHeap
from etcd_actions.executor.scheduling.turns import Order, Turns


class Due(Enum):
    """What a time is for."""

    AGAIN = "again"
    """The delay of an action is over."""
    EXPIRED = "expired"
    """It has waited too long for room."""
    VISIT = "visit"
    """Its object is to be looked at."""
    NOTE = "note"
    """A state that could not be taken in is to be tried again."""


class Alarm(NamedTuple):
    """A time that has come, for an action."""

    due: Due
    name: str


class Schedule:
    """Where each action that waits is, and all times that are to come.

    Args:
        turns: Those that are ready, and who of them is next; by default of one slot.
    """

    def __init__(self, turns: Turns | None = None) -> None:
        self._ready = Turns(1) if turns is None else turns
        self._alarms: KeyedHeap[Alarm, float] = KeyedHeap()
        # Whether news ends the delay.
        self._delayed: dict[str, bool] = {}
        self._elsewhere: set[str] = set()
        self._unexamined: dict[str, None] = {}
        self._unvisited: dict[str, None] = {}

    def __len__(self) -> int:
        """How many wait, wherever."""
        waiting = len(self._ready) + len(self._delayed) + len(self._elsewhere)
        return waiting + len(self._unexamined)

    def ready(self, name: str, order: Order, run: str = "", most: int = 0) -> None:
        """It may begin as soon as there is room; see :meth:`Turns.ready`."""
        self._leave(name)
        self._ready.ready(name, run, order, most)
        self._unvisited[name] = None

    def reorder(self, name: str, order: Order) -> None:
        """Its order has changed; nothing happens to one that is not ready."""
        if name in self._ready:
            self._ready.reorder(name, order)

    def examine(self, name: str) -> None:
        """It may have been started already: somebody has to look."""
        self._leave(name)
        self._unexamined[name] = None

    def delay(self, name: str, until: float, *, wakes: bool) -> None:
        """It is not tried before a time; with ``wakes`` news of it ends the delay."""
        self._leave(name)
        self._delayed[name] = wakes
        self.at(Due.AGAIN, name, until)

    def hasten(self, name: str, until: float) -> None:
        """A delay that news does not end is over at another time; nothing else is changed."""
        if self._delayed.get(name) is False:
            self.at(Due.AGAIN, name, until)

    def elsewhere(self, name: str) -> None:
        """Another executor has it."""
        self._leave(name)
        self._elsewhere.add(name)

    def begin(self, name: str) -> None:
        """It is attended to from now on."""
        self._leave(name)
        self.cancel(Due.EXPIRED, name)

    def drop(self, name: str) -> None:
        """It is over: nothing is to come."""
        self._leave(name)
        for due in Due:
            self.cancel(due, name)

    def at(self, due: Due, name: str, when: float | None) -> None:
        """Set an alarm, in place of the one before; None for never."""
        if when is None:
            self.cancel(due, name)
        else:
            self._alarms.put(Alarm(due, name), when)

    def cancel(self, due: Due, name: str) -> None:
        """Set no alarm."""
        self._alarms.remove(Alarm(due, name))

    def is_ready(self, name: str) -> bool:
        """Whether it waits for room."""
        return name in self._ready

    def is_elsewhere(self, name: str) -> bool:
        """Whether another executor has it."""
        return name in self._elsewhere

    def is_waiting(self, name: str) -> bool:
        """Whether it is in any of the places."""
        return (
            name in self._ready
            or name in self._delayed
            or name in self._elsewhere
            or name in self._unexamined
        )

    def keeps_waiting(self, name: str) -> bool:
        """Whether news changes nothing: it is elsewhere, or has to wait for a time."""
        return name in self._elsewhere or self._delayed.get(name) is False

    def first(self) -> str | None:
        """Who is next for room; None for nobody."""
        return self._ready.first()

    def unexamined(self) -> list[str]:
        """Those that are to be examined."""
        return list(self._unexamined)

    def is_unexamined(self, name: str) -> bool:
        """Whether it is to be examined."""
        return name in self._unexamined

    def take_unvisited(self) -> list[str]:
        """Those that became ready since this was asked last, and still are."""
        names, self._unvisited = [name for name in self._unvisited if name in self._ready], {}
        return names

    def keep_elsewhere(self, taken: set[str]) -> list[str]:
        """Leave elsewhere only who is there; gives the others, which are nowhere then."""
        free = [name for name in self._elsewhere if name not in taken]
        self._elsewhere.difference_update(free)
        return free

    def take_due(self, now: float) -> Alarm | None:
        """The first alarm whose time has come, None for none; a delay ends with its alarm."""
        first = self._alarms.first()
        if first is None or first[1] > now:
            return None
        alarm = first[0]
        self._alarms.remove(alarm)
        if alarm.due is Due.AGAIN:
            self._delayed.pop(alarm.name, None)
        return alarm

    def next_alarm(self) -> float:
        """When the next alarm is due; infinity for never."""
        first = self._alarms.first()
        return float("inf") if first is None else first[1]

    def _leave(self, name: str) -> None:
        self._ready.remove(name)
        self._elsewhere.discard(name)
        self._unexamined.pop(name, None)
        if self._delayed.pop(name, None) is not None:
            self.cancel(Due.AGAIN, name)
