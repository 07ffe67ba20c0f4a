"""Kubernetes' JSON, byte for byte as an API server writes custom resources.

Keys are sorted; there are no spaces, and a newline at the end. ``<``, ``>``, ``&``, U+2028 and
U+2029 are escaped by their number, other UTF-8 is raw. That is ``encoding/json`` of Go 1.22 and
later, with which API servers since 1.30 are built.

If an object has a key twice, the last value counts, as in Go. Writing drops the others, as the API
server's own writes do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

import msgspec

from etcd_actions.codecs import magic
from etcd_actions.codecs import object_tree as trees
from etcd_actions.codecs.finalizers import NO_TEXTS, Released, release_tree, released
from etcd_actions.codecs.object_tree import Number
from etcd_actions.codecs.refusal import refusal, refusing
from etcd_actions.codecs.views import drop_nulls, view_of_tree, why_no_view
from etcd_actions.errors import DecodeError
from etcd_actions.model.facts import Facts, MarkedFacts
from etcd_actions.model.summary import Summary
from etcd_actions.model.summary import summarize as model_summarize
from etcd_actions.model.taskaction import ActionObject

__all__ = [
    "Number",
    "decode",
    "decode_tree",
    "encode",
    "encode_tree",
    "name",
    "release",
    "summarize",
]

name: Final = "json"
"""The codec's name in settings and records."""


def decode(value: bytes, *, key: bytes = b"", revision: int = 0) -> ActionObject:
    """Decode the typed view of a stored TaskAction.

    A null counts as an absent field, as in Go.

    Args:
        value: The stored bytes.
        key: The etcd key, for the error.
        revision: The value's ``mod_revision``, for the error.

    Raises:
        DecodeError: It is not such JSON, is another kind, lacks a field or has one of another
            type; the reason has the field's path.
    """
    magic.check_size(value, key, revision)
    try:
        action = _decode_action(value)
        # The decoder does not check the strings of fields that the view lacks.
        if not value.isascii():
            value.decode()
    except Exception as error:
        return _decode_with_nulls(value, error, key=key, revision=revision)
    return action


def summarize(
    value: bytes, *, key: bytes = b"", revision: int = 0, create_revision: int = 0
) -> Summary:
    """Decode only the facts that decide which receivers get the state of a TaskAction.

    Errors in other fields, which `decode` would refuse, go unnoticed.

    Raises:
        DecodeError: As for `decode`, of the fields that are read.
    """
    magic.check_size(value, key, revision)
    try:
        return _decode_facts(value).summary(revision, create_revision)
    except Exception:
        return _summarize_odd(value, key=key, revision=revision, create_revision=create_revision)


@refusing("")
def decode_tree(value: bytes, *, key: bytes = b"", revision: int = 0) -> dict[str, Any]:
    """Decode all fields of a value, to change it without a loss.

    Integers of any size stay integers, other numbers become `Number`. Only ``-0`` loses
    its sign, as it does in an API server.

    Raises:
        DecodeError: It is not a JSON object.
    """
    magic.check_size(value, key, revision)
    try:
        return trees.from_json(value)
    except Exception as error:
        _refuse(value, error, key, revision)


def encode_tree(tree: dict[str, Any], *, unchanged: Iterable[object] = ()) -> bytes:
    """Encode an object as Kubernetes does.

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
        return magic.written(_as_kubernetes(trees.to_json(tree)))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encode(action: ActionObject) -> bytes:
    """Encode a new object. A stored one is changed by its tree, which has all fields."""
    return magic.written(_as_kubernetes(trees.to_json(action)))


@refusing("")
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

    Raises:
        DecodeError: The value is not a JSON object with metadata, or gets too large.
    """
    labels = {label: text}
    spliced = _spliced(value, labels, annotations, finalizer)
    if spliced is not None:
        magic.check_size(spliced.value, key, revision)
        return spliced
    tree = decode_tree(value, key=key, revision=revision)
    changed = release_tree(tree, labels, annotations, finalizer, key=key, revision=revision)
    try:
        return released(encode_tree(tree) if changed else value, tree)
    except ValueError as error:
        raise DecodeError(str(error), key=key, revision=revision) from None


# --- decoding -------------------------------------------------------------------------

_decode_action = msgspec.json.Decoder(ActionObject).decode
# All values are decoded as if they had a mark: the fields of a mark cost next to nothing, a second
# pass costs a third of the first.
_decode_facts = msgspec.json.Decoder(MarkedFacts).decode
_decode_unmarked = msgspec.json.Decoder(Facts).decode


@refusing("")
def _summarize_odd(value: bytes, *, key: bytes, revision: int, create_revision: int) -> Summary:
    try:
        summary = _decode_unmarked(value).summary(revision, create_revision)
    except Exception:
        summary = None
    if summary is not None:
        return summary
    action = decode(value, key=key, revision=revision)
    return model_summarize(action, revision, create_revision)


@refusing("")
def _decode_with_nulls(
    value: bytes, error: Exception, *, key: bytes, revision: int
) -> ActionObject:
    """Decode a value that the strict decoder refused, in case only its nulls were the reason."""
    tree = decode_tree(value, key=key, revision=revision)
    if not drop_nulls(tree):
        if isinstance(error, msgspec.ValidationError):
            error = DecodeError(why_no_view(tree, str(error)), key=key, revision=revision)
        _refuse(value, error, key, revision)
    return view_of_tree(tree, key=key, revision=revision)


def _refuse(value: bytes, error: Exception, key: bytes, revision: int) -> NoReturn:
    if (foreign := magic.why_not(name, value)) is not None:
        raise DecodeError(foreign, key=key, revision=revision) from None
    raise refusal(error, "", key, revision) from None


# --- encoding -------------------------------------------------------------------------


# All of these characters occur in strings only, so they can be replaced in the encoded text.
_ASCII_ESCAPES: Final = ((b"<", rb"\u003c"), (b">", rb"\u003e"), (b"&", rb"\u0026"))
_OTHER_ESCAPES: Final = (("\u2028".encode(), rb"\u2028"), ("\u2029".encode(), rb"\u2029"))


def _as_kubernetes(encoded: bytes) -> bytes:
    for char, escape in _ASCII_ESCAPES:
        encoded = encoded.replace(char, escape)
    # The search for these is the slow one.
    if not encoded.isascii():
        for char, escape in _OTHER_ESCAPES:
            encoded = encoded.replace(char, escape)
    return encoded + b"\n"


# --- changes of the metadata, spliced into the bytes --------------------------------------


class _Outline(msgspec.Struct, gc=False):
    metadata: dict[str, msgspec.Raw]


_decode_outline = msgspec.json.Decoder(_Outline).decode
_decode_texts = msgspec.json.Decoder(dict[str, str] | None).decode
_decode_finalizers = msgspec.json.Decoder(list[str] | None).decode
_decode_time = msgspec.json.Decoder(str | None).decode
_HEAD: Final = b'{"apiVersion":"flyte.org/v1","kind":"TaskAction","metadata":{'
_ODD: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_Fields = dict[str, msgspec.Raw]


def _spliced(
    value: bytes,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    finalizer: str | None,
) -> Released | None:
    """Make the change in the bytes; None if the value is not certainly in Kubernetes' form.

    In that form ``metadata`` begins after a known head, and its fields follow each other without
    spaces. So their lengths give the offset of each, and of a new one. Spaces, escapes or a
    repeated key would make such an offset wrong, so the result is decoded again: the changed
    fields have to be as they were written. The bytes outside of them are copied.
    """
    if not value.startswith(_HEAD):
        return None
    try:
        fields = _decode_outline(value).metadata
        changes, held, deleting = _changes(fields, labels, annotations, finalizer)
        if not changes:
            return Released(value, held, deleting)
        result = _splice(value, fields, changes)
        if result is None:
            return None
        reread = _decode_outline(result).metadata
    except _ODD:
        return None
    for name, expected in changes.items():
        found = reread.get(name)
        if (None if found is None else bytes(found)) != expected:
            return None
    return Released(result, held, deleting)


def _changes(
    fields: _Fields,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    finalizer: str | None,
) -> tuple[dict[str, bytes | None], bool, bool]:
    """The new values of fields of ``metadata``, None to remove one; with `held` and `deleting`."""
    changes: dict[str, bytes | None] = {}
    for name, expected in (("annotations", annotations), ("labels", labels)):
        old = fields.get(name)
        texts = (_decode_texts(old) if old is not None and expected else None) or {}
        if any(texts.get(each) != text for each, text in expected.items()):
            texts.update(expected)
            changes[name] = _as_kubernetes(trees.to_json(texts))[:-1]
    old = fields.get("finalizers")
    finalizers = (_decode_finalizers(old) if old is not None else None) or []
    if finalizer in finalizers:
        finalizers = [each for each in finalizers if each != finalizer]
        kept = _as_kubernetes(trees.to_json(finalizers))[:-1] if finalizers else None
        changes["finalizers"] = kept
    deleted_at = fields.get("deletionTimestamp")
    return changes, bool(finalizers), deleted_at is not None and bool(_decode_time(deleted_at))


def _splice(value: bytes, fields: _Fields, changes: dict[str, bytes | None]) -> bytes | None:
    """Write the changed fields at the offsets that the lengths of the others give."""
    parts: list[bytes] = []
    # In sorted order, as in the value.
    missing = [(name, new) for name, new in changes.items() if new and name not in fields]
    left = len(changes)
    done, at = 0, len(_HEAD)
    for name, raw in fields.items():
        while missing and name > missing[0][0]:
            if not value.startswith(f'"{name}":'.encode(), at):
                return None
            belongs, new = missing.pop(0)
            parts += (value[done:at], f'"{belongs}":'.encode(), new, b",")
            done, left = at, left - 1
        end = at + len(name) + len(memoryview(raw)) + len('"":')
        if name in changes:
            head, changed = f'"{name}":'.encode(), changes[name]
            if value[at:end] != head + bytes(raw):
                return None
            parts.append(value[done:at])
            done, left = end, left - 1
            if changed is not None:
                parts += (head, changed)
            elif value[end : end + 1] == b",":
                done += 1
            else:
                return None
        if not left:
            parts.append(value[done:])
            return b"".join(parts)
        at = end + 1
    return None
