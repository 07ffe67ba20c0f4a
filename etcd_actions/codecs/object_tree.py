"""A decoded object as a tree of Python values, the common form of all codecs.

A tree has dicts with text keys, lists, texts, integers of any size, booleans, None, and `Number`
for other numbers: exactly the values of JSON. All codecs have the same trees, so a value can be
converted from one form to any other and back without a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from etcd_actions.errors import DecodeError


class Number(float):
    """A number with a fraction or an exponent, together with its text in JSON."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Number:
        """Read a JSON number."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]
        return (self.text,)


def go_float(number: float) -> str:
    """Format a number as Go's ``encoding/json``: the shortest text that reads back.

    Raises:
        ValueError: It is not finite.
    """
    if number - number != 0:
        raise ValueError(f"{number} is not a JSON number")
    text = repr(number)
    if number == 0 or 1e-6 <= abs(number) < 1e21:
        return format(Decimal(text), "f").removesuffix(".0")
    return text.replace("e-0", "e-")


_SCALARS: Final = frozenset({str, int, bool, type(None), Number})
_TEXT: Final = frozenset({str})


def check(tree: dict[str, Any], unchanged: Iterable[object] = ()) -> bool:
    """Refuse values that an encoder would change, or that not every codec has a form for.

    Args:
        tree: An object.
        unchanged: Parts that are as a codec decoded them: they are not checked again.

    Returns:
        Whether there are floats that are not `Number`.

    Raises:
        TypeError: The tree is not a dict, or has a value for which JSON has no form.
    """
    floats = False
    if type(tree) is not dict:
        raise TypeError(f"{type(tree).__name__} is not a JSON object")
    waiting: list[Any] = [tree]
    skipped = set(map(id, unchanged))
    while waiting:
        node = waiting.pop()
        if skipped and id(node) in skipped:
            continue
        items: Iterable[Any] = node
        if type(node) is dict:
            items = node.values()
            if not _TEXT.issuperset(map(type, node)):
                raise TypeError("a key of an object is not text")
        for item in items:
            kind = type(item)
            if kind is dict or kind is list:
                if item:
                    waiting.append(item)
            elif kind is float:
                floats = True
            elif kind not in _SCALARS:
                raise TypeError(f"{kind.__name__} is not a JSON value")
    return floats


def with_numbers(tree: dict[str, Any]) -> dict[str, Any]:
    """Copy a tree, with each float replaced by a `Number` with Go's text.

    Raises:
        ValueError: A float is not finite.
    """
    return mapped(tree, lambda item: Number(go_float(item)) if type(item) is float else item)


def mapped(tree: dict[str, Any], replace: Callable[[Any], Any]) -> dict[str, Any]:
    """Copy a tree with its leaves replaced. Not recursive: a tree may be deep."""
    root: dict[str, Any] = {}
    waiting: list[tuple[Any, Any]] = [(tree, root)]
    while waiting:
        source, target = waiting.pop()
        for at, item in source.items() if type(source) is dict else enumerate(source):
            copy: Any
            if type(item) is dict:
                copy = {}
                waiting.append((item, copy))
            elif type(item) is list:
                copy = [None] * len(item)
                waiting.append((item, copy))
            else:
                copy = replace(item)
            target[at] = copy
    return root


def set_texts(
    tree: dict[str, Any],
    field: str,
    texts: Mapping[str, str],
    *,
    key: bytes = b"",
    revision: int = 0,
) -> bool:
    """Set some of ``metadata.labels`` or ``metadata.annotations``, in place.

    Returns:
        Whether any was changed: False if all are set already.

    Raises:
        DecodeError: ``metadata`` or the field is not an object.
    """
    metadata = tree.get("metadata")
    if not isinstance(metadata, dict):
        raise DecodeError("metadata: not an object", key=key, revision=revision)
    if not texts:
        return False
    found = metadata.get(field)
    if found is None:
        found = metadata[field] = {}
    elif not isinstance(found, dict):
        raise DecodeError(f"metadata.{field}: not an object", key=key, revision=revision)
    if all(found.get(name) == text for name, text in texts.items()):
        return False
    found.update(texts)
    return True


# --- parts that forms share -------------------------------------------------------------


def _raw_number(value: object) -> msgspec.Raw:
    if type(value) is Number:
        return msgspec.Raw(value.text)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


to_json = msgspec.json.Encoder(order="sorted", enc_hook=_raw_number).encode
"""Compact JSON with sorted keys, of a tree that was checked and has no plain floats."""

from_json = msgspec.json.Decoder(dict[str, Any], float_hook=Number).decode
"""The tree of a JSON object."""


def base64_bytes(text: str) -> bytes | None:
    """Decode base64; None if encoding the bytes would not give the same text again."""
    try:
        data = msgspec.convert(text, bytes)
    except msgspec.ValidationError:
        return None
    return data if base64_text(data) == text else None


def base64_text(data: bytes) -> str:
    """Base64 as Go writes ``[]byte``."""
    # msgspec is several times as fast as binascii.
    text: str = msgspec.to_builtins(data)
    return text
