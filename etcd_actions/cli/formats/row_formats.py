"""The formats of rows of actions: one row a line, a table, or one document."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

import msgspec

from etcd_actions.cli.formats.rows import ActionRow, Row
from etcd_actions.cli.formats.standard_output import name_lines


class Format(Protocol):
    """Formats rows in parts, as they are read."""

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The bytes of complete lines."""


class JsonLines:
    """One JSON object a line."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The bytes of complete lines."""
        return self._encoder.encode_lines(rows)


class Document:
    """One document that is written in parts: the revision, then the rows in an array.

    Args:
        form: ``json`` or ``yaml``.
    """

    def __init__(self, form: str) -> None:
        self._encoder = msgspec.json.Encoder()
        self._is_yaml = form == "yaml"
        self._separator = b"\n"
        self._has_rows = False

    def start(self, revision: int) -> bytes:
        """The part before the rows."""
        return (b"revision: %d\n" if self._is_yaml else b'{"revision":%d,"actions":[') % revision

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The part with the next rows."""
        if not rows:
            return b""
        if self._is_yaml:
            from etcd_actions.cli.formats.yaml import as_yaml  # noqa: PLC0415 (rarely needed)

            head, self._has_rows = b"" if self._has_rows else b"actions:\n", True
            return head + as_yaml(rows)
        encoded = self._separator + b",\n".join(map(self._encoder.encode, rows))
        self._separator = b",\n"
        return encoded

    def end(self) -> bytes:
        """The part after the rows."""
        if self._is_yaml:
            return b"" if self._has_rows else b"actions: []\n"
        return b"\n]}\n"


class NameLines:
    """The name of each action, one a line."""

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The bytes of complete lines."""
        return name_lines(row.path for row in rows if isinstance(row, ActionRow))


def formatter(form: str, *, qualify_runs: bool = False, follow: bool = False) -> Format:
    """Return a format that writes rows as they come.

    Args:
        form: ``table``, ``wide``, ``name`` or ``jsonl``.
        qualify_runs: Whether the name of a run in a table has its project and domain before it.
        follow: Whether rows of a table come one by one.
    """
    if form == "jsonl":
        return JsonLines()
    if form == "name":
        return NameLines()
    from etcd_actions.cli.formats.action_tables import ActionTable  # noqa: PLC0415 (rich is slow to import)

    return ActionTable(sys.stdout, qualify_runs=qualify_runs, wide=form == "wide", follow=follow)
