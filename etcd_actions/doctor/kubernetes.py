r"""Whether a Kubernetes API server's own object is being deleted, read from its stored bytes.

Built-in types are stored as ``k8s\0`` and a ``runtime.Unknown`` in protobuf (``typeMeta`` 1,
``raw`` 2, ``contentEncoding`` 3), custom resource definitions as JSON; a setting of the API
server makes all of them JSON. The numbers of the fields are those of its published ``.proto``
files, which never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions.codecs import ENCRYPTED_AT_REST
from etcd_actions.codecs.magic import KUBERNETES_PROTOBUF, MAX_SIZE
from etcd_actions.codecs.protobuf_messages import unknown_fields

_LENGTH_DELIMITED: Final = 2
_TERMINATING: Final = "Terminating"


def is_terminating(value: bytes, kind: str) -> bool:
    """Whether a ``Namespace`` or ``CustomResourceDefinition`` is being deleted.

    Args:
        value: The stored bytes.
        kind: The kind of the object.

    Raises:
        ValueError: It cannot be decoded, or is of another kind; the message has the reason.
    """
    if len(value) > MAX_SIZE:
        raise ValueError(f"it has {len(value)} bytes")
    if value.startswith(ENCRYPTED_AT_REST):
        raise ValueError("it is encrypted at rest")
    if value.startswith(KUBERNETES_PROTOBUF):
        return _of_protobuf(value[len(KUBERNETES_PROTOBUF) :], kind)
    return _of_json(value, kind)


def _of_json(value: bytes, kind: str) -> bool:
    try:
        tree = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"neither Kubernetes' protobuf nor JSON: {error}") from None
    if not isinstance(tree, dict) or tree.get("kind") != kind:
        raise ValueError(f"it is not a {kind}")
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
        raise ValueError(f"it is not a {kind}")
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
    """The fields of a message that have a length: texts, bytes and messages.

    Raises:
        ValueError: It is not a message.
    """
    try:
        # To a message type without fields all fields are unknown.
        fields = unknown_fields(Empty.FromString(data))
    except BadMessage:
        raise ValueError("its protobuf is truncated, or none") from None
    for field in fields:
        if field.wire_type == _LENGTH_DELIMITED:
            yield field.field_number, field.data
