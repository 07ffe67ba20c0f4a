"""Checks the arguments of the public methods, and accepts Flyte's identifiers for ours."""

from __future__ import annotations

from typing import Any, Final

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import InvalidArgument, WrongType
from etcd_actions.model import ActionId, RunId
from etcd_actions.model.flyte_types import ActionIdentifier, RunIdentifier

_FIELDS: Final = {
    "project": "run.project",
    "domain": "run.domain",
    "run": "run.name",
    "name": "name",
}
"""The fields of Flyte's ActionIdentifier; those of RunIdentifier are below ``run``."""


def expect(field: str, value: object, *kinds: type | str | None) -> None:
    """Refuse a value of another type.

    Args:
        field: The argument, for the message.
        value: Its value.
        kinds: Classes, names of Flyte's messages, or None. A ``bool`` is not an ``int``.

    Raises:
        WrongType: The value is of none of these types.
    """
    for kind in kinds:
        if kind is None:
            fits = value is None
        elif isinstance(kind, str):
            fits = _message_name(value) == kind
        else:
            fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if fits:
            return
    names = [
        "None" if kind is None else kind if isinstance(kind, str) else kind.__name__
        for kind in kinds
    ]
    raise WrongType(
        field,
        f"{quoted(value)} is of type {type(value).__name__}: give {' or '.join(names)}",
    )


def _message_name(value: object) -> object:
    return getattr(getattr(value, "DESCRIPTOR", None), "name", None)


def action_id_of(identifier: ActionId | ActionIdentifier) -> ActionId:
    """Return the identity of an action. Its ``org`` may be empty.

    Raises:
        WrongType: It is of another type.
        InvalidArgument: A part of it is empty, or has a slash.
    """
    if not isinstance(identifier, ActionId):
        expect("action_id", identifier, ActionId, "ActionIdentifier")
        run = identifier.run
        identifier = ActionId(run.project, run.domain, run.name, identifier.name, run.org)
    _check("action_id.", identifier, "name")
    return identifier


def parent_id_of(identifier: ActionId | RunId | ActionIdentifier) -> ActionId | RunId:
    """Return the identity of a parent: of an action, or of a run as the parent of its root.

    In Flyte's message an empty name stands for the run.

    Raises:
        WrongType: It is of another type.
        InvalidArgument: A part of it is empty, or has a slash.
    """
    if isinstance(identifier, RunId):
        return run_id_of(identifier)
    if not isinstance(identifier, ActionId):
        expect("action_id", identifier, ActionId, RunId, "ActionIdentifier")
        if not identifier.name:
            return _run_id("action_id.", identifier.run)
    return action_id_of(identifier)


def run_id_of(run: RunId | RunIdentifier) -> RunId:
    """Return the identity of a run. Its ``org`` may be empty.

    Raises:
        WrongType: It is of another type.
        InvalidArgument: A part of it is empty, or has a slash.
    """
    if not isinstance(run, RunId):
        expect("run", run, RunId, "RunIdentifier")
    return _run_id("", run)


def _run_id(path: str, run: Any) -> RunId:
    found = run
    if not isinstance(found, RunId):
        found = RunId(run.project, run.domain, run.name, run.org)
    _check(path, found)
    return found


def _check(path: str, identity: ActionId | RunId, *more: str) -> None:
    for part in ("project", "domain", "run", *more):
        text, field = getattr(identity, part), path + _FIELDS[part]
        expect(field, text, str)
        if not text or "/" in text:
            raise InvalidArgument(field, f"{text!r} is not a valid name: give one, without a slash")
