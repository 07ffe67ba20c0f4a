"""Tables for people: lines of columns, so that rows can be added as they come.

A name is never cut. A table that is too wide for its terminal omits other columns, in the order of
their rank; the terminal wraps a name that is wider than itself. Output that is not a terminal gets
all columns in full.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import IO, Generic, NamedTuple, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from etcd_actions._internal.quoting import printable
from etcd_actions.errors import DecodeError
from etcd_actions.model.taskaction import parse_time

_UNLIMITED = 1_000_000
_GAP = "  "
# A column that may be cut is omitted if less than this width is left for it.
_LEAST_CUT_WIDTH = 8
# The header is repeated before it leaves the screen.
_LINES_BELOW_HEADER = 2

RowT = TypeVar("RowT")


class Cell(NamedTuple):
    """A text of any length, and a style of rich's."""

    text: str
    style: str = ""


Line = list[Cell]
"""A line of output: its cells are next to each other, without gaps."""


class Column(NamedTuple, Generic[RowT]):
    """A column.

    Attributes:
        title: Its header.
        cell: Returns its cell of a row.
        rank: The order in which columns are omitted from a table that is too wide: the greatest
            rank first. A column of rank 0 is never omitted.
        right: Whether its texts are right-aligned.
        cuts: Whether its texts may be cut before the column is omitted.
        wide: Whether only ``-o wide`` shows it.
    """

    title: str
    cell: Callable[[RowT], Cell]
    rank: int = 0
    right: bool = False
    cuts: bool = False
    wide: bool = False


class Terminal:
    """Formats lines for a file, as wide as its terminal is at that moment.

    Styles are used on a terminal only, and not with ``NO_COLOR``.
    """

    def __init__(self, file: IO[str]) -> None:
        environment = sane_environment(os.environ)
        self.is_terminal = file.isatty()
        unlimited = not self.is_terminal and "COLUMNS" not in environment
        self._console = Console(
            file=file,
            width=_UNLIMITED if unlimited else None,
            highlight=False,
            markup=False,
            _environ=environment,
        )
        self._styled = self._console.color_system is not None and not self._console.no_color

    @property
    def width(self) -> int:
        """Number of cells of a line; without a terminal and COLUMNS a very large one."""
        return self._console.width

    @property
    def height(self) -> int:
        """Number of lines of the screen."""
        return shutil.get_terminal_size().lines

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


class Table(Generic[RowT]):
    """Formats rows below a header, which is repeated when the shown columns change.

    Args:
        file: The output.
        columns: The columns; the last one is not padded.
        wide: Whether to show the columns of ``-o wide``, too.
        follow: Whether rows come one by one: on a terminal the header is repeated before it
            leaves the screen.
    """

    def __init__(
        self,
        file: IO[str],
        columns: Sequence[Column[RowT]],
        *,
        wide: bool = False,
        follow: bool = False,
    ) -> None:
        self._terminal = Terminal(file)
        self._columns = [column for column in columns if wide or not column.wide]
        self._needed = [len(column.title) for column in self._columns]
        self._wide = wide
        self._shown: list[tuple[int, int]] = []
        self._width = 0
        self._repeats = follow and self._terminal.is_terminal
        self._below_header = 0

    def format(self, rows: Sequence[RowT], /) -> bytes:
        """The bytes of complete lines."""
        return self._terminal.render(self.lines(rows), wrap=True)

    def lines(self, rows: Sequence[RowT]) -> list[Line]:
        """Rows as lines, below the header if it is due."""
        # For each row either its line without columns, or its cells.
        made: list[tuple[Line | None, list[Cell]]] = []
        for row in rows:
            special = self._special(row)
            made.append((special, [] if special is not None else self._cells(row)))
        for index in range(len(self._columns)):
            widths = (_width(cells[index].text) for _, cells in made if cells)
            self._needed[index] = max(self._needed[index], max(widths, default=0))
        shown = self._layout()
        lines: list[Line] = []
        for special, cells in made:
            if self._is_header_due(shown):
                lines.append(self._header(shown))
            self._below_header += 1
            lines.append(self._line(cells, shown) if special is None else special)
        if not self._shown:
            lines.append(self._header(shown))
        return lines

    def _special(self, row: RowT) -> Line | None:
        """The line of a row that is not divided into columns; None for all others."""
        return None

    def _cells(self, row: RowT) -> list[Cell]:
        return [
            Cell(printable(text), style)
            for text, style in (column.cell(row) for column in self._columns)
        ]

    def _layout(self) -> list[tuple[int, int]]:
        """The indexes of the shown columns, each with its width."""
        widths = dict(enumerate(self._needed))
        by_rank = sorted(
            (index for index, column in enumerate(self._columns) if column.rank),
            key=lambda index: -self._columns[index].rank,
        )
        for index in () if self._wide else by_rank:
            excess = sum(widths.values()) + len(_GAP) * (len(widths) - 1) - self._terminal.width
            if excess <= 0:
                break
            rest = widths[index] - excess
            if self._columns[index].cuts and rest >= _LEAST_CUT_WIDTH:
                widths[index] = rest
            else:
                del widths[index]
        return list(widths.items())

    def _is_header_due(self, shown: Sequence[tuple[int, int]]) -> bool:
        if [index for index, _ in shown] != [index for index, _ in self._shown]:
            return True
        scrolled = self._below_header + _LINES_BELOW_HEADER >= self._terminal.height
        return self._terminal.width != self._width or (self._repeats and scrolled)

    def _header(self, shown: list[tuple[int, int]]) -> Line:
        self._shown, self._width, self._below_header = shown, self._terminal.width, 0
        return self._line([Cell(column.title, "bold") for column in self._columns], shown)

    def _line(self, cells: Sequence[Cell], shown: Sequence[tuple[int, int]]) -> Line:
        """The shown cells of a row, padded to their columns."""
        line: Line = []
        for index, width in shown:
            column, cell = self._columns[index], cells[index]
            text = cut_text(cell.text, width) if column.cuts else cell.text
            padding = " " * (width - _width(text))
            if column.right:
                text = padding + text
            elif index != shown[-1][0]:
                text += padding
            line += [Cell(text, cell.style), Cell(_GAP)]
        while line and not line[-1].text.strip():
            line.pop()
        return line


def sane_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables without COLUMNS and LINES that are no sizes, on which rich would fail."""
    return {
        name: text
        for name, text in variables.items()
        if name not in ("COLUMNS", "LINES") or re.fullmatch("[1-9][0-9]{0,3}", text)
    }


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Pad the cells of lines to columns; a line can have fewer cells than others."""
    widths = [max(map(_width, column)) for column in zip_longest(*lines, fillvalue="")]
    return [
        _GAP.join(
            text + " " * (width - _width(text)) for text, width in zip(line, widths, strict=False)
        ).rstrip()
        for line in lines
    ]


def age(since: str, now: datetime, until: str = "") -> str:
    """The time from ``since`` to ``until``, or to now if that is empty, such as ``3m5s``.

    It is empty if ``since`` is missing, or if one of them cannot be parsed.
    """
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
    if _width(text) <= width:
        return text
    return set_cell_size(text, width - 1) + "…" if width > 0 else ""


def cut_left(text: str, width: int) -> str:
    """The text, without its beginning if it has more cells than ``width``."""
    if _width(text) <= width:
        return text
    start = max(0, len(text) - width + 1)
    while _width(text[start:]) >= width > 0:
        start += 1
    return "…" + text[start:]


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)
