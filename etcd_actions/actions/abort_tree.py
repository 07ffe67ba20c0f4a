"""Finds the objects that an abort has to end: those of the action and of all below it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

import structlog
import trio

from etcd_actions.actions.abort_marker import Marker
from etcd_actions.actions.stored_action import StoredAction, same_run
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import Phase, canonical_name

_BATCH: Final = 64
"""Values that are decoded before other tasks run."""

_log = structlog.get_logger(__name__)


class RunningObject(NamedTuple):
    """An object of an action that is not terminal."""

    kv: KeyValue
    name: str
    uid: str


class Below(NamedTuple):
    """An aborted action and all below it.

    Attributes:
        running: The objects of the actions that have not ended.
        aborted: The names of the actions that another process ended for this abort.
    """

    running: list[RunningObject]
    aborted: list[str]


class _TreeNode(NamedTuple):
    """An object of a run, and its parent."""

    kv: KeyValue
    uid: str
    has_ended: bool
    was_aborted: bool
    parent: str
    parent_uid: str


async def all_below(kvs: Iterable[KeyValue], marker: Marker, since: int | None = None) -> Below:
    """Return the aborted action and all below it, except those that ended otherwise.

    Args:
        kvs: The objects of the run.
        marker: The abort.
        since: The revision of the abort's transaction: actions that were aborted later count as
            aborted by it. None: none does.
    """
    found: dict[str, _TreeNode] = {}
    children: dict[str, list[str]] = {}
    for number, kv in enumerate(kvs, 1):
        if not number % _BATCH:
            await trio.lowlevel.checkpoint()
        try:
            action = StoredAction.of(kv)
        except DecodeError as error:
            key = kv.key.decode(errors="backslashreplace")
            _log.error("value_undecodable", key=key, reason=error.reason)
            continue
        action_id = action.action_id
        if not same_run(action_id, marker.action_id):
            continue
        name = canonical_name(action_id.run, action_id.name)
        parent = canonical_name(action_id.run, action.parent)
        owners = action.metadata.owner_references
        found[name] = _TreeNode(
            kv,
            action.metadata.uid,
            action.is_terminal,
            since is not None and kv.mod_revision > since and was_aborted(action, marker.at),
            parent,
            owners[0].uid if owners else "",
        )
        if parent:
            children.setdefault(parent, []).append(name)
    top = canonical_name(marker.run, marker.name)
    waiting = [(top, marker.uid)]
    seen: set[str] = set()
    below = Below([], [])
    while waiting:
        name, uid = waiting.pop()
        one = found.get(name)
        if name in seen or (name != top and one is None):
            continue
        seen.add(name)
        # An action that was created again is another one, and so are its children.
        meant, until = one is not None and one.uid == uid, math.inf
        if name == top and one is not None and one.uid == uid:
            meant = marker.is_about(one.kv.create_revision, uid)
            # Both may have one uid: the children that were created later are those of the later
            # one.
            until = math.inf if meant else one.kv.create_revision
        if one is not None and meant and not one.has_ended:
            below.running.append(RunningObject(one.kv, name, one.uid))
        elif one is not None and meant and one.was_aborted and name != top:
            below.aborted.append(name)
        for child in children.get(name, ()):
            node = found[child]
            if node.parent_uid in ("", uid) and node.kv.create_revision < until:
                waiting.append((child, node.uid))
    return below


def was_aborted(action: StoredAction, at: str) -> bool:
    """Whether an action ended as ABORTED at a time or later; a mark also changes its revision."""
    history = action.status.phase_history
    return action.phase is Phase.ABORTED and bool(history) and history[-1].occurred_at >= at
