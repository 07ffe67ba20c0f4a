"""The order of ready actions: runs take turns, and within a run the deepest action is first.

A state machine without I/O. The run that holds the fewest slots is next, of these the one that was
served the longest ago: so a run of thousands of actions leaves slots to others. Within a run the
deepest go first, since parents wait for their children.

All runs without a running action have one turn together, in the order of their creation. While
many runs are running, none of them starts if a running one has an action that is ready. So the
number of processes that only wait is bounded by the slots, not by the runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from etcd_actions._internal.keyed_heap import KeyedHeap

Order = tuple[int, int]
"""The sort key of the actions of a run, the smallest first: depth, then age."""

RUNS_FOR_A_SLOT: Final = 4
"""While so many runs for each slot are running, others start only if these have none ready."""


@dataclass(slots=True)
class _Run:
    ready: KeyedHeap[str, Order] = field(default_factory=KeyedHeap)
    running: int = 0
    busy: int = 0
    most: int = 0
    turn: int = 0


class Turns:
    """The actions that are ready, by run, and the slots that each run holds.

    Args:
        slots: The number of actions of all runs that may be busy at once.
    """

    def __init__(self, slots: int) -> None:
        self._most_runs = max(1, slots) * RUNS_FOR_A_SLOT
        self._runs: dict[str, _Run] = {}
        self._run_of: dict[str, str] = {}
        # The runs with a running action that have a ready one and may take one more slot, and
        # below them the same for runs without a running action.
        self._running: KeyedHeap[str, tuple[int, int]] = KeyedHeap()
        self._new: KeyedHeap[str, int] = KeyedHeap()
        self._running_runs = 0
        self._turn = 0
        self._turn_of_new = 0

    def __len__(self) -> int:
        """The number of ready actions."""
        return len(self._run_of)

    def __contains__(self, name: object) -> bool:
        return name in self._run_of

    def ready(self, name: str, run: str, order: Order, most: int = 0) -> None:
        """Let an action of a run start.

        Args:
            name: The action.
            run: Its run.
            order: Its sort key.
            most: The number of slots that the run may hold at once; 0 for no limit.
        """
        self._run_of[name] = run
        known = self._run(run)
        known.ready.put(name, order)
        known.most = most or known.most
        self._place(run)

    def reorder(self, name: str, order: Order) -> None:
        """Change the order of an action that is ready."""
        self.ready(name, self._run_of[name], order)

    def remove(self, name: str) -> None:
        """Remove an action, if it is ready."""
        run = self._run_of.pop(name, None)
        if run is not None:
            self._runs[run].ready.remove(name)
            self._place(run)

    def first(self) -> str | None:
        """The next action; None if none is ready, or the limits of their runs are reached."""
        running, new = self._running.first(), self._new.first()
        run = None if running is None else running[0]
        if new is not None and (
            running is None
            or (self._running_runs < self._most_runs and (0, self._turn_of_new) < running[1])
        ):
            run = new[0]
        if run is None:
            return None
        first = self._runs[run].ready.first()
        assert first is not None
        return first[0]

    def count_running(self, run: str, by: int) -> None:
        """Add to the number of a run's running actions, with or without a slot."""
        known = self._run(run)
        before, known.running = known.running, known.running + by
        self._running_runs += (known.running > 0) - (before > 0)
        if by > 0:
            self._turn += 1
            known.turn = self._turn
            if not before:
                self._turn_of_new = self._turn
        self._place(run)

    def count_slots(self, run: str, by: int) -> None:
        """Add to the number of slots that a run holds."""
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
            self._running.remove(run)
            self._new.remove(run)
            if first is None and not known.running and not known.busy:
                del self._runs[run]
        elif known.running:
            self._new.remove(run)
            self._running.put(run, (known.busy, known.turn))
        else:
            self._running.remove(run)
            self._new.put(run, first[1][1])
