"""The search for references to uploads in any bytes; no I/O.

A reference is found by the deployment's name, in any spelling of the rest of the URL. An incomplete
reference counts for all uploads. So the worst error keeps an upload that is not needed.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote

_SAFE: Final = re.compile(r"[A-Za-z0-9._~-]*")
# A slash, also in the spellings of JSON and URLs, and the redundant parts of a path around it.
_SLASH: Final = rb"(?:/|\\/|%2[Ff]|(?<=/)\.(?=/))+"
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_DEPTH: Final = 3
"""The levels of base64 within base64 that are searched."""
_IMAGE: Final = re.compile(rb"@sha256:([0-9a-f]{64})")
_OF_A_RUN: Final = re.compile(rb"/runs" + 3 * (_SLASH + rb"([^/\\\x00-\x1f\"]{1,255})") + _SLASH)
_ALL: Final = "*"


def runs_in(data: bytes) -> set[str]:
    """The runs whose outputs bytes refer to: ``project/domain/name``."""
    found: set[str] = set()
    for each in _OF_A_RUN.finditer(data):
        run = b"/".join(each.groups()).decode(errors="replace")
        found |= {run, unquote(run)}
    return found


class References:
    """A set of references.

    Attributes:
        images: The digests of images' definitions.
    """

    def __init__(self, found: Iterable[str] = ()) -> None:
        self.images: set[str] = set()
        self._units: set[str] = set()
        self._names: list[str] = []
        self._all = False
        self.add(found)

    def add(self, found: Iterable[str]) -> None:
        """Add references of `ReferenceFinder.find`."""
        for each in found:
            kind, _, rest = each.partition("/")
            if each == _ALL:
                self._all = True
            elif kind == "image":
                self.images.add(rest)
            elif each not in self._units:
                self._units.add(each)
                if kind == "named":
                    bisect.insort(self._names, rest)

    def keeps(self, unit: str) -> bool:
        """Whether there is a reference to a unit, or may be one."""
        if self._all or unit in self._units:
            return True
        kind, _, name = unit.partition("/")
        if kind != "named":
            return False
        # Bytes after a name may look like a part of it, and an escaped character in it ends it. So
        # the name and the reference to it agree if one begins with the other.
        matched = _SAFE.match(name)
        assert matched is not None
        safe = matched[0]
        at = bisect.bisect_left(self._names, safe)
        if at < len(self._names) and self._names[at].startswith(safe):
            return True
        return any(f"named/{safe[:end]}" in self._units for end in range(len(safe)))


class ReferenceFinder:
    """Finds references in bytes.

    Args:
        deployment: The deployment of the uploads.
    """

    def __init__(self, deployment: str) -> None:
        name = deployment.encode()
        self._name = re.compile(re.escape(name))
        self._unit = re.compile(
            re.escape(name)
            + _SLASH
            + rb"(?:content"
            + _SLASH
            + rb"(?P<content>[0-9a-f]{32})|named"
            + _SLASH
            + rb"(?P<named>[A-Za-z0-9._~-]{0,255})|(?P<inputs>[0-9a-f]{32}))"
        )
        self._needles = tuple(_hidden([name, b"@sha256:"]))

    def find(self, data: bytes) -> set[str]:
        """The references in bytes, also within base64; see `References.add`."""
        found: set[str] = set()
        self._find(data, found, _DEPTH)
        return found

    def _find(self, data: bytes, found: set[str], depth: int) -> None:
        for at in self._name.finditer(data):
            unit = self._unit.match(data, at.start())
            if unit is None or unit.lastgroup is None:
                found.add(_ALL)
            else:
                found.add(f"{unit.lastgroup}/{unit[unit.lastgroup].decode()}")
        found.update(f"image/{each[1].decode()}" for each in _IMAGE.finditer(data))
        if not depth or not any(needle in data for needle in self._needles):
            return
        for run in _BASE64.finditer(data):
            text = run[0].rstrip(b"=").translate(_URL_SAFE)
            # Characters before the text may look like a part of it: try each offset.
            for start in range(4):
                for end in (0, 1):
                    decoded = _decoded(text[start:], end)
                    if decoded:
                        self._find(decoded, found, depth - 1)


def _decoded(text: bytes, cut: int) -> bytes:
    """Decode base64 without padding; one character is dropped if it cannot be decoded."""
    if (len(text) % 4 == 1) != bool(cut):
        return b""
    text = text[: len(text) - cut]
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


class _Text(NamedTuple):
    data: bytes
    depth: int


def _hidden(names: Iterable[bytes]) -> Iterator[bytes]:
    """The texts of names in base64 within other bytes: three for each, also of these texts."""
    waiting = [_Text(name, _DEPTH) for name in names]
    while waiting:
        name, depth = waiting.pop()
        for before in range(3):
            text = base64.b64encode(bytes(before) + name)
            # Without the characters that depend on the bytes around the name.
            needle = text[-(-before * 8 // 6) : (before + len(name)) * 8 // 6]
            yield needle
            if depth > 1:
                waiting.append(_Text(needle, depth - 1))
