"""The actions that are not terminal: their depths, and the slots that they hold.

A state machine without I/O. Actions are named ``<namespace>/<name>``, by the keys of their objects.
The cost of a state is constant: it changes its action and the parent. One case costs more: a parent
that is received after its children changes the depths of all actions below it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from etcd_actions.executor.scheduling.turns import Turns
from etcd_actions.model import (
    ACTION_TYPE_CONDITION,
    ACTION_TYPE_TASK,
    ActionUpdate,
    task_action_name,
)

MOST_DEPTH: Final = 256
"""The greatest depth that is counted: it bounds the cost if actions name each other as parents."""


@dataclass(slots=True)
class OpenAction:
    """An action that is not terminal: its newest state, its depth, its children of this kind."""

    update: ActionUpdate
    depth: int
    children: set[str] = field(default_factory=set)

    @property
    def run(self) -> str:
        """The name of its run, ``<namespace>/<run>``."""
        return run_of(self.update)

    @property
    def is_condition(self) -> bool:
        """Whether it waits for a signal instead of running."""
        return self.update.action_type == ACTION_TYPE_CONDITION


class Board:
    """All actions that are not terminal.

    Args:
        turns: Counts the slots of each run; by default its own.
    """

    def __init__(self, turns: Turns | None = None) -> None:
        self._turns = Turns(1) if turns is None else turns
        self._open: dict[str, OpenAction] = {}
        # By parent, of parents that are not on the board: not received yet, or terminal.
        self._waiting_children: defaultdict[str, set[str]] = defaultdict(set)
        # The newest revisions of terminal actions, so that no older state revives them.
        self._terminal: dict[str, int] = {}
        # Actions that hold a slot, with their runs.
        self._held: dict[str, str] = {}
        self._busy = 0
        self._moved: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def busy(self) -> int:
        """The number of actions that hold a slot and wait for no child."""
        return self._busy

    @property
    def waiting(self) -> int:
        """The number of actions that wait for a child, so that their slots are free."""
        return len(self._held) - self._busy

    def get(self, name: str) -> OpenAction | None:
        """An action; None if it is terminal, or unknown."""
        return self._open.get(name)

    def names(self) -> Iterator[str]:
        """The names of all actions."""
        return iter(self._open)

    def note(self, update: ActionUpdate) -> bool:
        """Store the state of a task or condition; return whether it is new."""
        name = update.name
        known = self._open.get(name)
        seen = known.update.revision if known is not None else self._terminal.get(name, 0)
        if update.revision <= seen:
            return False
        if update.is_deleted or update.phase.is_terminal:
            return self._end(name, known, update)
        if update.action_type not in (ACTION_TYPE_TASK, ACTION_TYPE_CONDITION):
            return False
        if known is not None:
            now = known.update
            if now.incarnation == update.incarnation and _parent(now) == _parent(update):
                known.update = update
                return True
            # Another incarnation: the end of the one before was not received.
            self._remove(name, known)
        self._terminal.pop(name, None)
        self._add(name, update)
        return True

    def forget_revisions(self) -> None:
        """Accept each later state as new: the store was replaced, and has other revisions."""
        self._terminal.clear()
        for known in self._open.values():
            known.update = msgspec.structs.replace(known.update, revision=0)

    def forget(self, name: str) -> None:
        """Remove an action that has not ended: its states are not received any more."""
        if (known := self._open.get(name)) is not None:
            self._remove(name, known)

    def forget_ended(self, is_meant: Callable[[str], bool]) -> None:
        """Forget that some actions have ended: their states are not received any more."""
        for name in [name for name in self._terminal if is_meant(name)]:
            del self._terminal[name]

    def hold(self, name: str) -> None:
        """Let an action hold a slot; it is free while the action waits for a child."""
        if name not in self._held:
            known = self._open.get(name)
            run = self._held[name] = "" if known is None else known.run
            self._turns.count_running(run, 1)
            self._count(name, False)

    def release(self, name: str) -> None:
        """Release the slot of an action."""
        if name in self._held:
            took, run = self._takes_slot(name), self._held.pop(name)
            self._busy -= took
            self._turns.count_slots(run, -took)
            self._turns.count_running(run, -1)

    def moved(self) -> list[str]:
        """The actions whose order has changed since the last call."""
        moved = [name for name in self._moved if name in self._open]
        self._moved.clear()
        return moved

    def is_waiting(self, name: str) -> bool:
        """Whether an action has children that are not terminal, so that it needs no slot."""
        known = self._open.get(name)
        return known is not None and bool(known.children)

    def children(self, name: str) -> frozenset[str]:
        """The children that are not terminal, also of an action that is."""
        known = self._open.get(name)
        return frozenset(known.children if known else self._waiting_children.get(name, ()))

    def order(self, name: str) -> tuple[int, int]:
        """The sort key of an action: the deepest is first, of these the oldest."""
        known = self._open[name]
        return (-known.depth, known.update.create_revision)

    def _end(self, name: str, known: OpenAction | None, update: ActionUpdate) -> bool:
        self._terminal[name] = update.revision
        if known is not None:
            self._remove(name, known)
        if update.is_deleted:
            # No older state is received after a deletion.
            self._terminal.pop(name, None)
        return known is not None

    def _add(self, name: str, update: ActionUpdate) -> None:
        above = _parent(update)
        before = self._takes_slot(name), self._takes_slot(above)
        parent = self._open.get(above)
        depth = min(parent.depth + 1, MOST_DEPTH) if parent is not None else 0
        children = self._waiting_children.pop(name, set())
        known = self._open[name] = OpenAction(update, depth, children)
        self._of_parent(update).add(name)
        self._count(name, before[0])
        self._count(above, before[1])
        self._update_depths(known)

    def _remove(self, name: str, known: OpenAction) -> None:
        above = _parent(known.update)
        before = self._takes_slot(name), self._takes_slot(above)
        del self._open[name]
        if known.children:
            self._waiting_children[name] = known.children
        siblings = self._of_parent(known.update)
        siblings.discard(name)
        if not siblings and above in self._waiting_children:
            del self._waiting_children[above]
        self._count(name, before[0])
        self._count(above, before[1])

    def _update_depths(self, known: OpenAction) -> None:
        """Update the depths of all actions below an action."""
        waiting = [known]
        while waiting:
            above = waiting.pop()
            depth = min(above.depth + 1, MOST_DEPTH)
            for name in above.children:
                child = self._open[name]
                if child.depth != depth:
                    child.depth = depth
                    self._moved[name] = None
                    waiting.append(child)

    def _count(self, name: str, before: bool) -> None:
        """Count the slot that an action has taken or released."""
        if (change := self._takes_slot(name) - before) and (
            run := self._held.get(name)
        ) is not None:
            self._busy += change
            self._turns.count_slots(run, change)

    def _takes_slot(self, name: str) -> bool:
        return name in self._held and not self.is_waiting(name)

    def _of_parent(self, update: ActionUpdate) -> set[str]:
        name = _parent(update)
        known = self._open.get(name)
        return known.children if known is not None else self._waiting_children[name]


def run_of(update: ActionUpdate) -> str:
    """The name of an action's run, ``<namespace>/<run>``."""
    namespace, slash, _ = update.name.rpartition("/")
    return namespace + slash + update.action_id.run


def _parent(update: ActionUpdate) -> str:
    """The name of the parent's object; empty for none, and for an action that names itself."""
    if not update.parent:
        return ""
    # It is in the namespace of the child.
    namespace, slash, _ = update.name.rpartition("/")
    name = namespace + slash + task_action_name(update.action_id.run, update.parent)
    return "" if name == update.name else name
