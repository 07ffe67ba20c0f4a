"""Tables for people: lines of fixed columns, so that rows can be added as they come."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import IO, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from etcd_actions._internal.quoting import printable
from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.formats.action_tree import TreeLine
from etcd_actions.cli.formats.rows import ActionRow, Row, UndecodableRow
from etcd_actions.errors import DecodeError
from etcd_actions.model.taskaction import parse_time

# The width of an output that is no terminal.
_WIDTH_ELSEWHERE = 160
_LEAST_WIDTH = 60
_GAP = "  "

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


class Cell(NamedTuple):
    """A text of any length, and a style of rich's."""

    text: str
    style: str = ""


Line = list[Cell]
"""Cells next to each other, without gaps."""


class Column(NamedTuple):
    """``width`` is the least one, ``share`` the weight in the distribution of spare width."""

    title: str
    width: int
    cell: Callable[[ActionRow], Cell]
    share: int = 0
    right: bool = False


class Terminal:
    """Lines for a file, as wide as its terminal is at that moment.

    Styles are shown on a terminal only, and not with ``NO_COLOR``.
    """

    def __init__(self, file: IO[str]) -> None:
        environment = sane_environment(os.environ)
        elsewhere = None if file.isatty() or "COLUMNS" in environment else _WIDTH_ELSEWHERE
        self._console = Console(
            file=file, width=elsewhere, highlight=False, markup=False, _environ=environment
        )
        self._styled = self._console.color_system is not None and not self._console.no_color

    @property
    def width(self) -> int:
        """Number of cells of a line."""
        return self._console.width

    def render(self, lines: Sequence[Line], *, wrap: bool = False) -> bytes:
        """The bytes of lines; too wide ones are cut, or with ``wrap`` left to the terminal."""
        if not self._styled:
            plain = ("".join(cell.text for cell in line) for line in lines)
            cut = plain if wrap else (cut_text(line, self.width) for line in plain)
            return "".join(f"{line}\n" for line in cut).encode()
        texts = [Text.assemble(*line) for line in lines]
        with self._console.capture() as captured:
            self._console.print(
                Text("\n").join(texts),
                no_wrap=True,
                overflow="ignore" if wrap else "ellipsis",
                crop=not wrap,
                soft_wrap=wrap,
            )
        return captured.get().encode()


class Table:
    """Formats rows; the header comes first, and again when the width has changed."""

    def __init__(self, file: IO[str], columns: Sequence[Column]) -> None:
        self._terminal = Terminal(file)
        self._columns = columns
        self._width = 0
        self._widths: list[int] = []

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The bytes of complete lines."""
        return self._terminal.render([*self._header(), *map(self._format_row, rows)])

    def _column_widths(self) -> list[int]:
        return _share(self._columns, self._width)

    def _header(self) -> list[Line]:
        width = max(self._terminal.width, _LEAST_WIDTH)
        if width == self._width:
            return []
        self._width = width
        self._widths = self._column_widths()
        return [self._line([Cell(column.title, "bold") for column in self._columns])]

    def _format_row(self, row: Row) -> Line:
        if isinstance(row, SyncedRow):
            return [Cell(f"-- synced at revision {row.revision} --", "dim")]
        if isinstance(row, UndecodableRow):
            text = f"{row.revision:>8}  UNDECODABLE {row.key}: {row.reason}"
            return [Cell(cut_text(printable(text), self._width), "red")]
        return self._line([column.cell(row) for column in self._columns])

    def _line(self, cells: Sequence[Cell]) -> Line:
        line = []
        for cell, column, width in zip(cells, self._columns, self._widths, strict=True):
            shown = cut_text(printable(cell.text), width)
            padding = " " * (width - _cells(shown))
            if column is self._columns[-1]:
                padding = ""
            shown = padding + shown if column.right else shown + padding
            line += [Cell(shown, cell.style), Cell(_GAP)]
        return line[:-1]


class ChangeTable(Table):
    """The table of ``watch``; with ``runs_of_projects`` runs have their project and domain."""

    def __init__(self, file: IO[str], *, runs_of_projects: bool = False) -> None:
        columns = (
            Column("REVISION", 8, lambda row: Cell(str(row.revision), "dim"), right=True),
            Column("CHANGE", 8, lambda row: Cell(row.type, _CHANGES.get(row.type, ""))),
            *_action_columns(runs_of_projects),
            Column("DETAIL", 0, _detail, 9),
        )
        super().__init__(file, columns)


class ActionTable(Table):
    """The table of ``list``, with the ages at ``now``; see :class:`ChangeTable`."""

    def __init__(
        self, file: IO[str], now: datetime | None = None, *, runs_of_projects: bool = False
    ) -> None:
        then = now or datetime.now(UTC)
        columns = (
            *_action_columns(runs_of_projects),
            Column("AGE", 6, lambda row: Cell(age(row.created_at, then), "dim"), right=True),
            Column("DETAIL", 0, _detail, 9),
        )
        super().__init__(file, columns)


class TreeTable(Table):
    """The table of ``tree``: the indentation of a name is the depth of the action.

    Args:
        file: The output.
        title: The line above it.
        lines: Its lines.
        now: The time for actions that have not ended.
    """

    def __init__(
        self, file: IO[str], title: str, lines: Sequence[TreeLine], now: datetime | None = None
    ) -> None:
        then = now or datetime.now(UTC)
        columns = (
            Column("ACTION", 12, self._label),
            Column("PHASE", 12, phase_cell),
            *_TRY_AND_RECORDED,
            Column(
                "TIME", 6, lambda row: Cell(age(row.created_at, then, row.ended_at)), right=True
            ),
            Column("DETAIL", 0, _tree_detail),
        )
        super().__init__(file, columns)
        self._title = title
        self._lines = lines
        self._labels = {line.row.key: line.label for line in lines if line.row is not None}
        self._widest = max((cell_len(line.label) for line in lines), default=0)

    def format_tree(self) -> bytes:
        """The bytes of all of it."""
        lines: list[Line] = [[Cell(printable(self._title), "bold")], *self._header()]
        for line in self._lines:
            if line.row is None:
                lines.append([Cell(_cut_left(printable(line.label), self._width), "red")])
            else:
                lines.append(self._format_row(line.row))
        return self._terminal.render(lines)

    def _label(self, row: ActionRow) -> Cell:
        return Cell(_cut_left(printable(self._labels[row.key]), self._widths[0]), "bold")

    def _column_widths(self) -> list[int]:
        """The names get the width that they need, up to two thirds of the line."""
        widths = super()._column_widths()
        most = max(widths[0], self._width * 2 // 3 - sum(widths[1:-1]))
        label = min(max(widths[0], self._widest), most)
        widths[-1] = max(0, widths[-1] + widths[0] - label)
        widths[0] = label
        return widths


def sane_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, without an invalid size of the terminal: rich would fail on it."""
    return {
        name: text
        for name, text in variables.items()
        if name not in ("COLUMNS", "LINES") or re.fullmatch("[1-9][0-9]{0,3}", text)
    }


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose cells are below each other; a line can have fewer cells than others."""
    widths = [max(map(_cells, column)) for column in zip_longest(*lines, fillvalue="")]
    return [
        _GAP.join(
            text + " " * (width - _cells(text)) for text, width in zip(line, widths, strict=False)
        ).rstrip()
        for line in lines
    ]


def phase_cell(row: ActionRow) -> Cell:
    """The phase in its colour."""
    phase = row.phase or "unknown"
    return Cell(phase, _PHASES.get(phase, "blue"))


def age(since: str, now: datetime, until: str = "") -> str:
    """The time from one stored time to another, else to now; empty if one is unreadable."""
    try:
        began, ended = parse_time(since, ""), parse_time(until, "")
    except DecodeError:
        return ""
    if began is None:
        return ""
    seconds = max(0, int(((ended or now) - began).total_seconds()))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h" if days < 100 else f"{days}d"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def cut_text(text: str, width: int) -> str:
    """The text, without its end if it has more cells than ``width``."""
    if _cells(text) <= width:
        return text
    return set_cell_size(text, width - 1) + "…" if width > 0 else ""


def _cut_left(text: str, width: int) -> str:
    """The text, without its beginning if it has more cells than ``width``."""
    if _cells(text) <= width:
        return text
    start = max(0, len(text) - width + 1)
    while _cells(text[start:]) >= width > 0:
        start += 1
    return "…" + text[start:]


def _cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _share(columns: Sequence[Column], width: int) -> list[int]:
    """Distribute the spare width by the shares; the last column gets the rest."""
    gaps = len(_GAP) * (len(columns) - 1)
    spare = max(0, width - sum(column.width for column in columns) - gaps)
    shares = sum(column.share for column in columns) or 1
    # Names are short: more width than this is better used for the detail.
    widths = [
        min(column.width + spare * column.share // shares, 3 * column.width) for column in columns
    ]
    widths[-1] = max(0, width - sum(widths[:-1]) - gaps)
    return widths


_TRY_AND_RECORDED = (
    Column("TRY", 3, lambda row: Cell("" if row.attempts is None else str(row.attempts)), 0, True),
    Column("REC", 3, lambda row: Cell("yes" if row.recorded else "", "green")),
)


def _action_columns(runs_of_projects: bool) -> tuple[Column, ...]:
    def run(row: ActionRow) -> Cell:
        named = (row.project, row.domain, row.run) if runs_of_projects and row.run else (row.run,)
        return Cell("/".join(filter(None, named)) or row.name)

    return (
        Column("RUN", 12, run, 3),
        Column("ACTION", 8, lambda row: Cell(row.action or "", "bold"), 3),
        Column("PARENT", 6, lambda row: Cell(row.parent or "", "dim"), 2),
        Column("PHASE", 12, phase_cell, 1),
        *_TRY_AND_RECORDED,
    )


def _tree_detail(row: ActionRow) -> Cell:
    return Cell(row.short_name, "dim") if row.error is None else _detail(row)


def _detail(row: ActionRow) -> Cell:
    if row.error is not None:
        return Cell(f"{row.error.code}: {row.error.message}".strip(": "), "red")
    notes = ["not seen, concluded"] if row.synthesised else []
    notes += ["from memory"] if row.partial else []
    names = "/".join(filter(None, (row.namespace, row.project, row.domain)))
    text = filter(None, (row.short_name, f"({', '.join(notes)})" if notes else "", names))
    return Cell(" ".join(text), "dim")
