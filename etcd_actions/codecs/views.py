"""The typed view and the summary of a tree, for values that a fast decoder refused."""

from __future__ import annotations

from typing import Any

import msgspec

from etcd_actions.errors import DecodeError
from etcd_actions.model.facts import MarkedFacts
from etcd_actions.model.names import API_VERSION, check_type, is_task_action, other_version
from etcd_actions.model.summary import Summary, summarize
from etcd_actions.model.taskaction import ActionObject


def view_of_tree(tree: dict[str, Any], *, key: bytes = b"", revision: int = 0) -> ActionObject:
    """The typed view. A null counts as an absent field, as in Go, and is removed from the tree.

    Raises:
        DecodeError: It is another kind, lacks a field or has one of another type; the reason
            has the field's path.
    """
    drop_nulls(tree)
    try:
        return msgspec.convert(tree, ActionObject)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DecodeError(why_no_view(tree, str(error)), key=key, revision=revision) from None


def why_no_view(tree: dict[str, Any], reason: str) -> str:
    """The reason why an object is not a TaskAction of the known version.

    Args:
        tree: The object.
        reason: The decoder's message about a field, for a TaskAction of this version.
    """
    api_version, kind = tree.get("apiVersion"), tree.get("kind")
    if api_version is None or kind is None:
        return reason
    if not is_task_action(api_version, kind):
        try:
            check_type(api_version, kind)
        except ValueError as error:
            return str(error)
    if version := other_version(api_version):
        known = f"this etcd-actions knows {API_VERSION}"
        return f"the object is stored at {version}, and {known}: {reason}"
    return reason


def summary_of_tree(
    tree: dict[str, Any], *, key: bytes = b"", revision: int = 0, create_revision: int = 0
) -> Summary:
    """The facts that decide which receivers get the state.

    Raises:
        DecodeError: As for `view_of_tree`, of the fields that are read.
    """
    try:
        return msgspec.convert(tree, MarkedFacts).summary(revision, create_revision)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        action = view_of_tree(tree, key=key, revision=revision)
        return summarize(action, revision, create_revision)


def drop_nulls(tree: dict[str, Any]) -> bool:
    """Remove the nulls of all objects in a tree; return whether there were any."""
    found = False
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            for field in [field for field, item in node.items() if item is None]:
                del node[field]
                found = True
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return found
