"""The actions of a run as a stream told them last, and how the children of each are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from flyteidl2.workflow.run_definition_pb2 import Action, EnrichedAction

from etcd_actions.actions.stored import StoredTaskAction
from etcd_actions.model import ActionUpdate, Phase
from etcd_actions.runs.filters import Predicate, microseconds
from etcd_actions.runs.record import RunRecord
from etcd_actions.server.front.action_lists import Row, row_of
from etcd_actions.server.front.attempts import phase_number, timestamp
from etcd_actions.server.front.views import action_id_of, action_message


class _Node(msgspec.Struct):
    """An action: what it is filtered by, and the message of it. Its object is not kept."""

    row: Row
    message: Action


class ActionTree:
    """The actions of one run.

    Args:
        org: The organisation that the client named.
        matches: Its filter; None where it has none.
    """

    def __init__(self, org: str, matches: Predicate[Row] | None) -> None:
        self._org = org
        self._matches = matches
        self._nodes: dict[bytes, _Node] = {}
        self._keys: dict[str, bytes] = {}
        self._children: dict[str, Counter[int]] = {}

    def put(self, actions: Iterable[StoredTaskAction], record: RunRecord | None) -> set[bytes]:
        """Note how actions are now; gives the keys of those, and of parents, that have changed."""
        changed = set()
        for action in actions:
            action_id = action_id_of(action)
            message = action_message(action, record, action_id, self._org)
            changed |= self._put(action.key, _Node(row_of(action), message))
        return changed

    def end(self, update: ActionUpdate) -> set[bytes]:
        """Note that an object is gone: one that went on is aborted. Gives the keys likewise."""
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
        """Note those of some changes whose objects are gone; gives the keys likewise."""
        changed: set[bytes] = set()
        for update in updates:
            if update.key not in there:
                changed |= self.end(update)
        return changed

    def messages(self, keys: Iterable[bytes] | None = None) -> list[EnrichedAction]:
        """Actions as they are known, with the number of their children by phase.

        Args:
            keys: Which; None for all.
        """
        nodes = self._nodes.values() if keys is None else [self._nodes[key] for key in keys]
        return [self._enriched(node) for node in nodes]

    def _enriched(self, node: _Node) -> EnrichedAction:
        children = self._children.get(node.row.name, Counter())
        return EnrichedAction(
            action=node.message,
            meets_filter=self._matches is None or self._matches(node.row),
            children_phase_counts={phase: number for phase, number in children.items() if number},
        )

    def _put(self, key: bytes, node: _Node) -> set[bytes]:
        before = self._nodes.get(key)
        if before is not None and before.message == node.message:
            # A mark, or a part of the state that is not shown.
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
