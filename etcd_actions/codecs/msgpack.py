"""MessagePack: the tree of the JSON form in standard msgpack, after a magic of four bytes.

``ff 4d 50 01`` ("MP" and the form's version), then one map, which any msgpack library reads:

- Keys are sorted, so that equal objects have equal bytes.
- The four fields that are base64 in JSON (templates, specs, states, signals) are binary if that
  gives the same text again, else text. No other field may be binary.
- A number with a fraction or an exponent is a float64 if Go would write that float with the same
  text; any other (``1.0``, ``1E400``) is an extension of type 1 with its text.
- An integer beyond 64 bits is an extension of type 1 with its digits.

Other extensions, such as timestamps, have no form in JSON and are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

import msgspec

from etcd_actions.codecs import magic
from etcd_actions.codecs import object_tree as trees
from etcd_actions.codecs.binary_view import BinaryTaskAction, tree_with_base64, tree_with_binary
from etcd_actions.codecs.finalizers import NO_TEXTS, Released
from etcd_actions.codecs.magic import MSGPACK as MAGIC
from etcd_actions.codecs.object_tree import Number
from etcd_actions.codecs.refusal import refusal, refusing
from etcd_actions.codecs.views import summary_of_tree, view_of_tree
from etcd_actions.errors import DecodeError
from etcd_actions.model.facts import Facts, MarkedFacts
from etcd_actions.model.summary import Summary
from etcd_actions.model.taskaction import ActionObject

name: Final = "msgpack"
"""The codec's name in settings and records."""

NUMBER: Final = 1
"""The extension type of a number's text."""


def decode(value: bytes, *, key: bytes = b"", revision: int = 0) -> ActionObject:
    """Decode the typed view of a stored TaskAction.

    A null counts as an absent field, as in JSON. Errors inside of fields that the view lacks go
    unnoticed if the field's length is readable; `release` copies such fields.

    Raises:
        DecodeError: It is not of this form, another kind, lacks a field or has one of another
            type; the reason has the field's path.
    """
    stored = _behind_magic(value, key, revision)
    try:
        # The decoder ignores keys that are not UTF-8; a change of a label could not keep them.
        _decode_outline(_decode_outline(stored)["metadata"])
        return _decode_action(stored).view()
    except Exception:
        return _decode_by_tree(value, key=key, revision=revision)


def summarize(
    value: bytes, *, key: bytes = b"", revision: int = 0, create_revision: int = 0
) -> Summary:
    """Decode only the facts that decide which receivers get the state of a TaskAction.

    Raises:
        DecodeError: As for `decode`, of the fields that are read.
    """
    stored = _behind_magic(value, key, revision)
    try:
        return _decode_facts(stored).summary(revision, create_revision)
    except Exception:
        return _summarize_odd(value, key=key, revision=revision, create_revision=create_revision)


@refusing("msgpack")
def decode_tree(value: bytes, *, key: bytes = b"", revision: int = 0) -> dict[str, Any]:
    """Decode all fields of a value, to change it without a loss.

    Raises:
        DecodeError: It is not of this form, or has a value for which JSON has no form.
    """
    stored = _behind_magic(value, key, revision)
    try:
        tree = _decode_tree(stored)
        tree_with_base64(tree)
        return trees.with_numbers(tree) if trees.check(tree) else tree
    except (*_MALFORMED, TypeError) as error:
        _refuse(error, key, revision)


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
    tree = tree_with_binary(tree)
    try:
        try:
            encoded = _encode(tree)
        except OverflowError:
            encoded = _encode(trees.mapped(tree, _narrow))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return magic.written(MAGIC + encoded)


def encode(action: ActionObject) -> bytes:
    """Encode a new object. A stored one is changed by its tree, which has all fields."""
    try:
        return magic.written(MAGIC + _encode(BinaryTaskAction.of(action)))
    except OverflowError:
        return encode_tree(trees.from_json(trees.to_json(action)))


@refusing("msgpack")
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

    Only the maps around the changes are encoded again; the bytes of all other fields are copied
    without decoding.

    Raises:
        DecodeError: The value is not a map of this form with metadata, or gets too large.
    """
    labels = {label: text}
    stored = _behind_magic(value, key, revision)
    place = what = ""
    try:
        fields = _decode_outline(stored)
        place, what = "metadata: ", "an object"
        metadata = _decode_outline(fields.get("metadata", _NIL))
        changed = False
        for field, texts_to_set in (("labels", labels), ("annotations", annotations)):
            place = f"metadata.{field}: "
            changed |= bool(texts_to_set) and _set_texts(metadata, field, texts_to_set)
        held = deleting = False
        if finalizer is not None:
            place, what = "metadata.finalizers: ", "a list"
            changed |= _drop_finalizer(metadata, finalizer)
            held = bool(_decode_any(metadata.get("finalizers", _NIL)))
            deleting = bool(_decode_any(metadata.get("deletionTimestamp", _NIL)))
        place = ""
        if not changed:
            return Released(value, held, deleting)
        fields["metadata"] = msgspec.Raw(_encode(metadata))
        return Released(magic.written(MAGIC + _encode(fields)), held, deleting)
    except msgspec.ValidationError as error:
        reason = f"{place}not {what}" if place else str(error)
        raise DecodeError(reason, key=key, revision=revision) from None
    except _MALFORMED as error:
        _refuse(error, key, revision)


# --- changes of the metadata ------------------------------------------------------------


def _set_texts(
    metadata: dict[str, msgspec.Raw], field: str, texts_to_set: Mapping[str, str]
) -> bool:
    """Set labels or annotations; return whether any changed."""
    texts = _decode_texts(metadata.get(field, _NIL)) or {}
    changed = False
    for name, text in texts_to_set.items():
        old = texts.get(name)
        if old is None or _decode_any(old) != text:
            texts[name] = msgspec.Raw(_encode(text))
            changed = True
    if changed:
        metadata[field] = msgspec.Raw(_encode(texts))
    return changed


def _drop_finalizer(metadata: dict[str, msgspec.Raw], finalizer: str) -> bool:
    """Remove a finalizer, and a list that gets empty; return whether it was there."""
    finalizers = _decode_list(metadata.get("finalizers", _NIL)) or []
    kept = [each for each in finalizers if _decode_any(each) != finalizer]
    if len(kept) == len(finalizers):
        return False
    if kept:
        metadata["finalizers"] = msgspec.Raw(_encode(kept))
    else:
        del metadata["finalizers"]
    return True


# --- decoding -------------------------------------------------------------------------


@refusing("msgpack")
def _decode_by_tree(value: bytes, *, key: bytes, revision: int) -> ActionObject:
    tree = decode_tree(value, key=key, revision=revision)
    return view_of_tree(tree, key=key, revision=revision)


@refusing("msgpack")
def _summarize_odd(value: bytes, *, key: bytes, revision: int, create_revision: int) -> Summary:
    stored = _behind_magic(value, key, revision)
    try:
        summary = _decode_unmarked(stored).summary(revision, create_revision)
    except Exception:
        summary = None
    if summary is not None:
        return summary
    tree = decode_tree(value, key=key, revision=revision)
    return summary_of_tree(tree, key=key, revision=revision, create_revision=create_revision)


_MALFORMED: Final = (msgspec.MsgspecError, LookupError, ValueError, RecursionError)


def _number(code: int, data: memoryview) -> int | Number:
    """Decode an extension."""
    if code != NUMBER:
        raise ValueError(f"an extension of type {code}, which means nothing here")
    text = bytes(data)
    number = _decode_number(text)
    if isinstance(number, int | Number) and not isinstance(number, bool) and text == text.strip():
        return number
    raise ValueError(f"an extension of type {NUMBER} that is not a JSON number")


_decode_number = msgspec.json.Decoder(float_hook=Number).decode
_decode_tree = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=_number).decode
_decode_action = msgspec.msgpack.Decoder(BinaryTaskAction, ext_hook=_number).decode
# Of all values as if they had a mark, as in `etcd_actions.codecs.json`.
_decode_facts = msgspec.msgpack.Decoder(MarkedFacts, ext_hook=_number).decode
_decode_unmarked = msgspec.msgpack.Decoder(Facts, ext_hook=_number).decode
_decode_outline = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_texts = msgspec.msgpack.Decoder(dict[str, msgspec.Raw] | None).decode
_decode_list = msgspec.msgpack.Decoder(list[msgspec.Raw] | None).decode
_decode_any = msgspec.msgpack.Decoder(ext_hook=_number).decode
_NIL: Final = msgspec.Raw(b"\xc0")


def _behind_magic(value: bytes, key: bytes, revision: int) -> bytes:
    if not value.startswith(MAGIC):
        reason = magic.why_not(name, value) or ""
        raise DecodeError(reason, key=key, revision=revision)
    magic.check_size(value, key, revision)
    return value[len(MAGIC) :]


def _refuse(error: Exception, key: bytes, revision: int) -> NoReturn:
    raise refusal(error, "msgpack", key, revision) from None


# --- encoding -------------------------------------------------------------------------


def _as_extension(value: object) -> float | msgspec.msgpack.Ext:
    """Encode a `Number`: as a float if that gives the same text again."""
    if type(value) is not Number:
        raise TypeError(f"{type(value).__name__} is not a JSON value")
    number = float(value)
    if number - number == 0 and trees.go_float(number) == value.text:
        return number
    return msgspec.msgpack.Ext(NUMBER, value.text.encode())


_encode = msgspec.msgpack.Encoder(order="sorted", enc_hook=_as_extension).encode


def _narrow(item: Any) -> Any:
    """Replace an integer that msgpack has no form for by an extension."""
    if type(item) is int and not -(2**63) <= item < 2**64:
        return msgspec.msgpack.Ext(NUMBER, str(item).encode())
    return item
