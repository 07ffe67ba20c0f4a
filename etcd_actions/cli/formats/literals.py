"""Flyte's literals as values of JSON, as the SDK shows them: numbers, texts, lists, objects."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.json_format import MessageToDict

if TYPE_CHECKING:
    from flyteidl2.core.literals_pb2 import Literal, Scalar
    from flyteidl2.task.common_pb2 import Inputs, Outputs
    from google.protobuf.struct_pb2 import Struct, Value

_DEEPEST: Final = 50
_MSGPACK: Final = "msgpack"


def plain_values(data: Inputs | Outputs) -> dict[str, Any]:
    """The values by name."""
    return {each.name: plain_value(each.value) for each in data.literals}


def plain_value(literal: Literal, depth: int = 0) -> Any:
    """The value of a literal; a part that is nested too deeply is replaced by a text."""
    if depth > _DEEPEST:
        return "(nested too deeply)"
    match literal.WhichOneof("value"):
        case "scalar":
            return _scalar(literal.scalar, depth)
        case "collection":
            return [plain_value(each, depth + 1) for each in literal.collection.literals]
        case "map":
            return {
                name: plain_value(each, depth + 1) for name, each in literal.map.literals.items()
            }
        case "offloaded_metadata":
            stored = literal.offloaded_metadata
            return {"uri": stored.uri, "size_bytes": stored.size_bytes}
        case _:
            return None


def _scalar(scalar: Scalar, depth: int) -> Any:
    kind = scalar.WhichOneof("value")
    match kind:
        case "primitive":
            return _primitive(scalar)
        case "none_type" | None:
            return None
        case "union":
            return plain_value(scalar.union.value, depth + 1)
        case "blob":
            return {"uri": scalar.blob.uri, "format": scalar.blob.metadata.type.format}
        case "structured_dataset":
            dataset = scalar.structured_dataset
            format_ = dataset.metadata.structured_dataset_type.format
            return {"uri": dataset.uri, "format": format_}
        case "generic":
            return _struct(scalar.generic, depth)
        case "binary":
            return _binary(scalar.binary.value, scalar.binary.tag)
        case _:
            return _json(MessageToDict(getattr(scalar, kind), preserving_proto_field_name=True))


def _primitive(scalar: Scalar) -> Any:
    primitive = scalar.primitive
    kind = primitive.WhichOneof("value")
    match kind:
        case "datetime" | "duration":
            try:
                return getattr(primitive, kind).ToJsonString()
            except ValueError:
                named = getattr(primitive, kind)
                return f"({named.seconds} s and {named.nanos} ns: no valid {kind})"
        case None:
            return None
        case _:
            return _json(getattr(primitive, kind))


def _struct(struct: Struct, depth: int) -> dict[str, Any]:
    """The fields of a struct; protobuf's own JSON refuses numbers such as NaN."""
    return {name: _field(each, depth + 1) for name, each in struct.fields.items()}


def _field(value: Value, depth: int) -> Any:
    if depth > _DEEPEST:
        return "(nested too deeply)"
    match value.WhichOneof("kind"):
        case "struct_value":
            return _struct(value.struct_value, depth)
        case "list_value":
            return [_field(each, depth + 1) for each in value.list_value.values]
        case "null_value" | None:
            return None
        case "number_value" if value.number_value.is_integer():
            return int(value.number_value)
        case kind:
            return _json(getattr(value, kind))


def _binary(data: bytes, tag: str) -> Any:
    """A dataclass or the like, which the SDK stores in the form of msgpack; else base64."""
    if tag == _MSGPACK:
        import msgpack  # noqa: PLC0415 (rarely needed)

        try:
            return _json(msgpack.unpackb(data, strict_map_key=False, timestamp=3))
        except (ValueError, TypeError, msgpack.exceptions.UnpackException):
            tag = f"{tag}, which cannot be decoded"
    return {"base64": base64.b64encode(data).decode(), "tag": tag}


def _json(value: Any, depth: int = 0) -> Any:
    """A value of JSON; numbers that JSON does not have are texts."""
    if depth > _DEEPEST:
        return "(nested too deeply)"
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_json(each, depth + 1) for each in value]
        case dict():
            return {str(name): _json(each, depth + 1) for name, each in value.items()}
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return str(value)
