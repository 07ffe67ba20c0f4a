"""The states of actions as they come: named by their keys, and complete after each snapshot."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.errors import InvalidArgument
from etcd_actions.model import ActionUpdate, Phase, build_action_update


def update_of(action: StoredAction) -> ActionUpdate:
    """An action as an update."""
    return build_action_update(
        action,
        key=action.key,
        revision=action.revision,
        create_revision=action.create_revision,
    )


def place_of(update: ActionUpdate) -> tuple[str, str]:
    """Namespace and name by the key: what the object says of itself may be anything."""
    parts = update.key.decode(errors="replace").rsplit("/", 2)
    return parts[-2] if len(parts) > 1 else "", parts[-1]


def name_of(update: ActionUpdate) -> str:
    """What the executor calls an action: ``<namespace>/<name>``, by the key."""
    return "/".join(place_of(update))


def named_by_key(update: ActionUpdate) -> ActionUpdate:
    """The update, under what `name_of` gives.

    Raises:
        InvalidArgument: The object says that it is another action, which no request about it
            would find.
    """
    _, name = place_of(update)
    if not update.is_deleted and update.action_id.object_name != name:
        raise InvalidArgument(
            "spec",
            f"the object under the key of {name} says that it is {update.action_id.object_name}: "
            "nobody can run it: delete it",
        )
    return msgspec.structs.replace(update, name=name_of(update))


def gone(known: Iterable[ActionUpdate], seen: set[str], revision: int) -> list[ActionUpdate]:
    """The ends of those that a snapshot should have had, and had not.

    Args:
        known: What was known before it.
        seen: What is in it, by `name_of`.
        revision: When it was read.
    """
    return [
        msgspec.structs.replace(
            update,
            phase=Phase.ABORTED,
            revision=revision,
            is_deleted=True,
        )
        for update in known
        if update.name not in seen and update.revision <= revision
    ]
