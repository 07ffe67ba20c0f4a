"""How each field of a stored message is read and written, by its schema and by the view."""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable
from typing import Any, Final

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from etcd_actions.codecs.object_tree import base64_bytes, base64_text, from_json, to_json
from etcd_actions.model.phase import Condition
from etcd_actions.model.taskaction import (
    ActionObject,
    ErrorState,
    ObjectMeta,
    OwnerReference,
    PhaseTransition,
    TaskActionSpec,
    TaskActionStatus,
)

VIEWS: Final[dict[str, type[msgspec.Struct]]] = {
    "TaskAction": ActionObject,
    "ObjectMeta": ObjectMeta,
    "OwnerReference": OwnerReference,
    "TaskActionSpec": TaskActionSpec,
    "TaskActionStatus": TaskActionStatus,
    "Condition": Condition,
    "PhaseTransition": PhaseTransition,
    "ErrorState": ErrorState,
}
"""By message, the struct whose fields have the same names."""

OTHER_FIELDS: Final = "other_fields"
"""A field of every message: a JSON object of all fields for which the message has none."""

_JSON_FIELDS: Final = {"fields_v1", OTHER_FIELDS}


class Elsewhere(Exception):
    """A part of the view is not in its typed field, but in `OTHER_FIELDS`."""


class Form:
    """The fields of a message, by number and by their name in JSON."""

    def __init__(self, descriptor: Any) -> None:
        self.name = descriptor.name
        fields = [_field(field, self.name) for field in descriptor.fields]
        self.by_number = {field.number: field for field in fields}
        self.by_json_name = {field.json_name: field for field in fields}
        self.other_fields = self.by_json_name.pop("otherFields")
        view = VIEWS.get(descriptor.name)
        self.view = _View(view, {field.name: field for field in fields}) if view else None


class _View:
    """How a struct is read from its message: all fields at once, then those that are converted."""

    def __init__(self, struct: type[msgspec.Struct], fields: dict[str, _Field]) -> None:
        self.struct: Callable[..., Any] = struct
        parts = msgspec.structs.fields(struct)
        self.values = operator.attrgetter(*(part.name for part in parts), OTHER_FIELDS)
        self.converted: list[tuple[int, Callable[[Any], Any]]] = []
        self.required: list[tuple[int, str]] = []
        self.optional: list[tuple[int, str, Any, Callable[[Any], Any] | None]] = []
        """Fields whose default, the third item, is not protobuf's empty value."""
        for at, part in enumerate(parts):
            field = fields[part.name]
            convert = None if field.plain else field.to_view
            if part.required:
                self.required.append((at, part.name))
            elif field.has_presence and part.default not in ("", 0):
                self.optional.append((at, part.name, part.default, convert))
                continue
            if convert is not None:
                self.converted.append((at, convert))


def read_tree(message: Message, form: Form) -> dict[str, Any]:
    """A message's tree.

    Raises:
        ValueError: A field of JSON has none, or repeats another field.
        RecursionError: It is nested too deeply.
    """
    tree: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        field = form.by_number[descriptor.number]
        if field.plain:
            tree[field.json_name] = value
        elif field is form.other_fields:
            others = field.to_tree(value)
        else:
            tree[field.json_name] = field.to_tree(value)
    if others:
        if twice := tree.keys() & others.keys():
            raise ValueError(f"{form.name} has {min(twice)} twice, once in {OTHER_FIELDS}")
        tree.update(others)
    return tree


def read_view(message: Message, form: Form) -> Any:
    """A message's struct.

    Raises:
        Elsewhere: Not all that the struct requires is in typed fields.
    """
    view = form.view
    if view is None:
        raise Elsewhere
    *values, other_fields = view.values(message)
    if other_fields:
        raise Elsewhere
    for at, name in view.required:
        if not values[at] and not message.HasField(name):
            raise Elsewhere
    for at, convert in view.converted:
        values[at] = convert(values[at])
    for at, name, absent, read in view.optional:
        if not message.HasField(name):
            values[at] = absent
        elif read is not None:
            values[at] = read(values[at])
    return view.struct(*values)


def write_tree(message: Message, tree: dict[str, Any], form: Form) -> None:
    """Fill an empty message.

    Raises:
        ValueError: A string is not Unicode.
        RecursionError: It is nested too deeply.
    """
    others = {}
    for name, item in tree.items():
        field = form.by_json_name.get(name)
        if field is None or not field.put(message, item):
            others[name] = item
    if others:
        form.other_fields.put(message, others)


# --- the kinds of fields ----------------------------------------------------------------


class _Field(abc.ABC):
    """A field of a message."""

    plain = False
    """Whether its value is the same in a tree and in the view."""

    def __init__(self, field: FieldDescriptor) -> None:
        self.name = field.name
        self.number = field.number
        self.json_name = field.json_name
        self.has_presence = field.has_presence

    @abc.abstractmethod
    def put(self, message: Message, item: Any) -> bool:
        """Set it to a tree's item if `to_tree` will return exactly that.

        Returns:
            Whether it was set.
        """

    def to_tree(self, value: Any) -> Any:
        """The tree's item for its value."""
        return value

    def to_view(self, value: Any) -> Any:
        """The view's item for its value."""
        return self.to_tree(value)


class _Scalar(_Field):
    plain = True

    def __init__(self, field: FieldDescriptor, kind: type) -> None:
        super().__init__(field)
        self._kind = kind

    def put(self, message: Message, item: Any) -> bool:
        if type(item) is not self._kind:
            return False
        setattr(message, self.name, item)
        return True


class _Integer(_Field):
    plain = True

    def __init__(self, field: FieldDescriptor, low: int, high: int) -> None:
        super().__init__(field)
        self._low = low
        self._high = high

    def put(self, message: Message, item: Any) -> bool:
        if type(item) is not int or not self._low <= item <= self._high:
            return False
        setattr(message, self.name, item)
        return True


class _Base64(_Field):
    def put(self, message: Message, item: Any) -> bool:
        data = base64_bytes(item) if type(item) is str else None
        if data is None:
            return False
        setattr(message, self.name, data)
        return True

    def to_tree(self, value: bytes) -> str:
        return base64_text(value) if value else ""


class _Json(_Field):
    def __init__(self, field: FieldDescriptor, message: str) -> None:
        super().__init__(field)
        self._where = f"{message}.{field.name}"

    def put(self, message: Message, item: Any) -> bool:
        if type(item) is not dict:
            return False
        setattr(message, self.name, to_json(item))
        return True

    def to_tree(self, value: bytes) -> dict[str, Any]:
        try:
            return from_json(value)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ValueError(f"{self._where}: {error}") from None


class _Texts(_Field):
    def put(self, message: Message, item: Any) -> bool:
        if type(item) is not list or not item or any(type(each) is not str for each in item):
            return False
        getattr(message, self.name).extend(item)
        return True

    def to_tree(self, value: Any) -> list[str]:
        return list(value)

    def to_view(self, value: Any) -> tuple[str, ...]:
        return tuple(value)


class _TextMap(_Field):
    def put(self, message: Message, item: Any) -> bool:
        if type(item) is not dict or not item:
            return False
        if any(type(each) is not str for each in item.values()):
            return False
        getattr(message, self.name).update(item)
        return True

    def to_tree(self, value: Any) -> dict[str, str]:
        return dict(value)


class _Object(_Field):
    def __init__(self, field: FieldDescriptor, form: Form) -> None:
        super().__init__(field)
        self._form = form

    def put(self, message: Message, item: Any) -> bool:
        if type(item) is not dict:
            return False
        inner = getattr(message, self.name)
        inner.SetInParent()
        write_tree(inner, item, self._form)
        return True

    def to_tree(self, value: Message) -> dict[str, Any]:
        return read_tree(value, self._form)

    def to_view(self, value: Message) -> Any:
        return read_view(value, self._form)


class _Objects(_Field):
    def __init__(self, field: FieldDescriptor, form: Form) -> None:
        super().__init__(field)
        self._form = form

    def put(self, message: Message, item: Any) -> bool:
        if type(item) is not list or not item or any(type(each) is not dict for each in item):
            return False
        inner = getattr(message, self.name)
        for each in item:
            write_tree(inner.add(), each, self._form)
        return True

    def to_tree(self, value: Any) -> list[dict[str, Any]]:
        return [read_tree(each, self._form) for each in value]

    def to_view(self, value: Any) -> tuple[Any, ...]:
        return tuple([read_view(each, self._form) for each in value])


_RANGES: Final = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
}


def _field(field: FieldDescriptor, message: str) -> _Field:
    inner = field.message_type
    if inner is not None:
        if inner.GetOptions().map_entry:
            return _TextMap(field)
        return (_Objects if field.is_repeated else _Object)(field, Form(inner))
    if field.is_repeated:
        return _Texts(field)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _Scalar(field, str)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _Scalar(field, bool)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _Json(field, message) if field.name in _JSON_FIELDS else _Base64(field)
    return _Integer(field, *_RANGES[field.type])
