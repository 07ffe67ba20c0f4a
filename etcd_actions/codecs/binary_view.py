"""A TaskAction with binary in the place of base64: its tree, and its typed view.

A text counts as base64 if encoding its bytes gives the same text again; else it stays text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from etcd_actions.codecs.object_tree import base64_bytes, base64_text
from etcd_actions.model.taskaction import ActionObject, TaskActionSpec, TaskActionStatus

BASE64_FIELDS: Final = {
    "spec": {"taskTemplate": "task_template", "conditionSpec": "condition_spec"},
    "status": {"pluginState": "plugin_state", "signalValue": "signal_value"},
}
"""By part of the object: the names in JSON and in the view."""


def tree_with_base64(tree: dict[str, Any]) -> None:
    """Replace binary by base64 in the four fields, in place."""
    for part, fields in BASE64_FIELDS.items():
        node = tree.get(part)
        if type(node) is dict:
            for field in fields:
                item = node.get(field)
                if type(item) is bytes:
                    node[field] = base64_text(item)


def tree_with_binary(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace base64 by binary in the four fields; the argument is not changed."""
    for part, fields in BASE64_FIELDS.items():
        node = tree.get(part)
        if type(node) is dict:
            binary = {field: _binary(node[field]) for field in fields if field in node}
            tree = {**tree, part: {**node, **binary}} if binary else tree
    return tree


class _Spec(TaskActionSpec, rename="camel", frozen=True, gc=False):
    task_template: Any = ""
    condition_spec: Any = ""


class _Status(TaskActionStatus, rename="camel", frozen=True, gc=False):
    plugin_state: Any = ""
    signal_value: Any = ""


_NO_STATUS: Final = _Status()


class BinaryTaskAction(ActionObject, rename="camel", frozen=True, gc=False):
    """A TaskAction whose four base64 fields are bytes, or a text if that is not base64."""

    spec: _Spec
    status: _Status = _NO_STATUS

    @classmethod
    def of(cls, action: ActionObject) -> BinaryTaskAction:
        """Convert from base64."""
        return cls(
            action.api_version,
            action.kind,
            action.metadata,
            _as(_Spec, action.spec, "spec", _binary),
            _NO_STATUS
            if action.status is _STATUS
            else _as(_Status, action.status, "status", _binary),
        )

    def view(self) -> ActionObject:
        """Convert to base64.

        Raises:
            ValueError: One of the four is neither bytes nor text.
        """
        return ActionObject(
            self.api_version,
            self.kind,
            self.metadata,
            _as(TaskActionSpec, self.spec, "spec", _text),
            _STATUS
            if self.status is _NO_STATUS
            else _as(TaskActionStatus, self.status, "status", _text),
        )


_STATUS: Final = msgspec.structs.fields(ActionObject)[-1].default
PartT = TypeVar("PartT", bound=msgspec.Struct)


def _as(
    kind: type[PartT], source: msgspec.Struct, part: str, convert: Callable[[Any], Any]
) -> PartT:
    values = msgspec.structs.asdict(source)
    for field in BASE64_FIELDS[part].values():
        values[field] = convert(values[field])
    return kind(**values)


def _text(item: Any) -> str:
    if type(item) is bytes:
        return base64_text(item)
    if type(item) is str:
        return item
    raise ValueError("neither binary nor text")


def _binary(item: Any) -> Any:
    """The bytes of base64; an empty text stays one, so that it counts as absent."""
    data = base64_bytes(item) if type(item) is str and item else None
    return item if data is None else data
