"""What is known of the actions, and which of them is to run next.

A state machine without I/O: it is told of states, and asked. Actions are called by the names
of their objects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from etcd_actions.model import (
    ACTION_TYPE_CONDITION,
    ACTION_TYPE_TASK,
    ActionUpdate,
    task_action_name,
)


@dataclass(slots=True)
class Known:
    """An action that is not over.

    Attributes:
        update: Its newest state.
        depth: How many actions are above it.
        children: What is below it and not over.
    """

    update: ActionUpdate
    depth: int
    children: set[str] = field(default_factory=set)

    @property
    def is_condition(self) -> bool:
        """Whether it waits for a signal instead of running."""
        return self.update.action_type == ACTION_TYPE_CONDITION


class Board:
    """All actions that are not over."""

    def __init__(self) -> None:
        self._open: dict[str, Known] = {}
        # Of parents that are not known yet, or not any more.
        self._waiting_children: defaultdict[str, set[str]] = defaultdict(set)
        # The newest revision of what is over, so that an older state does not revive it.
        self._over: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Known | None:
        """An action; None where it is over, or was never there."""
        return self._open.get(name)

    def names(self) -> Iterator[str]:
        """All that are not over."""
        return iter(self._open)

    def note(self, update: ActionUpdate) -> bool:
        """Take in a state, of a task or condition; whether it is news."""
        name = update.name
        known = self._open.get(name)
        seen = known.update.revision if known is not None else self._over.get(name, 0)
        if update.revision <= seen:
            return False
        if update.is_deleted or update.phase.is_terminal:
            self._over[name] = update.revision
            if known is not None:
                del self._open[name]
                if known.children:
                    self._waiting_children[name] = known.children
                siblings = self._of_parent(known.update)
                siblings.discard(name)
                above = _parent(known.update)
                if not siblings and above in self._waiting_children:
                    del self._waiting_children[above]
            if update.is_deleted:
                # Nothing older comes after a deletion.
                self._over.pop(name, None)
            return known is not None
        if update.action_type not in (ACTION_TYPE_TASK, ACTION_TYPE_CONDITION):
            return False
        self._over.pop(name, None)
        if known is not None:
            known.update = update
            return True
        parent = self._open.get(_parent(update))
        children = self._waiting_children.pop(name, set())
        self._open[name] = Known(update, parent.depth + 1 if parent else 0, children)
        self._of_parent(update).add(name)
        return True

    def is_waiting(self, name: str) -> bool:
        """Whether an action has children that are not over: then it does not need a slot."""
        known = self._open.get(name)
        return known is not None and bool(known.children)

    def children(self, name: str) -> frozenset[str]:
        """What is below an action and not over; of one that is over, too."""
        known = self._open.get(name)
        return frozenset(known.children if known else self._waiting_children.get(name, ()))

    def order(self, name: str) -> tuple[int, int]:
        """What sorts actions by who is next: the deepest, of these the oldest."""
        known = self._open[name]
        return (-known.depth, known.update.create_revision)

    def _of_parent(self, update: ActionUpdate) -> set[str]:
        name = _parent(update)
        known = self._open.get(name)
        return known.children if known is not None else self._waiting_children[name]


def _parent(update: ActionUpdate) -> str:
    return task_action_name(update.action_id.run, update.parent) if update.parent else ""
