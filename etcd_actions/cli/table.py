"""The table that ``watch`` shows people: lines of fixed columns that keep coming."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from etcd_actions.cli.rows import ActionRow, Row, SyncedRow

# Where the output is no terminal there is no width to ask for.
_WIDTH_ELSEWHERE = 160
_LEAST_WIDTH = 60


class _Column(NamedTuple):
    """``share`` is the part of the spare width that it gets."""

    title: str
    width: int
    share: int = 0
    right: bool = False


_COLUMNS = (
    _Column("REVISION", 8, right=True),
    _Column("CHANGE", 8),
    _Column("RUN", 12, 3),
    _Column("ACTION", 8, 3),
    _Column("PARENT", 6, 2),
    _Column("PHASE", 12, 1),
    _Column("TRY", 3, right=True),
    _Column("REC", 3),
    _Column("DETAIL", 0, 9),
)

_PHASES = {
    "SUCCEEDED": "green",
    "RECOVERED": "green",
    "FAILED": "bold red",
    "TIMED_OUT": "bold red",
    "ABORTED": "magenta",
    "RUNNING": "cyan",
    "PAUSED": "yellow",
    "UNSPECIFIED": "dim",
}
_CHANGES = {"ADDED": "green", "MODIFIED": "", "DELETED": "red"}


class Table:
    """Formats rows for ``file``, as wide as its terminal is at that moment.

    The header comes first, and again when the width has changed. Colours follow the
    terminal and ``NO_COLOR``.
    """

    def __init__(self, file: IO[str]) -> None:
        elsewhere = None if file.isatty() or "COLUMNS" in os.environ else _WIDTH_ELSEWHERE
        self._console = Console(file=file, width=elsewhere, highlight=False, markup=False)
        self._width = 0
        self._widths: list[int] = []

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The bytes of whole lines."""
        lines = []
        width = max(self._console.width, _LEAST_WIDTH)
        if width != self._width:
            self._width = width
            self._widths = _widths(width)
            lines.append(self._line([(column.title, "bold") for column in _COLUMNS]))
        lines += map(self._format_row, rows)
        with self._console.capture() as captured:
            # The lines fit, except on a terminal too narrow for any table.
            self._console.print(Text("\n").join(lines), no_wrap=True, overflow="ellipsis")
        return captured.get().encode()

    def _format_row(self, row: Row) -> Text:
        if isinstance(row, SyncedRow):
            return Text(_cut(f"-- synced at revision {row.revision} --", self._width), "dim")
        if not isinstance(row, ActionRow):
            text = f"{row.revision:>8}  UNDECODABLE {row.key}: {row.reason}"
            return Text(_cut(_printable(text), self._width), "red")
        phase = row.phase or "unknown"
        return self._line(
            [
                (str(row.revision), "dim"),
                (row.type, _CHANGES.get(row.type, "")),
                (row.run or row.name, ""),
                (row.action or "", "bold"),
                (row.parent or "", "dim"),
                (phase, _PHASES.get(phase, "blue")),
                ("" if row.attempts is None else str(row.attempts), ""),
                ("yes" if row.recorded else "", "green"),
                (_detail(row), "red" if row.error else "dim"),
            ]
        )

    def _line(self, cells: Sequence[tuple[str, str]]) -> Text:
        line = Text()
        last = len(_COLUMNS) - 1
        for index, ((text, style), column) in enumerate(zip(cells, _COLUMNS, strict=True)):
            shown = _cut(_printable(text), self._widths[index])
            padding = " " * (self._widths[index] - cell_len(shown))
            if column.right:
                shown = padding + shown
            elif index != last:
                shown += padding
            line.append(shown, style)
            if index != last:
                line.append("  ")
        return line


def _widths(width: int) -> list[int]:
    """Share what the least widths leave over; what is not shared out is the last column's."""
    spare = max(0, width - sum(column.width for column in _COLUMNS) - 2 * (len(_COLUMNS) - 1))
    shares = sum(column.share for column in _COLUMNS)
    # Names have an end: more width than this is better used for the detail.
    widths = [
        min(column.width + spare * column.share // shares, 3 * column.width) for column in _COLUMNS
    ]
    widths[-1] = max(0, width - sum(widths[:-1]) - 2 * (len(_COLUMNS) - 1))
    return widths


def _detail(row: ActionRow) -> str:
    if row.error is not None:
        return f"{row.error.code}: {row.error.message}".strip(": ")
    notes = [
        note
        for note, holds in (
            ("not seen, concluded", row.synthesised),
            ("from memory", row.partial),
        )
        if holds
    ]
    place = "/".join(filter(None, (row.namespace, row.project, row.domain)))
    return " ".join(filter(None, (row.short_name, f"({', '.join(notes)})" if notes else "", place)))


def _printable(text: str) -> str:
    """The text without what would move the cursor or colour the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _cut(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1) + "…" if width > 0 else ""
