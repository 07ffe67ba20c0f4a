"""YAML in blocks, of the values that JSON has. Texts are quoted as in JSON, which YAML includes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

_STEP = "  "


def as_yaml(value: object) -> bytes:
    """A document, of anything that msgspec encodes as JSON."""
    built = msgspec.json.decode(msgspec.json.encode(value))
    return "".join(f"{line}\n" for line in _lines(built)).encode()


def _lines(value: Any) -> Iterator[str]:
    """Lines without indentation; a scalar and an empty collection are one line."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _below(f"{_scalar(key)}:", each)
    elif isinstance(value, list) and value:
        for each in value:
            first, *rest = _lines(each)
            yield f"- {first}"
            yield from (f"{_STEP}{line}" for line in rest)
    else:
        yield _scalar(value)


def _below(head: str, value: Any) -> Iterator[str]:
    if isinstance(value, (dict, list)) and value:
        yield head
        step = _STEP if isinstance(value, dict) else ""
        yield from (f"{step}{line}" for line in _lines(value))
    else:
        yield f"{head} {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _is_plain(value):
        return value
    return msgspec.json.encode(value).decode()


def _is_plain(text: str) -> bool:
    """Whether a text needs no quotes: it begins as a word and is no other scalar of YAML."""
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
    return (
        text.isascii()
        and text[:1].isalpha()
        and all(c.isalnum() or c in "_-./" for c in text)
        and text.lower() not in words
    )
