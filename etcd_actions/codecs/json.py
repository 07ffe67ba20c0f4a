"""Kubernetes' JSON, byte for byte as an API server writes custom resources.

Keys sorted, no spaces, a newline at the end; ``<``, ``>``, ``&``, U+2028 and U+2029
escaped by their number, other UTF-8 raw (``encoding/json`` of Go 1.22 and later, which API servers
since 1.30 are built with).

A key that an object has twice counts with its last value, as in Go; writing drops the others,
as the API server's own writes do.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final, NoReturn

import msgspec

from etcd_actions.errors import DecodeError
from etcd_actions.model.facts import Facts
from etcd_actions.model.summary import Summary
from etcd_actions.model.summary import summarize as model_summarize
from etcd_actions.model.taskaction import TaskAction

name: Final = "json"
"""The codec's name in settings and records."""


class Number(float):
    """A number with a fraction or an exponent, which keeps the text that it was read from."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Number:
        """Read a JSON number."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]
        return (self.text,)


def decode(value: bytes, *, key: bytes = b"", revision: int = 0) -> TaskAction:
    """Decode the typed view of a stored TaskAction.

    A null counts as an absent field, as in Go.

    Args:
        value: The stored bytes.
        key: The etcd key, for the error.
        revision: The value's ``mod_revision``, for the error.

    Raises:
        DecodeError: It is no such JSON, another kind, lacks a field or has one of another
            type; the reason has the field's path.
    """
    try:
        action = _decode_action(value)
        # Strings of fields that the view lacks are passed over unread.
        if not value.isascii():
            value.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _decode_with_nulls(value, error, key, revision)
    return action


def summarize(
    value: bytes, *, key: bytes = b"", revision: int = 0, create_revision: int = 0
) -> Summary:
    """Decode only what decides who is to be told of a stored TaskAction.

    What `decode` would complain of elsewhere in the value goes unnoticed.

    Raises:
        DecodeError: As for `decode`, of the fields that are looked at.
    """
    try:
        return _decode_facts(value).summary(revision, create_revision)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        action = decode(value, key=key, revision=revision)
        return model_summarize(action, revision, create_revision)


def decode_tree(value: bytes, *, key: bytes = b"", revision: int = 0) -> dict[str, Any]:
    """Decode everything that a value holds, to change it without a loss.

    Integers of any size stay integers, other numbers become `Number`. Only ``-0`` loses
    its sign, as it does in an API server.

    Raises:
        DecodeError: It is not a JSON object.
    """
    try:
        return _decode_tree(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        _refuse(value, error, key, revision)


def encode_tree(tree: dict[str, Any]) -> bytes:
    """Encode an object as Kubernetes does.

    Raises:
        TypeError: Something in it is no JSON value.
        ValueError: A number is not finite, a string is not Unicode, or it is nested too
            deeply.
    """
    floats = _has_floats(tree)
    try:
        if floats:
            tree = _with_numbers(tree)
        return _as_kubernetes(_encode(tree))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encode(action: TaskAction) -> bytes:
    """Encode a new object. For one that is stored already use the tree: it loses nothing."""
    return _as_kubernetes(_encode(action))


def add_label(value: bytes, label: str, text: str, *, key: bytes = b"", revision: int = 0) -> bytes:
    """Set a label in ``metadata.labels`` and change nothing else.

    Returns:
        The new bytes; `value` itself where it has that label already.

    Raises:
        DecodeError: The value is not a JSON object with metadata.
    """
    spliced = _splice_label(value, label, text)
    if spliced is not None:
        return spliced
    tree = decode_tree(value, key=key, revision=revision)
    metadata = tree.get("metadata")
    if not isinstance(metadata, dict):
        raise DecodeError("metadata: not an object", key=key, revision=revision)
    labels = metadata.get("labels")
    if labels is None:
        labels = metadata["labels"] = {}
    elif not isinstance(labels, dict):
        raise DecodeError("metadata.labels: not an object", key=key, revision=revision)
    if labels.get(label) == text:
        return value
    labels[label] = text
    try:
        return encode_tree(tree)
    except ValueError as error:
        raise DecodeError(str(error), key=key, revision=revision) from None


# --- decoding -------------------------------------------------------------------------

_decode_action = msgspec.json.Decoder(TaskAction).decode
_decode_facts = msgspec.json.Decoder(Facts).decode
_decode_tree = msgspec.json.Decoder(dict[str, Any], float_hook=Number).decode


def _decode_with_nulls(value: bytes, error: Exception, key: bytes, revision: int) -> TaskAction:
    """Decode what the strict decoder refused, in case only nulls were in its way."""
    tree = decode_tree(value, key=key, revision=revision)
    if not _drop_nulls(tree):
        _refuse(value, error, key, revision)
    try:
        return msgspec.convert(tree, TaskAction)
    except (msgspec.MsgspecError, RecursionError) as second:
        _refuse(value, second, key, revision)


def _drop_nulls(tree: dict[str, Any]) -> bool:
    found = False
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            for field in [field for field, item in node.items() if item is None]:
                del node[field]
                found = True
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return found


_FOREIGN: Final = (
    (b"k8s:enc:", "encrypted at rest by a Kubernetes API server"),
    (b"k8s\0", "Kubernetes' protobuf, which custom resources are not stored in"),
    (b"\xd9\xd9\xf7", "CBOR, which a Kubernetes API server was told to store"),
)


def _refuse(value: bytes, error: Exception, key: bytes, revision: int) -> NoReturn:
    if not value:
        reason = "the value is empty"
    elif foreign := next((what for magic, what in _FOREIGN if value.startswith(magic)), None):
        reason = f"the value is not JSON but {foreign}"
    elif isinstance(error, RecursionError):
        reason = "nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        reason = f"not UTF-8: {error}"
    else:
        reason = str(error)
    raise DecodeError(reason, key=key, revision=revision) from None


# --- encoding -------------------------------------------------------------------------


def _raw_number(value: object) -> msgspec.Raw:
    if type(value) is Number:
        return msgspec.Raw(value.text)
    raise TypeError(f"{type(value).__name__} is no JSON value")


_encode = msgspec.json.Encoder(order="sorted", enc_hook=_raw_number).encode

# All of these occur in strings only, so they can be replaced in the encoded text.
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


_SCALARS: Final = frozenset({str, int, bool, type(None), Number})


def _has_floats(tree: dict[str, Any]) -> bool:
    """Look for floats, and refuse what the encoder would write as something else."""
    found = False
    if type(tree) is not dict:
        raise TypeError(f"{type(tree).__name__} is no JSON object")
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        for item in node.values() if type(node) is dict else node:
            kind = type(item)
            if kind is dict or kind is list:
                if item:
                    waiting.append(item)
            elif kind is float:
                found = True
            elif kind not in _SCALARS:
                raise TypeError(f"{kind.__name__} is no JSON value")
    return found


def _with_numbers(node: Any) -> Any:
    if type(node) is dict:
        return {name: _with_numbers(item) for name, item in node.items()}
    if type(node) is list:
        return [_with_numbers(item) for item in node]
    return Number(_go_float(node)) if type(node) is float else node


def _go_float(number: float) -> str:
    """Format a number as Go's ``encoding/json``: the shortest text that reads back."""
    if number - number != 0:
        raise ValueError(f"{number} is no JSON number")
    text = repr(number)
    if number == 0 or 1e-6 <= abs(number) < 1e21:
        return format(Decimal(text), "f").removesuffix(".0")
    return text.replace("e-0", "e-")


# --- the label, spliced in --------------------------------------------------------------


class _Outline(msgspec.Struct, gc=False):
    metadata: dict[str, msgspec.Raw]


_decode_outline = msgspec.json.Decoder(_Outline).decode
_decode_labels = msgspec.json.Decoder(dict[str, str] | None).decode
_HEAD: Final = b'{"apiVersion":"flyte.org/v1","kind":"TaskAction","metadata":{'


def _splice_label(value: bytes, label: str, text: str) -> bytes | None:
    """Set the label in the bytes, None where that is not certain to be right.

    In Kubernetes' form ``metadata`` begins behind a known head, and its fields stand one
    behind the other without spaces, so their lengths tell where ``labels`` is or belongs.
    A value in another form could mislead that (spaces, escapes or a key twice), so the
    result is decoded again: what a reader takes for the labels has to be the ones written,
    and nothing outside of them was touched.
    """
    if not value.startswith(_HEAD):
        return None
    try:
        fields = _decode_outline(value).metadata
        old = fields.get("labels")
        labels = (_decode_labels(old) if old is not None else None) or {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if labels.get(label) == text:
        return value
    labels[label] = text
    at = len(_HEAD)
    following = ""
    for following, raw in fields.items():
        if following >= "labels":
            break
        at += len(following) + len(memoryview(raw)) + len('"":,')
    written = _as_kubernetes(_encode(labels))[:-1]
    if old is not None:
        start = at + len('"labels":')
        end = start + len(memoryview(old))
        if value[at:start] != b'"labels":' or value[start:end] != bytes(old):
            return None
        result = b"".join((value[:start], written, value[end:]))
    else:
        if not value.startswith(f'"{following}":'.encode(), at):
            return None
        result = b"".join((value[:at], b'"labels":', written, b",", value[at:]))
    try:
        seen = _decode_outline(result).metadata.get("labels")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return result if seen is not None and bytes(seen) == written else None
