"""Arguments of the public methods: wrong types are named, Flyte's identifiers are accepted."""

from __future__ import annotations

from typing import Any, Final

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import InvalidArgument, WrongType
from etcd_actions.model import ActionId
from etcd_actions.model.flyte_types import ActionIdentifier, RunIdentifier

_FIELDS: Final = {
    "project": "action_id.run.project",
    "domain": "action_id.run.domain",
    "run": "action_id.run.name",
    "name": "action_id.name",
}


def expect(field: str, value: object, *kinds: type | str | None) -> None:
    """Refuse a value of another type.

    Args:
        field: The argument, for the message.
        value: Its value.
        kinds: Classes, names of Flyte's messages, or None. A ``bool`` is no ``int``.

    Raises:
        WrongType: It is nothing of these.
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
    """Return the identity of an action, of which ``org`` may be empty.

    Raises:
        InvalidArgument: A part of it is empty, or has a slash.
    """
    identifier = parent_id_of(identifier)
    _check(identifier, "name")
    return identifier


def parent_id_of(identifier: ActionId | ActionIdentifier) -> ActionId:
    """Return the same of an action whose name may be empty, as the parent of a root."""
    if not isinstance(identifier, ActionId):
        expect("action_id", identifier, ActionId, "ActionIdentifier")
        identifier = _identity(identifier.run, identifier.name)
    _check(identifier)
    return identifier


def run_id_of(run: ActionId | RunIdentifier) -> ActionId:
    """Return the identity of a run: that of an action without its name."""
    if not isinstance(run, ActionId):
        expect("run", run, ActionId, "RunIdentifier")
        run = _identity(run, "")
    _check(run)
    return run


def _identity(run: Any, name: str) -> ActionId:
    return ActionId(run.project, run.domain, run.name, name, run.org)


def _check(action_id: ActionId, *more: str) -> None:
    for part in ("project", "domain", "run", *more):
        text = getattr(action_id, part)
        expect(_FIELDS[part], text, str)
        if not text or "/" in text:
            raise InvalidArgument(_FIELDS[part], f"{text!r} is no name: give one, without a slash")
