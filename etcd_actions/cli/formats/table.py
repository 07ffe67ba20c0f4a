"""Tables for people: lines of fixed columns, so that rows can keep coming."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from etcd_actions._internal.quoting import printable
from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.formats.action_tree import Place
from etcd_actions.cli.formats.rows import ActionRow, Row, UndecodableRow
from etcd_actions.errors import DecodeError
from etcd_actions.model.taskaction import parse_time

# Where the output is no terminal there is no width to ask for.
_WIDTH_ELSEWHERE = 160
_LEAST_WIDTH = 60
_GAP = "  "


class Cell(NamedTuple):
    """A text that need not fit, and a style of rich's."""

    text: str
    style: str = ""


Line = list[Cell]
"""Cells that stand one behind the other as they are."""


class Column(NamedTuple):
    """``share`` is the part of the spare width that it gets."""

    title: str
    width: int
    share: int = 0
    right: bool = False


_CHANGE_COLUMNS = (
    Column("REVISION", 8, right=True),
    Column("CHANGE", 8),
    Column("RUN", 12, 3),
    Column("ACTION", 8, 3),
    Column("PARENT", 6, 2),
    Column("PHASE", 12, 1),
    Column("TRY", 3, right=True),
    Column("REC", 3),
    Column("DETAIL", 0, 9),
)
_ACTION_COLUMNS = (
    Column("RUN", 12, 3),
    Column("ACTION", 8, 3),
    Column("PARENT", 6, 2),
    Column("PHASE", 12, 1),
    Column("TRY", 3, right=True),
    Column("REC", 3),
    Column("AGE", 6, right=True),
    Column("DETAIL", 0, 9),
)
_TREE_COLUMNS = (
    Column("ACTION", 12),
    Column("PHASE", 12),
    Column("TRY", 3, right=True),
    Column("REC", 3),
    Column("TIME", 6, right=True),
    Column("DETAIL", 0),
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


class Terminal:
    """Lines for ``file``, as wide as its terminal is at that moment.

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
        """The bytes of lines; what is too wide is cut, or with ``wrap`` left to the terminal."""
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


class Table(ABC):
    """Formats rows; the header comes first, and again when the width has changed."""

    def __init__(self, file: IO[str], columns: Sequence[Column]) -> None:
        self._terminal = Terminal(file)
        self._columns = columns
        self._width = 0
        self._widths: list[int] = []

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The bytes of whole lines."""
        lines = self._header()
        lines += map(self._format_row, rows)
        return self._terminal.render(lines)

    @abstractmethod
    def cells(self, row: ActionRow) -> Sequence[Cell]:
        """One for each column."""

    def widths(self, width: int) -> list[int]:
        """How to share a line's width."""
        return _shared(self._columns, width)

    def _header(self) -> list[Line]:
        """The header where it is due."""
        width = max(self._terminal.width, _LEAST_WIDTH)
        if width == self._width:
            return []
        self._width = width
        self._widths = self.widths(width)
        return [self._line([Cell(column.title, "bold") for column in self._columns])]

    def _format_row(self, row: Row) -> Line:
        if isinstance(row, SyncedRow):
            return [Cell(f"-- synced at revision {row.revision} --", "dim")]
        if isinstance(row, UndecodableRow):
            text = f"{row.revision:>8}  UNDECODABLE {row.key}: {row.reason}"
            return [Cell(cut_text(printable(text), self._width), "red")]
        return self._line(self.cells(row))

    def _line(self, cells: Sequence[Cell]) -> Line:
        line = []
        last = len(cells) - 1
        for index, (cell, column, width) in enumerate(
            zip(cells, self._columns, self._widths, strict=True)
        ):
            shown = cut_text(printable(cell.text), width)
            padding = " " * (width - _cells(shown))
            if column.right:
                shown = padding + shown
            elif index != last:
                shown += padding
            line.append(Cell(shown, cell.style))
            if index != last:
                line.append(Cell(_GAP))
        return line


class ChangeTable(Table):
    """The table of ``watch``.

    Args:
        file: Where it goes.
        runs_of_projects: Whether runs are shown with their project and domain.
    """

    def __init__(self, file: IO[str], *, runs_of_projects: bool = False) -> None:
        super().__init__(file, _CHANGE_COLUMNS)
        self._runs_of_projects = runs_of_projects

    def cells(self, row: ActionRow) -> Sequence[Cell]:
        """One for each column."""
        return (
            Cell(str(row.revision), "dim"),
            Cell(row.type, _CHANGES.get(row.type, "")),
            _run(row, of_project=self._runs_of_projects),
            Cell(row.action or "", "bold"),
            Cell(row.parent or "", "dim"),
            phase_cell(row),
            Cell("" if row.attempts is None else str(row.attempts)),
            Cell("yes" if row.recorded else "", "green"),
            _detail(row),
        )


class ActionTable(Table):
    """The table of ``list``; ages are those at ``now``.

    Args:
        file: Where it goes.
        now: By default the time of its making.
        runs_of_projects: Whether runs are shown with their project and domain.
    """

    def __init__(
        self, file: IO[str], now: datetime | None = None, *, runs_of_projects: bool = False
    ) -> None:
        super().__init__(file, _ACTION_COLUMNS)
        self._runs_of_projects = runs_of_projects
        self._now = now or datetime.now(UTC)

    def cells(self, row: ActionRow) -> Sequence[Cell]:
        """One for each column."""
        return (
            _run(row, of_project=self._runs_of_projects),
            Cell(row.action or "", "bold"),
            Cell(row.parent or "", "dim"),
            phase_cell(row),
            Cell("" if row.attempts is None else str(row.attempts)),
            Cell("yes" if row.recorded else "", "green"),
            Cell(age(row.created_at, self._now), "dim"),
            _detail(row),
        )


class TreeTable(Table):
    """The table of ``tree``: an action's place in the tree is its name's indentation.

    Args:
        file: Where it goes.
        title: What stands above it.
        places: Its lines.
        now: When what is not over is looked at.
    """

    def __init__(
        self, file: IO[str], title: str, places: Sequence[Place], now: datetime | None = None
    ) -> None:
        super().__init__(file, _TREE_COLUMNS)
        self._title = title
        self._places = places
        self._labels = {place.row.key: place.label for place in places if place.row is not None}
        self._widest = max((cell_len(place.label) for place in places), default=0)
        self._now = now or datetime.now(UTC)

    def format_tree(self) -> bytes:
        """The bytes of all of it."""
        lines: list[Line] = [[Cell(printable(self._title), "bold")], *self._header()]
        for place in self._places:
            if place.row is None:
                lines.append([Cell(_cut_left(printable(place.label), self._width), "red")])
            else:
                lines.append(self._format_row(place.row))
        return self._terminal.render(lines)

    def widths(self, width: int) -> list[int]:
        """The names get what they need, as long as a third is left to the rest."""
        widths = _shared(self._columns, width)
        room = max(widths[0], width * 2 // 3 - sum(widths[1:-1]))
        wanted = min(max(widths[0], self._widest), room)
        widths[-1] = max(0, widths[-1] + widths[0] - wanted)
        widths[0] = wanted
        return widths

    def cells(self, row: ActionRow) -> Sequence[Cell]:
        """One for each column."""
        return (
            Cell(_cut_left(printable(self._labels[row.key]), self._widths[0]), "bold"),
            phase_cell(row),
            Cell("" if row.attempts is None else str(row.attempts)),
            Cell("yes" if row.recorded else "", "green"),
            Cell(age(row.created_at, self._now, row.ended_at)),
            Cell(row.short_name, "dim") if row.error is None else _detail(row),
        )


def sane_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, without a size of the terminal that is none: rich would fail over it."""
    return {
        name: text
        for name, text in variables.items()
        if name not in ("COLUMNS", "LINES") or re.fullmatch("[1-9][0-9]{0,3}", text)
    }


def phase_cell(row: ActionRow) -> Cell:
    """The phase in its colour."""
    phase = row.phase or "unknown"
    return Cell(phase, _PHASES.get(phase, "blue"))


def age(since: str, now: datetime, until: str = "") -> str:
    """The time from one stored time to another, else to now; empty where one is unreadable."""
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
    """The text, its end left out where it has more cells than ``width``."""
    if _cells(text) <= width:
        return text
    return set_cell_size(text, width - 1) + "…" if width > 0 else ""


def _cut_left(text: str, width: int) -> str:
    """The text, its beginning left out where it has more cells than ``width``."""
    if _cells(text) <= width:
        return text
    start = max(0, len(text) - width + 1)
    while _cells(text[start:]) >= width > 0:
        start += 1
    return "…" + text[start:]


def _cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _shared(columns: Sequence[Column], width: int) -> list[int]:
    """Share what the least widths leave over; what is not shared out is the last column's."""
    gaps = len(_GAP) * (len(columns) - 1)
    spare = max(0, width - sum(column.width for column in columns) - gaps)
    shares = sum(column.share for column in columns) or 1
    # Names have an end: more width than this is better used for the detail.
    widths = [
        min(column.width + spare * column.share // shares, 3 * column.width) for column in columns
    ]
    widths[-1] = max(0, width - sum(widths[:-1]) - gaps)
    return widths


def _run(row: ActionRow, *, of_project: bool) -> Cell:
    """The run; with project and domain where several may have one of its name."""
    named = (row.project, row.domain, row.run) if of_project and row.run else (row.run,)
    return Cell("/".join(filter(None, named)) or row.name)


def _detail(row: ActionRow) -> Cell:
    if row.error is not None:
        return Cell(f"{row.error.code}: {row.error.message}".strip(": "), "red")
    notes = [
        note
        for note, holds in (
            ("not seen, concluded", row.synthesised),
            ("from memory", row.partial),
        )
        if holds
    ]
    place = "/".join(filter(None, (row.namespace, row.project, row.domain)))
    text = filter(None, (row.short_name, f"({', '.join(notes)})" if notes else "", place))
    return Cell(" ".join(text), "dim")
