"""The states of a run's actions that a stream sent last, and the phases of each one's children.

Streams of one run share the message of each state of an action.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from weakref import WeakValueDictionary

import msgspec
from flyteidl2.workflow.run_definition_pb2 import Action, EnrichedAction

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.model import ActionUpdate, Phase
from etcd_actions.runs.filters import Predicate, microseconds
from etcd_actions.runs.run_record import RunRecord
from etcd_actions.server.front.action_lists import Row, row_of
from etcd_actions.server.front.action_views import action_id_of, action_message
from etcd_actions.server.front.attempt_messages import phase_number, timestamp


class _Node(msgspec.Struct, frozen=True, weakref=True, eq=False):
    """A state of an action, without its object.

    Attributes:
        row: The fields for filters.
        message: Flyte's message; it is shared, and never changed.
        revision: The object's revision; 0 for a deleted one.
    """

    row: Row
    message: Action
    revision: int = 0


class SharedNodes:
    """The newest states of actions, each kept while a stream uses it, shared by all streams.

    Attributes:
        made: The number of messages that were made.
    """

    def __init__(self) -> None:
        # Messages have the organisation that the client named.
        self._nodes: WeakValueDictionary[tuple[bytes, str], _Node] = WeakValueDictionary()
        self.made = 0

    def of(self, action: StoredAction, record: RunRecord | None, org: str) -> _Node:
        """The state of an action."""
        if (node := self.get(action.key, action.revision, org)) is not None:
            return node
        self.made += 1
        message = action_message(action, record, action_id_of(action), org)
        node = _Node(row_of(action), message, action.revision)
        if action.parent:
            # Not a root: its message depends on the record of its run, too.
            self._nodes[action.key, org] = node
        return node

    def get(self, key: bytes, revision: int, org: str) -> _Node | None:
        """A state that a stream holds."""
        node = self._nodes.get((key, org))
        return node if node is not None and node.revision == revision else None


class ActionTree:
    """The actions of one run.

    Args:
        org: The organisation that the client named.
        matches: Its filter; None for none.
        shared: The states that other streams hold.
    """

    def __init__(
        self, org: str, matches: Predicate[Row] | None, shared: SharedNodes | None = None
    ) -> None:
        self._org = org
        self._matches = matches
        self._shared = shared or SharedNodes()
        self._nodes: dict[bytes, _Node] = {}
        self._keys: dict[str, bytes] = {}
        self._children: dict[str, Counter[int]] = {}

    def put(self, actions: Iterable[StoredAction], record: RunRecord | None) -> set[bytes]:
        """Store states of actions; returns the keys of the changed actions and parents."""
        changed = set()
        for action in actions:
            changed |= self._put(action.key, self._shared.of(action, record, self._org))
        return changed

    def put_known(self, key: bytes, revision: int) -> set[bytes] | None:
        """The same for a state that another stream read; None if none holds it.

        Also None if this stream has sent a newer state: that may be of a replaced store.
        """
        before = self._nodes.get(key)
        node = self._shared.get(key, revision, self._org)
        if node is None or (before is not None and before.revision > revision):
            return None
        return self._put(key, node)

    def end(self, update: ActionUpdate) -> set[bytes]:
        """Note a deleted object: an action that ran is aborted. Returns the keys likewise."""
        before = self._nodes.get(update.key)
        if before is None or Phase(before.row.phase).is_terminal:
            return set()
        phase = update.phase if update.phase.is_terminal else Phase.ABORTED
        now = datetime.now(UTC)
        message = Action()
        message.CopyFrom(before.message)
        message.status.phase = phase_number(phase)
        message.status.end_time.CopyFrom(timestamp(now))
        row = msgspec.structs.replace(
            before.row, phase=phase.value, ended=microseconds(now), updated=microseconds(now)
        )
        return self._put(update.key, _Node(row, message))

    def missing(self, updates: Iterable[ActionUpdate], there: set[bytes]) -> set[bytes]:
        """Note the changed objects that do not exist; returns the keys likewise."""
        changed: set[bytes] = set()
        for update in updates:
            if update.key not in there:
                changed |= self.end(update)
        return changed

    @property
    def is_empty(self) -> bool:
        """Whether it has no action."""
        return not self._nodes

    def messages(self, keys: Iterable[bytes]) -> list[EnrichedAction]:
        """The messages of actions, with the number of their children by phase."""
        return [self._enriched(self._nodes[key]) for key in keys]

    def _enriched(self, node: _Node) -> EnrichedAction:
        children = self._children.get(node.row.name, Counter())
        return EnrichedAction(
            action=node.message,
            meets_filter=self._matches is None or self._matches(node.row),
            children_phase_counts={phase: number for phase, number in children.items() if number},
        )

    def _put(self, key: bytes, node: _Node) -> set[bytes]:
        before = self._nodes.get(key)
        if before is not None and (before is node or before.message == node.message):
            # Only the mark changed, or a part that messages do not have.
            return set()
        self._nodes[key] = node
        self._keys[node.row.name] = key
        parent = node.row.parent
        if not parent or (before is not None and before.row.phase == node.row.phase):
            return {key}
        children = self._children.setdefault(parent, Counter())
        if before is not None:
            children[before.row.phase] -= 1
        children[node.row.phase] += 1
        above = self._keys.get(parent)
        return {key} if above is None else {key, above}
