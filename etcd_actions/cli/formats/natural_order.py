"""The order of names, with the numbers in them by value: ``a2`` comes before ``a10``.

The page has the same order, in ``page/static/format.js``.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

NaturalKey: TypeAlias = tuple[tuple[tuple[int, str], ...], str]
"""A sort key; see :func:`natural_key`."""

_NUMBER: Final = re.compile("([0-9]+)")


def natural_key(name: str) -> NaturalKey:
    """The sort key of a name; names that differ only in zeros are in the order of their text."""
    # Texts and numbers alternate. A longer number without zeros before it has a higher value.
    parts = enumerate(_NUMBER.split(name))
    return tuple(_number(part) if at % 2 else (0, part) for at, part in parts), name


def _number(digits: str) -> tuple[int, str]:
    stripped = digits.lstrip("0")
    return len(stripped), stripped
