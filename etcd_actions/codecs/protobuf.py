"""Protobuf: the message of ``schemas/etcd_actions_taskaction.proto`` after a magic.

``ff 50 42 01`` ("PB" and the form's version), then the message's length, then the message. The
comments of the schema explain its fields, and why nothing is lost.

Fields of later versions: `decode` and `summarize` ignore them, `release` keeps them, `decode_tree`
refuses them, since a tree cannot have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

import msgspec

from etcd_actions.codecs import magic, protobuf_messages
from etcd_actions.codecs import object_tree as trees
from etcd_actions.codecs._pb import etcd_actions_taskaction_pb2 as pb
from etcd_actions.codecs.finalizers import NO_TEXTS, Released, release_tree, released
from etcd_actions.codecs.magic import PROTOBUF as MAGIC
from etcd_actions.codecs.refusal import refusal, refusing
from etcd_actions.codecs.views import summary_of_tree, view_of_tree
from etcd_actions.errors import DecodeError
from etcd_actions.model.summary import Summary
from etcd_actions.model.taskaction import ActionObject

name: Final = "protobuf"
"""The codec's name in settings and records."""


def decode(value: bytes, *, key: bytes = b"", revision: int = 0) -> ActionObject:
    """Decode the typed view of a stored TaskAction.

    A null counts as an absent field, as in JSON.

    Raises:
        DecodeError: It is not of this form, another kind, lacks a field or has one of another
            type; the reason has the field's path.
    """
    try:
        message = _parse(value, key, revision)
        action = protobuf_messages.view_of(message)
        if action is None:
            tree = _known_tree(message, key, revision)
            return view_of_tree(tree, key=key, revision=revision)
    except Exception as error:
        _refuse(error, key, revision)
    return action


def summarize(
    value: bytes, *, key: bytes = b"", revision: int = 0, create_revision: int = 0
) -> Summary:
    """Decode only the facts that decide which receivers get the state of a TaskAction.

    Raises:
        DecodeError: As for `decode`, of the fields that are read.
    """
    try:
        message = _parse(value, key, revision)
        summary = protobuf_messages.summary_of(message, revision, create_revision)
        if summary is None:
            tree = _known_tree(message, key, revision)
            return summary_of_tree(
                tree, key=key, revision=revision, create_revision=create_revision
            )
    except Exception as error:
        _refuse(error, key, revision)
    return summary


@refusing("protobuf")
def decode_tree(value: bytes, *, key: bytes = b"", revision: int = 0) -> dict[str, Any]:
    """Decode all fields of a value, to change it without a loss.

    Raises:
        DecodeError: It is not of this form, or has fields of a later version.
    """
    return _tree(_parse(value, key, revision), key, revision)


def encode_tree(tree: dict[str, Any], *, unchanged: Iterable[object] = ()) -> bytes:
    """Encode an object.

    Args:
        tree: The object.
        unchanged: Parts that are as `decode_tree` returned them; they are not checked again.

    Raises:
        TypeError: Something in it is not a JSON value.
        ValueError: A number is not finite, a string is not Unicode, it is nested too deeply,
            or too large to be read again.
    """
    if trees.check(tree, unchanged):
        tree = trees.with_numbers(tree)
    try:
        return _pack(protobuf_messages.message_of(tree))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encode(action: ActionObject) -> bytes:
    """Encode a new object. A stored one is changed by its tree, which has all fields."""
    return _pack(protobuf_messages.message_of(trees.from_json(trees.to_json(action))))


@refusing("protobuf")
def release(
    value: bytes,
    label: str,
    text: str,
    finalizer: str | None,
    *,
    annotations: Mapping[str, str] = NO_TEXTS,
    key: bytes = b"",
    revision: int = 0,
) -> Released:
    """Set a label and annotations, remove a finalizer, and change nothing else; see `Codec`.

    Fields of later versions stay where they are.

    Raises:
        DecodeError: The value is not of this form, has no metadata, or gets too large.
    """
    labels = {label: text}
    message = _parse(value, key, revision)
    metadata = message.metadata
    try:
        others = trees.from_json(metadata.other_fields or b"{}")
        if not message.HasField("metadata") or not _CHANGED.isdisjoint(others):
            # For example labels that are null, empty or no map of texts.
            tree = _tree(message, key, revision)
            changed = release_tree(tree, labels, annotations, finalizer, key=key, revision=revision)
            return released(encode_tree(tree) if changed else value, tree)
        finalizers = metadata.finalizers
        changed = finalizer in finalizers
        for field, texts in ((metadata.labels, labels), (metadata.annotations, annotations)):
            for each, new in texts.items():
                if field.get(each) != new:
                    field[each] = new
                    changed = True
        if finalizer in finalizers:
            kept = [each for each in finalizers if each != finalizer]
            del finalizers[:]
            finalizers.extend(kept)
        return Released(
            _pack(message) if changed else value,
            held=bool(finalizers),
            deleting=bool(metadata.deletion_timestamp),
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        _refuse(error, key, revision)


_CHANGED: Final = frozenset({"labels", "annotations", "finalizers", "deletionTimestamp"})


# --- the message between magic, length and end --------------------------------------------


def _parse(value: bytes, key: bytes, revision: int) -> pb.TaskAction:
    if not value.startswith(MAGIC):
        raise DecodeError(magic.why_not(name, value) or "", key=key, revision=revision)
    magic.check_size(value, key, revision)
    try:
        return protobuf_messages.parse(_behind_length(value))
    except ValueError as error:
        _refuse(error, key, revision)


def _behind_length(value: bytes) -> bytes:
    """The message. Its length detects a truncated value, and bytes after the message."""
    length = shift = 0
    at = len(MAGIC)
    while True:
        if at == len(value):
            raise ValueError("truncated")
        byte = value[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 28:
            raise ValueError("malformed length")
    excess = len(value) - at - length
    if excess < 0:
        raise ValueError(f"truncated: {-excess} of {length} bytes are missing")
    if excess > 0:
        raise ValueError(f"{excess} bytes after the message's end")
    return value[at:]


def _pack(message: pb.TaskAction) -> bytes:
    encoded = message.SerializeToString(deterministic=True)
    length = len(encoded)
    head = bytearray(MAGIC)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return magic.written(bytes(head) + encoded)


def _tree(message: pb.TaskAction, key: bytes, revision: int) -> dict[str, Any]:
    """The complete object, for a change of it."""
    if later := protobuf_messages.fields_of_later_versions(message):
        raise DecodeError(
            f"protobuf: a later version of etcd-actions wrote fields ({later}) that a change "
            "would lose: update this one",
            key=key,
            revision=revision,
        )
    return _known_tree(message, key, revision)


def _known_tree(message: pb.TaskAction, key: bytes, revision: int) -> dict[str, Any]:
    try:
        return protobuf_messages.tree_of(message)
    except (ValueError, RecursionError) as error:
        _refuse(error, key, revision)


def _refuse(error: Exception, key: bytes, revision: int) -> NoReturn:
    raise refusal(error, "protobuf", key, revision) from None
