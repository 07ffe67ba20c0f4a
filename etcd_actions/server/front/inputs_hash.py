"""The hash of inputs in a cache key: the same as the one that the SDK computes for children.

So a root and a child with the same inputs find the same cached result.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from flyteidl2.core.literals_pb2 import Literal
    from flyteidl2.task.common_pb2 import NamedLiteral

_MSGPACK: Final = "msgpack"


def inputs_hash(literals: Iterable[NamedLiteral], ignored: Collection[str] = ()) -> str:
    """Hash inputs except the ignored names; empty if none is left."""
    hashed = [each for each in literals if each.name not in ignored]
    if not hashed:
        return ""
    digest = hashlib.sha256()
    for each in hashed:
        digest.update(b"%b:%b;" % (each.name.encode(), _form(each.value)))
    return base64.b64encode(digest.digest()).decode()


def _form(literal: Literal) -> bytes:
    """The bytes of a literal that are hashed; its own hash, if it has one."""
    if literal.hash:
        return bytes(literal.hash.encode())
    kind = literal.WhichOneof("value")
    if kind == "collection":
        return b"".join(map(_form, literal.collection.literals))
    if kind == "map":
        found = literal.map.literals
        return b"".join(name.encode() + _form(found[name]) for name in sorted(found))
    if kind == "scalar" and literal.scalar.WhichOneof("value") == "binary":
        binary = literal.scalar.binary
        if binary.tag == _MSGPACK and (ordered := _ordered(binary.value)) != binary.value:
            changed = type(literal)()
            changed.CopyFrom(literal)
            changed.scalar.binary.value = ordered
            literal = changed
    return bytes(literal.SerializeToString(deterministic=True))


def _ordered(data: bytes) -> bytes:
    """The value with the keys of each map sorted; unchanged if it cannot be decoded."""
    try:
        return msgspec.msgpack.encode(_sorted(msgspec.msgpack.decode(data)))
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError, OverflowError):
        return data


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=msgspec.msgpack.encode)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value
