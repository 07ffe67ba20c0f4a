r"""The few fields of a Kubernetes API server's own objects that say whether they are being deleted.

Built-in types are stored as ``k8s\0`` and a ``runtime.Unknown`` in protobuf (``typeMeta`` 1,
``raw`` 2, ``contentEncoding`` 3), custom resource definitions as JSON; a setting of the API
server makes all of them JSON. The numbers of the fields are those of its published ``.proto``
files, which never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from etcd_actions.codecs import ENCRYPTED_AT_REST

_MAGIC: Final = b"k8s\0"
_MOST_BYTES: Final = 8 << 20
_TERMINATING: Final = "Terminating"


def is_terminating(value: bytes, kind: str) -> bool:
    """Whether a ``Namespace`` or ``CustomResourceDefinition`` is being deleted.

    Args:
        value: What is stored.
        kind: Which of them it is.

    Raises:
        ValueError: It cannot be read, or is something else; the message says why.
    """
    if len(value) > _MOST_BYTES:
        raise ValueError(f"it has {len(value)} bytes")
    if value.startswith(ENCRYPTED_AT_REST):
        raise ValueError("it is encrypted at rest")
    if value.startswith(_MAGIC):
        return _of_protobuf(value[len(_MAGIC) :], kind)
    return _of_json(value, kind)


def _of_json(value: bytes, kind: str) -> bool:
    try:
        tree = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"neither Kubernetes' protobuf nor JSON: {error}") from None
    if not isinstance(tree, dict) or tree.get("kind") != kind:
        raise ValueError(f"it is no {kind}")
    metadata, status = _dict(tree, "metadata"), _dict(tree, "status")
    if metadata.get("deletionTimestamp") or status.get("phase") == _TERMINATING:
        return True
    conditions = status.get("conditions")
    return isinstance(conditions, list) and any(
        isinstance(each, dict) and each.get("type") == _TERMINATING and each.get("status") == "True"
        for each in conditions
    )


def _dict(tree: dict[str, Any], name: str) -> dict[str, Any]:
    node = tree.get(name)
    return node if isinstance(node, dict) else {}


def _of_protobuf(data: bytes, kind: str) -> bool:
    envelope = dict(_messages(data))
    if dict(_messages(envelope.get(1, b""))).get(2) != kind.encode():
        raise ValueError(f"it is no {kind}")
    if envelope.get(3):
        raise ValueError("it is compressed")
    fields = dict(_messages(envelope.get(2, b"")))
    metadata, status = dict(_messages(fields.get(1, b""))), list(_messages(fields.get(3, b"")))
    if 9 in metadata:
        return True
    if kind == "Namespace":
        return dict(status).get(1) == _TERMINATING.encode()
    conditions = [dict(_messages(each)) for number, each in status if number == 1]
    return any(
        each.get(1) == _TERMINATING.encode() and each.get(2) == b"True" for each in conditions
    )


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that have a length: texts, bytes and messages."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("its protobuf is truncated")
            yield number, data[at : at + length]
            at += length
        else:
            raise ValueError("it is no protobuf")
    if at > len(data):
        raise ValueError("its protobuf is truncated")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("its protobuf is truncated")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("it is no protobuf")
