"""Whose turn it is: runs take turns, and within a run the deepest action is first.

A state machine without I/O. A run that holds the fewest slots is next, of these the one that was
served the longest ago: so one with thousands of actions leaves room for the others. Within a run
the deepest go first, since parents wait for their children.

A run of which nothing is under way has processes to start that may wait for long. All such runs
together have one turn, in the order in which they came; and where many runs are under way already,
none of them begins while one of these has something to do. So there are never many more processes
that wait than there are slots, however many runs there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from etcd_actions._internal.keyed_heap import KeyedHeap

Order = tuple[int, int]
"""What sorts the actions of a run, the smallest first: depth, then age."""

RUNS_FOR_A_SLOT: Final = 4
"""Beyond so many runs under way, for each slot, new ones wait until these have nothing to do."""


@dataclass(slots=True)
class _Run:
    ready: KeyedHeap[str, Order] = field(default_factory=KeyedHeap)
    attended: int = 0
    busy: int = 0
    most: int = 0
    turn: int = 0


class Turns:
    """The actions that are ready, by run, and the slots that each run holds.

    Args:
        slots: How many actions may be busy at once, of all runs.
    """

    def __init__(self, slots: int) -> None:
        self._most_runs = max(1, slots) * RUNS_FOR_A_SLOT
        self._runs: dict[str, _Run] = {}
        self._run_of: dict[str, str] = {}
        # Those that have something ready and may take a slot more.
        self._under_way: KeyedHeap[str, tuple[int, int]] = KeyedHeap()
        self._new: KeyedHeap[str, int] = KeyedHeap()
        self._attended = 0
        self._turn = 0
        self._turn_of_new = 0

    def __len__(self) -> int:
        """How many actions are ready."""
        return len(self._run_of)

    def __contains__(self, name: object) -> bool:
        return name in self._run_of

    def ready(self, name: str, run: str, order: Order, most: int = 0) -> None:
        """An action may begin.

        Args:
            name: Which.
            run: Its run.
            order: What sorts it among those of its run.
            most: How many slots its run may hold at once; 0 where that is not said.
        """
        self._run_of[name] = run
        known = self._run(run)
        known.ready.put(name, order)
        known.most = most or known.most
        self._place(run)

    def reorder(self, name: str, order: Order) -> None:
        """The order of an action that is ready has changed."""
        self.ready(name, self._run_of[name], order)

    def remove(self, name: str) -> None:
        """An action is not ready any more; nothing happens to one that was not."""
        run = self._run_of.pop(name, None)
        if run is not None:
            self._runs[run].ready.remove(name)
            self._place(run)

    def first(self) -> str | None:
        """Who is next; None where nobody is, or the limits of their runs keep all back."""
        under_way, new = self._under_way.first(), self._new.first()
        run = None if under_way is None else under_way[0]
        if new is not None and (
            under_way is None
            or (self._attended < self._most_runs and (0, self._turn_of_new) < under_way[1])
        ):
            run = new[0]
        if run is None:
            return None
        first = self._runs[run].ready.first()
        assert first is not None
        return first[0]

    def attend(self, run: str, by: int) -> None:
        """So many more actions of a run are attended to, whether they hold a slot or not."""
        known = self._run(run)
        before, known.attended = known.attended, known.attended + by
        self._attended += (known.attended > 0) - (before > 0)
        if by > 0:
            self._turn += 1
            known.turn = self._turn
            if not before:
                self._turn_of_new = self._turn
        self._place(run)

    def take(self, run: str, by: int) -> None:
        """So many more slots are held by a run."""
        if by:
            self._run(run).busy += by
            self._place(run)

    def _run(self, run: str) -> _Run:
        known = self._runs.get(run)
        if known is None:
            known = self._runs[run] = _Run()
        return known

    def _place(self, run: str) -> None:
        known = self._runs[run]
        first = known.ready.first()
        if first is None or (known.most and known.busy >= known.most):
            self._under_way.remove(run)
            self._new.remove(run)
            if first is None and not known.attended and not known.busy:
                del self._runs[run]
        elif known.attended:
            self._new.remove(run)
            self._under_way.put(run, (known.busy, known.turn))
        else:
            self._under_way.remove(run)
            self._new.put(run, first[1][1])
