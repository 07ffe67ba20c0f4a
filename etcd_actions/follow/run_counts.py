"""Counts the actions of a run by the index, while a reader needs it.

The index has no list of the keys of a run. So a count starts with the root, and reads the children
of each action, some at a time. From its start on the index notes each change of the run in it. An
action that had lost its parent before is counted from its next change on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from etcd_actions.model import ROOT_ACTION, task_action_name

PORTION: Final = 2_000
"""Actions that are read before other tasks run."""


class ActionCounts(NamedTuple):
    """The numbers of actions of a run, traces among them.

    Attributes:
        ended: Those that are terminal.
        actions: All.
    """

    ended: int
    actions: int


class Counted(Protocol):
    """The index, as far as a count reads it."""

    def has_ended(self, key: bytes, run: str, /) -> bool | None:
        """Whether an action of a run is terminal; None if the run has no such action."""

    def children(self, key: bytes, /) -> list[bytes]:
        """The keys of the children of a key's object."""


class RunCount:
    """The count of one run; :meth:`~etcd_actions.follow.index.Index.count` makes it.

    Args:
        run: The name of the run.
        heads: The keys of its objects and of its traces, up to the last slash.

    Attributes:
        users: The number of readers that share it.
    """

    def __init__(self, run: str, heads: Sequence[bytes]) -> None:
        self.run = run
        self.heads: tuple[bytes, ...] = tuple(heads)
        self.users = 0
        self._has_ended: dict[bytes, bool] = {}
        self._ended = 0
        root = task_action_name(run, ROOT_ACTION).encode(errors="replace")
        self._unread = [root]
        self._read = {root}

    @property
    def counts(self) -> ActionCounts | None:
        """The counts; None until all actions were read."""
        return None if self._unread else ActionCounts(self._ended, len(self._has_ended))

    def read_more(self, index: Counted, most: int = PORTION) -> None:
        """Read some more actions from the index."""
        for _ in range(most):
            if not self._unread:
                break
            name = self._unread.pop()
            for head in self.heads:
                key = head + b"/" + name
                if (has_ended := index.has_ended(key, self.run)) is not None:
                    self.put(key, has_ended)
                for child in index.children(key):
                    self._read_later(child)

        if not self._unread:
            self._read.clear()

    def put(self, key: bytes, has_ended: bool) -> None:
        """Note the present state of an action."""
        self._ended += has_ended - self._has_ended.get(key, False)
        self._has_ended[key] = has_ended
        if self._unread:
            self._read_later(key)

    def remove(self, key: bytes) -> None:
        """Note that an action was deleted."""
        self._ended -= self._has_ended.pop(key, False)
        if self._unread:
            # Its children are found through it alone.
            self._read_later(key)

    def _read_later(self, key: bytes) -> None:
        name = key.rpartition(b"/")[2]
        # Stored parents may form a circle.
        if name not in self._read:
            self._read.add(name)
            self._unread.append(name)
