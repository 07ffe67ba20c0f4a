import io
import re
from datetime import UTC, datetime

import msgspec
import pytest
from rich.cells import cell_len

from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.formats.action_tables import ActionTable, ChangeTable, RowTable
from etcd_actions.cli.formats.rows import ActionRow, UndecodableRow
from etcd_actions.cli.formats.table import age
from etcd_actions.model import ErrorState
from tests.support.table import table

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


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


def lines(table: RowTable, *rows: ActionRow | SyncedRow | UndecodableRow) -> list[str]:
    formatted = table.format(rows).decode()
    assert formatted.endswith("\n")
    return formatted.splitlines()


def test_header_once_then_rows_below_it() -> None:
    table = ChangeTable(io.StringIO())
    header, row = lines(table, ROW)
    for title, cell in {"RUN": "r1", "PHASE": "SUCCEEDED", "PARENT": "a0", "ACTION": "a1"}.items():
        assert header.index(title) == row.index(cell)
    assert len(lines(table, ROW, ROW)) == 2


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 300])
def test_columns_give_way_in_their_order_and_names_never(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    failed = msgspec.structs.replace(ROW, error=ErrorState("E", "USER", "line\nand \x1b[2J" * 90))
    header, row = lines(ChangeTable(io.StringIO()), failed)
    assert [column in header for column in ("RUN", "ACTION", "PHASE")] == [True] * 3
    assert [name in row for name in ("r1", "a1", "SUCCEEDED")] == [True] * 3
    if width >= 40:
        assert cell_len(header) <= width
        assert cell_len(row) <= width
    order = ["DETAIL", "REVISION", "TRY", "PARENT", "CHANGE"]
    given_up = [column not in header for column in order]
    assert given_up == sorted(given_up, reverse=True)


def test_a_long_name_is_complete_at_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    long = msgspec.structs.replace(ROW, run="名" * 90, action="x" * 300)
    for width in ("20", "80", "0", "nonsense"):
        monkeypatch.setenv("COLUMNS", width)
        for file in (io.StringIO(), Tty()):
            made = re.sub(r"\x1b\[[\d;]*m", "", lines(ChangeTable(file), long)[-1])
            assert "名" * 90 in made
            assert "x" * 300 in made


def test_a_pipe_gets_all_columns_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = msgspec.structs.replace(ROW, error=ErrorState("E", "USER", "long " * 90))
    for columns in ("0", ""):
        monkeypatch.setenv("COLUMNS", columns)
        _, row = lines(ChangeTable(io.StringIO()), failed)
        assert ("long " * 90).strip() in row


def test_wide_has_more_columns_and_gives_up_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    row = msgspec.structs.replace(ROW, created_at="2026-01-01T00:00:00Z", project="p", domain="d")
    header, line = lines(ActionTable(io.StringIO(), wide=True), row)
    assert header.split() == [
        *("RUN", "ACTION", "PARENT", "PHASE", "TRY", "REC", "PROJECT", "DOMAIN", "AGE"),
        *("CREATED", "ENDED", "DETAIL"),
    ]
    assert "2026-01-01T00:00:00Z" in line


def test_the_header_stays_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "10")
    table = ChangeTable(Tty())
    followed = [lines(table, ROW) for _ in range(30)]
    screens = [line for each in followed for line in each]
    for at in range(len(screens) - 9):
        assert any("REVISION" in line for line in screens[at : at + 9])
    listed = lines(ActionTable(io.StringIO()), *[ROW] * 30)
    assert sum("PHASE" in line for line in listed) == 1


def test_new_width_brings_a_new_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    table = ChangeTable(io.StringIO())
    lines(table, ROW)
    table._terminal._console.width = 70
    assert len(lines(table, ROW)) == 2


def test_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert b"\x1b[" not in ChangeTable(io.StringIO()).format([ROW])
    assert b"\x1b[32mSUCCEEDED" in ChangeTable(Tty()).format([ROW])
    monkeypatch.setenv("NO_COLOR", "1")
    assert b"\x1b[32m" not in ChangeTable(Tty()).format([ROW])


def test_a_list_is_as_plain_as_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    row = msgspec.structs.replace(ROW, type="ACTION", created_at="2026-01-01T00:00:00Z")
    now = datetime(2026, 1, 1, 3, 4, tzinfo=UTC)
    plain = ActionTable(io.StringIO(), now).format([row]).decode()
    styled = ActionTable(Tty(), now).format([row]).decode()
    assert "\x1b" not in plain
    assert "\x1b[32mSUCCEEDED" in styled
    assert re.sub(r"\x1b\[[\d;]*m", "", styled) == plain
    assert plain.splitlines()[1].split() == [
        "r1",
        "a1",
        "a0",
        "SUCCEEDED",
        "2",
        "3h4m",
    ]
    monkeypatch.setenv("NO_COLOR", "1")
    assert ActionTable(Tty(), now).format([row]).decode() == plain
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in ActionTable(Tty(), now).format([row]).decode()


@table(
    ("since", "until", "shown"),
    [
        ("", "", ""),
        ("not a time", "", ""),
        ("2026-01-01T00:00:00Z", "not a time", ""),
        ("2026-01-01T00:00:00Z", "", "1m1s"),
        ("2026-01-01T00:00:00.5+00:00", "2026-01-01T00:00:59Z", "58s"),
        # A clock that is ahead of ours.
        ("2026-01-01T09:00:00Z", "", "0s"),
        ("2025-12-30T22:00:00Z", "", "1d2h"),
        ("2025-01-01T00:00:00Z", "", "365d"),
    ],
)
def test_age(since: str, until: str, shown: str) -> None:
    assert age(since, datetime(2026, 1, 1, 0, 1, 1, tzinfo=UTC), until) == shown


def test_text_from_etcd_cannot_drive_the_terminal() -> None:
    evil = msgspec.structs.replace(ROW, run="\x1b[2J[red]x", short_name="a\rb")
    line = lines(ChangeTable(io.StringIO()), evil)[1]
    assert line.isprintable()
    assert r"\x1b[2J[red]x" in line
    assert r"a\rb" in line


def test_unknown_end() -> None:
    row = msgspec.structs.replace(
        ROW, run=None, action=None, phase=None, attempts=None, recorded=None, partial=True
    )
    assert "unknown" in lines(ChangeTable(io.StringIO()), row)[1]


def test_runs_of_one_name_in_two_projects_can_be_told_apart() -> None:
    """Also where an error has the place of the detail."""
    failed = msgspec.structs.replace(ROW, project="p1", domain="d", error=ErrorState("No", "no"))
    other = msgspec.structs.replace(failed, project="p2")
    for each in (
        ChangeTable(io.StringIO(), qualify_runs=True),
        ActionTable(io.StringIO(), qualify_runs=True),
    ):
        _, one, two = each.format([failed, other]).decode().splitlines()
        assert "p1/d/r1" in one
        assert "p2/d/r1" in two
