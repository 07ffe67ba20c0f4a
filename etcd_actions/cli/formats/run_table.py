"""The table of runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import IO

from etcd_actions.cli.formats.action_tables import phase_text
from etcd_actions.cli.formats.message_rows import RunRow
from etcd_actions.cli.formats.table import Cell, Column, Table, age


class RunTable(Table[RunRow]):
    """The table of ``runs``, with the ages at ``now``."""

    def __init__(
        self,
        file: IO[str],
        now: datetime | None = None,
        *,
        wide: bool = False,
        follow: bool = False,
    ) -> None:
        def moment() -> datetime:
            return now or datetime.now(UTC)

        columns: tuple[Column[RunRow], ...] = (
            Column("PROJECT", lambda row: Cell(row.project), 5),
            Column("DOMAIN", lambda row: Cell(row.domain), 6),
            Column("RUN", lambda row: Cell(row.run, "bold")),
            Column("PHASE", lambda row: phase_text(row.phase)),
            Column("AGE", lambda row: Cell(age(row.created_at, moment()), "dim"), 3, right=True),
            Column(
                "DURATION",
                lambda row: Cell(age(row.created_at, moment(), row.ended_at)),
                4,
                right=True,
            ),
            Column("ACTIONS", _actions, 2, right=True),
            Column("STARTED", lambda row: Cell(row.created_at, "dim"), 7, wide=True),
            Column("ENDED", lambda row: Cell(row.ended_at, "dim"), 7, wide=True),
            Column("BY", lambda row: Cell(row.created_by), 7, wide=True),
            Column("VERSION", lambda row: Cell(row.version, "dim"), 7, wide=True),
            Column("LABELS", _labels, 8, wide=True),
            Column("TASK", lambda row: Cell(row.task, "dim"), 9, cuts=True),
        )
        super().__init__(file, columns, wide=wide, follow=follow)


def _actions(row: RunRow) -> Cell:
    return Cell("" if row.actions is None else f"{row.done}/{row.actions}")


def _labels(row: RunRow) -> Cell:
    return Cell(",".join(f"{key}={value}" for key, value in sorted(row.labels.items())))
