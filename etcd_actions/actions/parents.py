"""Caches the parents of enqueued actions: each state is decoded once for all children."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from etcd_actions.actions.object_builder import Inherited
from etcd_actions.actions.read_cache import LARGEST
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import ActionId, Phase

_MOST: Final = 256
"""The most entries of each kind."""


class Parent(NamedTuple):
    """The parts of a parent's object that its children need.

    Attributes:
        action_id: The parent.
        refusal: Why it gets no children; empty if it does.
        inherited: The data that children inherit.
    """

    action_id: ActionId
    refusal: str
    inherited: Inherited


class ParentCache:
    """The parents that were read last; of a bounded number the least recently used is dropped."""

    def __init__(self) -> None:
        # By key, the parent and the value that it was decoded from.
        self._found: OrderedDict[bytes, tuple[bytes, Parent]] = OrderedDict()
        self._moved: OrderedDict[bytes, int] = OrderedDict()
        self._aborts: OrderedDict[bytes, None] = OrderedDict()

    def read(self, kv: KeyValue) -> Parent:
        """Decode a parent, unless its value is cached.

        Raises:
            DecodeError: It is not a TaskAction.
        """
        found = self._found.get(kv.key)
        if found is not None and found[0] == kv.value:
            self._found.move_to_end(kv.key)
            return found[1]
        action = StoredAction.of(kv)
        refusal = ""
        if action.is_deleting:
            refusal = "is being deleted"
        elif action.phase is Phase.ABORTED:
            refusal = "is aborted"
        parent = Parent(action.action_id, refusal, Inherited.of(action))
        if len(kv.value) <= LARGEST:
            self._found[kv.key] = kv.value, parent
            self._found.move_to_end(kv.key)
            if len(self._found) > _MOST:
                self._found.popitem(last=False)
        return parent

    def moved(self, kv: KeyValue) -> None:
        """Note that a parent differs from the cached object."""
        self._moved[kv.key] = kv.mod_revision
        self._moved.move_to_end(kv.key)
        if len(self._moved) > _MOST:
            self._moved.popitem(last=False)

    def is_restless(self, key: bytes) -> bool:
        """Whether a parent had changed since the enqueue before, at the last read."""
        return key in self._moved

    def rests(self, kv: KeyValue) -> bool:
        """Whether a parent is unchanged since the last read: then the next enqueue may guess."""
        before = self._moved.get(kv.key)
        if before is None:
            return True
        if before == kv.mod_revision:
            del self._moved[kv.key]
            return True
        self.moved(kv)
        return False

    def note_aborts(self, run: bytes, exist: bool) -> None:
        """Note whether a run, named by the prefix of its markers, has markers of aborts."""
        self._aborts.pop(run, None)
        if exist:
            self._aborts[run] = None
            if len(self._aborts) > _MOST:
                self._aborts.popitem(last=False)

    def has_aborts(self, run: bytes) -> bool:
        """Whether a run had markers of aborts at the last read."""
        return run in self._aborts

    def clear(self) -> None:
        """Drop all entries."""
        self._found.clear()
        self._moved.clear()
        self._aborts.clear()
