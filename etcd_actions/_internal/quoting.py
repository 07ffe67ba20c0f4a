"""Quotes values from outside in messages for people."""

from __future__ import annotations

from typing import Final

_MOST: Final = 80


def quoted(value: object, most: int = _MOST) -> str:
    """The ``repr`` of a value, truncated to about ``most`` characters."""
    if isinstance(value, (str, bytes)) and len(value) > most:
        return f"{value[:most]!r}... ({len(value)} {_UNITS[type(value) is str]})"
    return clipped(_repr(value), most)


def clipped(text: str, most: int) -> str:
    """A text, truncated to ``most`` characters."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def printable(text: str) -> str:
    """A text that is safe for a terminal: all characters that are not printable are escaped.

    So it has no line breaks, and cannot move the cursor, change colours or the direction of text.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


_UNITS: Final = ("bytes", "characters")


def _repr(value: object) -> str:
    try:
        return repr(value)
    except (RecursionError, ValueError):
        # It is nested deeply, or a number with thousands of digits.
        return f"<{type(value).__name__}>"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
