"""Requests of any method, drawn from its descriptor: mostly sensible, with hostile values among."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_TEXTS: Final = (
    "",
    " ",
    ".",
    "..",
    "../..",
    "a/b",
    "/",
    "\0",
    "a\0b",
    "a\r\nb",
    "\x7f\x1b[31m",
    "\u202e\U0001f600",
    "e\u0301",
    "\ufeff\ufffe",
    "%2e%2e%2f",
    "%00",
    "%252e",
    "UPPER",
    "-",
    "-1",
    "0",
    "1e999",
    "nan",
    "9" * 400,
    "x" * 64,
    "x" * 10_000,
    "\U0001f600" * 30_000,
    "a0",
    "r1",
    "file:///etc/passwd",
    "/etc/passwd",
    "//",
    "s3://b/k",
    "http://[",
    "file://[::1/x",
    "{{.input}}",
    "--tgz",
    "true",
    "SUCCEEDED",
    "ACTION_PHASE_QUEUED",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "2024-02-30T00:00:00Z",
    "labels.",
    "labels.\0",
    "eyJ9",
    "W10=",
    "WzFd",
)
_FIELDS: Final = (
    "phase",
    "created_at",
    "updated_at",
    "started_at",
    "ended_at",
    "duration_ms",
    "attempts",
    "name",
    "run_name",
    "project",
    "id",
    "state",
    "version",
    "task_type",
    "labels.a",
    "run_source",
    "created_by",
    "deployed_by",
)
_NUMBERS: Final = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 1000, 2**31 - 1, 2**53, 2**63 - 1)
_TIMES: Final = (-62135596801, -62135596800, -1, 0, 1, 253402300799, 253402300800, 2**63 - 1)
_REALS: Final = (0.0, -0.0, 1.5, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324)
_SENSIBLE: Final = {
    "org": ("127", ""),
    "organization": ("127", ""),
    "project": ("p",),
    "domain": ("d",),
    "version": ("v1",),
    "limit": (1, 10),
    "attempt": (0, 1),
    "field": _FIELDS,
    "key": _FIELDS,
    "type": ("python",),
}
_NAMES: Final = {
    "flyteidl2.common.ProjectIdentifier": ("p",),
    "flyteidl2.common.RunIdentifier": ("r1", "r2"),
    "flyteidl2.common.ActionIdentifier": ("a0", "c1"),
}
_BITS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_DEPTH: Final = 9
_MOST_TEXT: Final = 150_000


class Drawing:
    """Draws one message.

    Args:
        seed: What it is drawn from.
        hostile: The share of fields that get a hostile value.
    """

    def __init__(self, seed: int, hostile: float) -> None:
        self._random = Random(seed)
        self._hostile = hostile
        self._left = _MOST_TEXT

    def fill(self, message: Message, depth: int = _DEPTH) -> None:
        """Set some of its fields."""
        descriptor: Any = message.DESCRIPTOR
        chosen = {
            oneof.name: self._random.choice(list(oneof.fields)).name for oneof in descriptor.oneofs
        }
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof is not None and chosen[oneof.name] != field.name:
                continue
            likely = 0.85 if depth > _DEPTH - 4 else 0.4
            if depth and self._random.random() < likely:
                self._set(message, field, depth)

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            self._set_map(getattr(message, field.name), kind, depth)
        elif field.is_repeated:
            values = getattr(message, field.name)
            for _ in range(self._random.choice((0, 1, 1, 2))):
                if kind is not None:
                    self.fill(values.add(), depth - 1)
                else:
                    values.append(self._value(field))
        elif kind is not None:
            below = getattr(message, field.name)
            below.SetInParent()
            self.fill(below, depth - 1)
        else:
            setattr(message, field.name, self._value(field))

    def _set_map(self, values: Any, entry: Descriptor, depth: int) -> None:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        drawn = self._value(key)
        if value.message_type is not None:
            self.fill(values[drawn], depth - 1)
        else:
            values[drawn] = self._value(value)

    def _value(self, field: Any) -> Any:
        random = self._random
        is_hostile = random.random() < self._hostile
        kind = field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return random.choice(_REALS)
        if kind == FieldDescriptor.CPPTYPE_STRING:
            return self._text(field, is_hostile)
        sensible = _SENSIBLE.get(field.name)
        if kind != FieldDescriptor.CPPTYPE_ENUM and sensible is not None and not is_hostile:
            return random.choice(sensible)
        if field.containing_type.full_name == "google.protobuf.Timestamp" and is_hostile:
            least, most = _BITS[kind]
            return min(max(random.choice(_TIMES), least), most)
        if kind == FieldDescriptor.CPPTYPE_ENUM and not is_hostile:
            return random.choice(field.enum_type.values).number
        least, most = _BITS[kind]
        number = random.choice(_NUMBERS if is_hostile else (0, 1, 2, 3))
        return min(max(number, least), most)

    def _text(self, field: Any, is_hostile: bool) -> str | bytes:
        random = self._random
        if field.type == FieldDescriptor.TYPE_BYTES:
            return random.randbytes(random.choice((0, 1, 16, 100)))
        sensible = _SENSIBLE.get(field.name)
        if field.name == "name":
            owner = field.containing_type.full_name
            sensible = _NAMES.get(owner, ("r1", "a0", "envs.greet"))
        if not is_hostile:
            return str(random.choice(sensible or ("a", "x1", "created_at", "2024-01-01T00:00:00Z")))
        text = random.choice(_TEXTS)
        # A request has a size that is taken.
        if len(text.encode()) > self._left:
            return "x" * 100
        self._left -= len(text.encode())
        return text


def drawn(kind: type[Message], seed: int, hostile: float) -> Message:
    """A message of a kind."""
    message = kind()
    Drawing(seed, hostile).fill(message)
    return message
