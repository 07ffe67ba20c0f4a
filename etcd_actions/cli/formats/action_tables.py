"""The tables of actions: of ``list``, ``get``, ``watch`` and ``tree``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO

from rich.cells import cell_len

from etcd_actions._internal.quoting import printable
from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.formats.action_tree import TreeLine
from etcd_actions.cli.formats.rows import ActionRow, Row, UndecodableRow
from etcd_actions.cli.formats.table import Cell, Column, Line, Table, age, cut_left

_PHASES = {
    "SUCCEEDED": "green",
    "RECOVERED": "green",
    "FAILED": "bold red",
    "TIMED_OUT": "bold red",
    "ABORTED": "magenta",
    "RUNNING": "cyan",
    "PAUSED": "yellow",
    "QUEUED": "dim",
}
_CHANGES = {"ADDED": "green", "MODIFIED": "", "DELETED": "red"}
# The least width of a name with its guides, the lines that show its depth.
_LEAST_LABEL_WIDTH = 12


class RowTable(Table[Row]):
    """A table of rows, of which some are not actions."""

    def _special(self, row: Row) -> Line | None:
        if isinstance(row, SyncedRow):
            return [Cell(f"-- synced at revision {row.revision} --", "dim")]
        if isinstance(row, UndecodableRow):
            text = f"{row.revision:>8}  UNDECODABLE {row.key}: {row.reason}"
            return [Cell(printable(text), "red")]
        return None


class ChangeTable(RowTable):
    """The table of ``watch``.

    Args:
        file: The output.
        qualify_runs: Whether the name of a run has its project and domain before it.
        wide: Whether to show the columns of ``-o wide``, too.
    """

    def __init__(self, file: IO[str], *, qualify_runs: bool = False, wide: bool = False) -> None:
        columns: tuple[Column[ActionRow], ...] = (
            Column("REVISION", lambda row: Cell(_number(row.revision), "dim"), 8, right=True),
            Column("CHANGE", lambda row: Cell(row.type, _CHANGES.get(row.type, "")), 3),
            *_action_columns(qualify_runs),
            *_ages(datetime.now(UTC), only_wide=True),
            _DETAIL,
        )
        super().__init__(file, columns, wide=wide, follow=True)  # type: ignore[arg-type]


class ActionTable(RowTable):
    """The table of ``list`` and ``get``.

    Args:
        file: The output.
        now: The time at which ages end; None for the present.
        qualify_runs: See :class:`ChangeTable`.
        wide: See :class:`ChangeTable`.
        follow: Whether rows come one by one, see :class:`Table`.
    """

    def __init__(
        self,
        file: IO[str],
        now: datetime | None = None,
        *,
        qualify_runs: bool = False,
        wide: bool = False,
        follow: bool = False,
    ) -> None:
        columns: tuple[Column[ActionRow], ...] = (
            *_action_columns(qualify_runs),
            *_ages(now),
            _DETAIL,
        )
        super().__init__(file, columns, wide=wide, follow=follow)  # type: ignore[arg-type]


class TreeTable(Table[ActionRow]):
    """The table of ``tree``: the indentation of a name is the depth of the action.

    Args:
        file: The output.
        title: The line above it.
        lines: Its lines.
        now: The time for actions that have not ended.
        wide: Whether to show the columns of ``-o wide``, too.
    """

    def __init__(
        self,
        file: IO[str],
        title: str,
        lines: Sequence[TreeLine],
        now: datetime | None = None,
        *,
        wide: bool = False,
    ) -> None:
        then = now or datetime.now(UTC)
        columns: tuple[Column[ActionRow], ...] = (
            Column("ACTION", self._label),
            Column("PHASE", phase_cell),
            *_TRY_AND_RECORDED,
            Column(
                "TIME", lambda row: Cell(age(row.created_at, then, row.ended_at)), 4, right=True
            ),
            *_ages(then, only_wide=True),
            Column("DETAIL", _tree_detail, 9, cuts=True),
        )
        super().__init__(file, columns, wide=wide)
        self._title = title
        self._tree = lines
        self._labels = {line.row.key or line.row.action: line for line in lines if line.row}

    def format_tree(self) -> bytes:
        """The bytes of all of it."""
        rows = [line.row for line in self._tree if line.row is not None]
        header, *made = iter(self.lines(rows))
        lines: list[Line] = [[Cell(printable(self._title), "bold")], header]
        actions = iter(made)
        for line in self._tree:
            if line.row is None:
                lines.append([Cell(cut_left(printable(line.label), self._terminal.width), "red")])
            else:
                lines.append(next(actions))
        return self._terminal.render(lines, wrap=True)

    def _label(self, row: ActionRow) -> Cell:
        """The name after the lines that show its depth, of which the first ones may be cut."""
        label = printable(self._labels[row.key or row.action].label)
        name = cell_len(printable(row.action or ""))
        most = max(_LEAST_LABEL_WIDTH, self._terminal.width * 2 // 3, name + 1)
        return Cell(cut_left(label, most), "bold")


def phase_cell(row: ActionRow) -> Cell:
    """The phase in its colour."""
    return phase_text(row.phase or "unknown")


def phase_text(phase: str) -> Cell:
    """The name of a phase in its colour."""
    return Cell(phase, _PHASES.get(phase, "blue"))


def _number(value: int) -> str:
    return str(value) if value else ""


_TRY_AND_RECORDED: tuple[Column[ActionRow], ...] = (
    Column(
        "TRY", lambda row: Cell("" if row.attempts is None else str(row.attempts)), 7, right=True
    ),
    Column("REC", lambda row: Cell("yes" if row.recorded else "", "green"), 8, wide=True),
)


def _action_columns(qualify_runs: bool) -> tuple[Column[ActionRow], ...]:
    def run(row: ActionRow) -> Cell:
        named = (row.project, row.domain, row.run) if qualify_runs and row.run else (row.run,)
        return Cell("/".join(filter(None, named)) or row.name)

    return (
        Column("RUN", run),
        Column("ACTION", lambda row: Cell(row.action or "", "bold")),
        Column("PARENT", lambda row: Cell(row.parent or "", "dim"), 5),
        Column("PHASE", phase_cell),
        *_TRY_AND_RECORDED,
        Column("PROJECT", lambda row: Cell(row.project), 6, wide=True),
        Column("DOMAIN", lambda row: Cell(row.domain), 6, wide=True),
    )


def _ages(now: datetime | None, *, only_wide: bool = False) -> tuple[Column[ActionRow], ...]:
    """The columns of times: the age, and with ``-o wide`` when the action was created and ended."""

    def shown(row: ActionRow) -> Cell:
        return Cell(age(row.created_at, now or datetime.now(UTC)), "dim")

    columns: tuple[Column[ActionRow], ...] = (
        Column("CREATED", lambda row: Cell(row.created_at, "dim"), 6, wide=True),
        Column("ENDED", lambda row: Cell(row.ended_at, "dim"), 6, wide=True),
    )
    return columns if only_wide else (Column("AGE", shown, 4, right=True), *columns)


def _tree_detail(row: ActionRow) -> Cell:
    return Cell(row.short_name, "dim") if row.error is None else _detail(row)


def _detail(row: ActionRow) -> Cell:
    if row.error is not None:
        return Cell(f"{row.error.code}: {row.error.message}".strip(": "), "red")
    notes = ["not seen, concluded"] if row.synthesised else []
    notes += ["from memory"] if row.partial else []
    text = filter(None, (row.short_name, f"({', '.join(notes)})" if notes else ""))
    return Cell(" ".join(text), "dim")


_DETAIL: Column[ActionRow] = Column("DETAIL", _detail, 9, cuts=True)
