"""The errors of an enqueue whose key has an object already.

Flyte builds the name of an object from run and action only, so actions of several projects, domains
and runs can have one key. After "already exists" Flyte's SDK and its run service wait for the
action, so that error is raised only for the same action. If the object is another action's, the
error is a failed precondition: the wait for the requested action would never end.
"""

from __future__ import annotations

from typing import NamedTuple

from etcd_actions.actions.stored_action import StoredAction, describe, same_action
from etcd_actions.errors import ActionError, AlreadyExists, DecodeError, NameTaken
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import ACTION_TYPE_TRACE, ActionId, ActionObject


class Creation(NamedTuple):
    """The action to create.

    Attributes:
        action_id: The action.
        kind: ``task``, ``condition`` or ``trace``.
        one_namespace: Whether all actions are in one namespace: then several would help.
    """

    action_id: ActionId
    kind: str
    one_namespace: bool


def unreadable(kv: KeyValue, creation: Creation, error: DecodeError) -> NameTaken:
    """The error for a key whose value cannot be decoded: it may be another action's."""
    return _name_conflict(
        kv.key, creation, f"a value that cannot be read ({error.reason})", _REPAIR
    )


def companion_conflict(key: bytes, name: str) -> AlreadyExists:
    """The error for a companion key that exists already."""
    text = key.decode(errors="backslashreplace")
    return AlreadyExists(f"{name} cannot be created: the key {text} exists already")


def in_the_way(present: StoredAction, creation: Creation) -> ActionError:
    """The error for an object that differs from the requested one."""
    there = present.action_id
    is_trace = ACTION_TYPE_TRACE in (present.spec.kind, creation.kind)
    # Tasks and conditions share their keys. A trace with a task's key is another action.
    if same_action(there, creation.action_id) and (
        not is_trace or present.spec.kind == creation.kind
    ):
        return AlreadyExists(
            f"{there.object_name} exists already, by another request: {_what(present)}"
        )
    return _name_conflict(present.key, creation, _what(present), _remedy(present, creation))


def _name_conflict(key: bytes, creation: Creation, there: str, remedy: str) -> NameTaken:
    text = key.decode(errors="backslashreplace")
    requested = _full_name(creation.action_id)
    return NameTaken(
        f"{creation.kind} {requested} cannot be created: its key {text} holds {there}: {remedy}"
    )


_REPAIR = "repair or delete that value (etcd-actions doctor shows more), or give another name"


def _remedy(present: ActionObject, creation: Creation) -> str:
    there, requested = present.action_id, creation.action_id
    if present.is_deleting:
        return "it is being deleted: try again when it is gone, or give another name"
    remedy = f"give another name, or end and delete run {_run(there)} first"
    other_project = (there.project, there.domain) != (requested.project, requested.domain)
    if other_project and creation.one_namespace:
        remedy += ", or give each project and domain a namespace of its own (--namespace-template)"
    return remedy


def _what(present: ActionObject) -> str:
    below = f", below {present.parent}" if present.parent else ""
    deleted = ", being deleted" if present.is_deleting else ""
    return (
        f"{present.spec.kind} {_full_name(present.action_id)}{below}, in phase "
        f"{present.phase.name}{deleted}"
    )


def _full_name(action_id: ActionId) -> str:
    """As :func:`describe`, with the organization if it is known."""
    org = f" in organisation {action_id.org}" if action_id.org else ""
    return describe(action_id) + org


def _run(action_id: ActionId) -> str:
    return f"{action_id.project}/{action_id.domain}/{action_id.run}"
