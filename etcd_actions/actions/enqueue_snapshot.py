"""The keys that decide whether an action can be created, at one revision, and their compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etcd_actions.actions import object_builder
from etcd_actions.actions.abort_marker import read_marker
from etcd_actions.actions.stored_action import StoredAction, describe, same_action, same_run
from etcd_actions.errors import Aborted, DecodeError
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Get,
    KeyRange,
    KeyValue,
    OperationResult,
    Put,
    RangeResult,
)
from etcd_actions.model import ACTION_TYPE_TRACE, ActionId, Keyspace
from etcd_actions.storage.store import Store


class Snapshot(NamedTuple):
    """The state that decides about an enqueue, read at one revision or guessed.

    Attributes:
        present: The object with the action's key; None without one.
        markers: The markers of aborts in the run; of a root only its own.
        parent: The parent's object; None without one.
        companions: The companion keys that exist already.
        guessed: Whether nothing was read, and the parent is the cached object.
    """

    present: KeyValue | None
    markers: Sequence[KeyValue]
    parent: KeyValue | None
    companions: Sequence[KeyValue] = ()
    guessed: bool = False


class Pending(NamedTuple):
    """An enqueue in progress.

    Attributes:
        request: The request.
        key: The key of its object.
        aborts: The range of the markers of aborts that prevent it.
        lookups: The reads of the key, the markers, the parent and the companions.
        companions: The keys that are created in the same transaction.
        uid: The uid of the object if it is created.
    """

    request: object_builder.Request
    key: bytes
    aborts: KeyRange
    lookups: Sequence[Get]
    companions: Sequence[Put]
    uid: str

    @classmethod
    def of(
        cls, request: object_builder.Request, keys: Keyspace, companions: Sequence[Put], uid: str
    ) -> Pending:
        """The pending enqueue of a request.

        Raises:
            ValueError: A name is not allowed in a key.
        """
        action_id = request.action_id
        is_trace = request.kind == ACTION_TYPE_TRACE
        key = keys.trace(action_id) if is_trace else keys.task_action(action_id)
        if request.is_root:
            aborts = KeyRange.of_key(keys.abort(action_id))
            lookups = [KeyRange.of_key(key), aborts]
        else:
            *_, prefix = keys.of(action_id).run_prefixes(action_id.run)
            aborts = KeyRange.of_prefix(prefix)
            parent = KeyRange.of_key(keys.task_action(request.parent_id))
            lookups = [KeyRange.of_key(key), aborts, parent]
        lookups += (KeyRange.of_key(put.key) for put in companions)
        return cls(request, key, aborts, [Get(each) for each in lookups], companions, uid)


def snapshot_of(responses: Sequence[OperationResult], companions: Sequence[Put]) -> Snapshot:
    """Return the snapshot in the answers to the lookups."""
    found = [_range(each).kvs for each in responses]
    own, others = found[: len(found) - len(companions)], found[len(found) - len(companions) :]
    present, markers, parent = [*own, []][:3]
    return Snapshot(
        present[0] if present else None,
        markers,
        parent[0] if parent else None,
        [kv for kvs in others for kv in kvs],
    )


def guards_of(pending: Pending, snapshot: Snapshot) -> list[Compare]:
    """Return the compares that fail if the snapshot has changed."""
    aborts, end = pending.aborts
    # A marker may be deleted, but none may be created. The compare holds for an empty range.
    newest = max((marker.mod_revision for marker in snapshot.markers), default=0)
    revision = revision_of(snapshot.present)
    guards = [
        Compare.unchanged(pending.key, revision),
        Compare(aborts, CompareTarget.MOD_REVISION, CompareResult.LESS, newest + 1, end),
    ]
    if (parent := snapshot.parent) is not None:
        target, revision = (
            (CompareTarget.MOD_REVISION, parent.mod_revision)
            if snapshot.guessed
            else (CompareTarget.CREATE_REVISION, parent.create_revision)
        )
        guards.append(Compare(parent.key, target, CompareResult.EQUAL, revision))
    guards += (Compare.incarnation(put.key, 0) for put in pending.companions)
    return guards


def revision_of(kv: KeyValue | None) -> int:
    """Return the ``mod_revision``; 0 without a key."""
    return 0 if kv is None else kv.mod_revision


async def check_ancestors(
    store: Store, keys: Keyspace, request: object_builder.Request, snapshot: Snapshot
) -> None:
    """Refuse an action below an aborted one.

    Raises:
        Aborted: An action above it is aborted; the message names that.
        EtcdError: A read failed.
    """
    if request.is_root or not snapshot.markers:
        return
    markers = {marker.key: marker for marker in snapshot.markers}
    at, kv, seen = request.parent_id, snapshot.parent, set[str]()
    while at.object_name not in seen:
        seen.add(at.object_name)
        marker = markers.get(keys.abort(at))
        if marker is not None and _is_marked(marker, at, kv):
            above = "the parent" if len(seen) == 1 else "an action above it"
            raise Aborted(f"{above} is aborted: {describe(at)}")
        if kv is None:
            return
        try:
            found = StoredAction.of(kv)
        except DecodeError:
            return
        parent = found.parent
        if not parent or not same_action(found.action_id, at):
            return
        at = ActionId(at.project, at.domain, at.run, parent, at.org)
        kv = await store.get(keys.task_action(at))


def _is_marked(marked: KeyValue, action_id: ActionId, kv: KeyValue | None) -> bool:
    """Whether a marker is about this action, and about its present incarnation if there is one."""
    marker = read_marker(marked)[0]
    if marker is None:
        return True
    if not same_run(marker.action_id, action_id):
        return False
    if kv is None:
        return True
    try:
        found = StoredAction.of(kv)
    except DecodeError:
        return True
    return marker.is_about(found.create_revision, found.metadata.uid)


def _range(response: OperationResult) -> RangeResult:
    assert isinstance(response, RangeResult)
    return response
