"""The table of ``shards list``."""

from __future__ import annotations

from typing import IO

from etcd_actions.cli.formats.shard_rows import ShardRow
from etcd_actions.cli.formats.table import Cell, Column, Table


class ShardListTable(Table[ShardRow]):
    """Formats shards, one a line."""

    def __init__(self, file: IO[str], *, wide: bool = False) -> None:
        columns: tuple[Column[ShardRow], ...] = (
            Column("SCOPE", lambda row: Cell(row.scope), 5, wide=True),
            Column("SHARD", lambda row: Cell(row.id, "bold")),
            Column("FROM", lambda row: Cell(row.start), 3),
            Column("TO", lambda row: Cell(row.end), 4),
            Column("OWNER", lambda row: Cell(row.owner)),
            Column("TARGET", lambda row: Cell(row.target), 6, wide=True),
            Column("READY", lambda row: Cell(", ".join(row.ready)), 7, wide=True),
            Column("ACTIONS", lambda row: Cell(str(row.actions)), 2, right=True),
            Column("CHECKPOINT", lambda row: Cell(str(row.checkpoint)), 8, right=True, wide=True),
            Column("BEHIND", lambda row: Cell(str(row.behind)), 1, right=True),
            Column("PROBLEM", lambda row: Cell(row.problem, "red"), 9, cuts=True),
        )
        super().__init__(file, columns, wide=wide)
