import io

import msgspec
import pytest
from rich.cells import cell_len

from etcd_actions.cli.rows import ActionRow, SyncedRow, UndecodableRow
from etcd_actions.cli.table import Table
from etcd_actions.model import ErrorState

ROW = ActionRow(
    type="MODIFIED",
    key="/p/flyte/r1-a1",
    namespace="flyte",
    name="r1-a1",
    revision=7,
    run="r1",
    action="a1",
    parent="a0",
    phase="SUCCEEDED",
    attempts=2,
    terminal=True,
    recorded=True,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


def lines(table: Table, *rows: ActionRow | SyncedRow | UndecodableRow) -> list[str]:
    formatted = table.format(rows).decode()
    assert formatted.endswith("\n")
    return formatted.splitlines()


def test_header_once_then_rows_below_it() -> None:
    table = Table(io.StringIO())
    header, row = lines(table, ROW)
    for title, cell in {"RUN": "r1", "PHASE": "SUCCEEDED", "PARENT": "a0", "REC": "yes"}.items():
        assert header.index(title) == row.index(cell)
    assert len(lines(table, ROW, ROW)) == 2


@pytest.mark.parametrize("width", [40, 80, 100, 300])
def test_no_line_is_wider_than_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    long = msgspec.structs.replace(
        ROW,
        run="名" * 90,
        action="x" * 300,
        error=ErrorState("E", "USER", "line\nand \x1b[2J" * 90),
    )
    made = lines(Table(io.StringIO()), long, UndecodableRow("k" * 400, 3, "bad\nbad"), SyncedRow(9))
    assert len(made) == 4
    assert max(map(cell_len, made)) <= width


def test_new_width_brings_a_new_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    table = Table(io.StringIO())
    lines(table, ROW)
    table._console.width = 70
    assert len(lines(table, ROW)) == 2


def test_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert b"\x1b[" not in Table(io.StringIO()).format([ROW])
    assert b"\x1b[32mSUCCEEDED" in Table(Terminal()).format([ROW])
    monkeypatch.setenv("NO_COLOR", "1")
    assert b"\x1b[32m" not in Table(Terminal()).format([ROW])


def test_text_from_etcd_cannot_drive_the_terminal() -> None:
    evil = msgspec.structs.replace(ROW, run="\x1b[2J[red]x", short_name="a\rb")
    assert lines(Table(io.StringIO()), evil)[1].count("?") == 2


def test_unknown_end() -> None:
    row = msgspec.structs.replace(
        ROW, run=None, action=None, phase=None, attempts=None, recorded=None, partial=True
    )
    assert "unknown" in lines(Table(io.StringIO()), row)[1]
