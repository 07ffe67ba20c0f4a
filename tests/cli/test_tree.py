"""Trees of actions, sound and broken."""

import json
from datetime import UTC, datetime
from io import StringIO

import msgspec
import pytest
from rich.cells import cell_len

from etcd_actions.cli.commands.tree import show_tree
from etcd_actions.cli.formats.action_tables import TreeTable
from etcd_actions.cli.formats.action_tree import build_forest
from etcd_actions.cli.formats.rows import ActionRow
from etcd_actions.errors import ConfigError, NotFound
from etcd_actions.etcd.api import Etcd
from tests.cli.here import here, taskaction

ROW = ActionRow(
    type="ACTION",
    key="",
    namespace="flyte",
    name="",
    revision=7,
    run="r",
    action="",
    parent=None,
    phase="RUNNING",
    attempts=1,
    terminal=False,
    recorded=False,
    created_at="2026-01-01T00:00:00Z",
)


def rows(text: str) -> list[ActionRow]:
    """``a1<a0`` is action a1 with parent a0."""
    made = []
    for word in text.split():
        name, _, parent = word.partition("<")
        made.append(
            msgspec.structs.replace(ROW, key=f"/{name}", action=name, parent=parent or None)
        )
    return made


def drawn(text: str, run: str = "r") -> list[str]:
    return [line.label for line in build_forest(rows(text), run)]


def test_depth_first() -> None:
    assert drawn("c<a0 b<c a0 x<a0 d<c e<b") == [
        "a0",
        "├─ c",
        "│  ├─ b",
        "│  │  └─ e",
        "│  └─ d",
        "└─ x",
    ]


def test_siblings_of_one_second_are_in_the_order_of_the_numbers_in_their_names() -> None:
    assert drawn("a0 a10<a0 a2<a0 a-1<a0 a02<a0 b<a0 x10y2<lost x9y10<lost x9y9<lost") == [
        "a0",
        "├─ a02",
        "├─ a2",
        "├─ a10",
        "├─ a-1",
        "└─ b",
        "lost (missing)",
        "├─ x9y9",
        "├─ x9y10",
        "└─ x10y2",
    ]


def test_siblings_are_in_the_order_of_their_creation() -> None:
    created = {
        "c": "2026-01-01T00:00:01Z",
        "a": "2026-01-01T01:00:01.001+01:00",
        "b": "2026-01-01T00:00:01.002Z",
        "y": "never",
        "z": "",
    }
    made = [
        msgspec.structs.replace(row, created_at=created.get(row.action or "", row.created_at))
        for row in rows("a0 z<a0 y<a0 a<a0 b<a0 c<a0")
    ]
    actions = [line.row.action for line in build_forest(made, "r") if line.row]
    assert actions == ["a0", "c", "a", "b", "y", "z"]


def test_depths() -> None:
    lines = build_forest(rows("a0 a<a0 b<a"), "r")
    assert [line.row.depth for line in lines if line.row] == [0, 1, 2]
    assert not any(line.row.missing_parent or line.row.cycle for line in lines if line.row)


@pytest.mark.parametrize("text", ["r a<r", "r a<a0", "a0 a<r"])
def test_the_root_may_be_called_like_its_run(text: str) -> None:
    assert drawn(text) == [text.split(maxsplit=1)[0], "└─ a"]


def test_the_root_comes_before_others_without_a_parent() -> None:
    assert drawn("x a0 y<x z<a0") == ["a0", "└─ z", "x", "└─ y"]


def test_orphans() -> None:
    lines = build_forest(rows("a0 c<lost b<c e<lost d<gone"), "r")
    assert [line.label for line in lines] == [
        "a0",
        "gone (missing)",
        "└─ d",
        "lost (missing)",
        "├─ c",
        "│  └─ b",
        "└─ e",
    ]
    orphans = {line.row.action: line.row.missing_parent for line in lines if line.row}
    assert orphans == {"a0": False, "d": True, "c": True, "b": False, "e": True}
    assert all(line.row.depth == (line.row.action == "b") for line in lines if line.row)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("a<a", ["a (its own ancestor)"]),
        ("a<b b<a", ["a (its own ancestor)", "└─ b"]),
        # a is not in the circle, only below it.
        ("a<b c<b b<c", ["b (its own ancestor)", "├─ a", "└─ c"]),
        ("a0 x<a0 a<b b<a", ["a0", "└─ x", "a (its own ancestor)", "└─ b"]),
    ],
)
def test_cycles_are_cut(text: str, labels: list[str]) -> None:
    assert drawn(text) == labels


def test_no_actions() -> None:
    assert drawn("") == []


def test_every_action_has_its_place_however_deep() -> None:
    depth = 20_000
    chain = rows("a0 " + " ".join(f"n{i}<{f'n{i - 1}' if i else 'a0'}" for i in range(depth)))
    lines = build_forest(chain, "r")
    assert [line.row.action for line in lines if line.row] == [row.action for row in chain]
    assert lines[-1].row is not None
    assert lines[-1].row.depth == depth
    assert max(len(line.label) for line in lines) < 200


@pytest.mark.parametrize("width", [60, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    chain = rows("a0 " + " ".join(f"名{i}<{f'名{i - 1}' if i else 'a0'}" for i in range(99)))
    tree = build_forest([*chain, *rows("x<lost" + "名" * 200)], "r")
    lines = TreeTable(StringIO(), "t", tree).format_tree().decode().splitlines()
    assert len(lines) == 2 + len(tree)
    assert max(map(cell_len, lines)) <= width
    # Whatever is cut off, the name is not.
    assert "名98 " in lines[-3]


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    ended = {
        "a": "2026-01-01T00:00:59Z",
        "b": "2026-01-01T01:02:03.5Z",
        "c": "2026-02-01T03:00:00Z",
        "d": "never",
    }
    made = [
        msgspec.structs.replace(row, ended_at=ended.get(row.action or "", ""))
        for row in rows("a0 a<a0 b<a0 c<a0 d<a0")
    ]
    now = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
    table = TreeTable(StringIO(), "t", build_forest(made, "r"), now)
    lines = table.format_tree().decode().splitlines()[2:]
    at = {line.split("RUNNING")[0].split()[-1]: line.split()[-1] for line in lines}
    assert at == {"a0": "2m0s", "a": "59s", "b": "1h2m", "c": "31d3h", "d": "1"}


async def put_runs(etcd: Etcd, prefix: bytes) -> None:
    await etcd.put(prefix + b"flyte/r1-a0", taskaction("r1", "a0", None))
    await etcd.put(prefix + b"flyte/r1-b", taskaction("r1", "b", phase="Succeeded", recorded=True))
    await etcd.put(prefix + b"flyte/r1-a", taskaction("r1", "a"))
    await etcd.put(prefix + b"flyte/r1-c", taskaction("r1", "c", "a"))
    await etcd.put(prefix + b"flyte/r1-x-a0", taskaction("r1-x", "a0", None))
    await etcd.put(prefix + b"other/r1-a0", taskaction("r1", "a0", None, project="q"))
    await etcd.put(prefix + b"other/r1-lost", taskaction("r1", "lost", "gone", project="q"))
    await etcd.put(prefix + b"other/r1-bad", b"rubbish")
    await etcd.put(prefix + b"flyte/r1-a", taskaction("r1", "a", phase="Failed"))


async def test_projects_are_told_apart(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    await put_runs(etcd, prefix)
    assert await show_tree(here(etcd, prefix), "r1", "json") == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert document["run"] == "r1"
    assert document["revision"] > 0
    told = [
        (tree["namespace"], tree["project"], tree["domain"], row["action"], row["depth"])
        for tree in document["trees"]
        for row in tree["actions"]
    ]
    assert told == [
        ("flyte", "p", "d", "a0", 0),
        ("flyte", "p", "d", "a", 1),
        ("flyte", "p", "d", "c", 2),
        ("flyte", "p", "d", "b", 1),
        ("other", "q", "d", "a0", 0),
        ("other", "q", "d", "lost", 0),
    ]
    assert document["trees"][1]["actions"][1]["missing_parent"] is True
    assert err.startswith("etcd-actions: 1 value is not a TaskAction and omitted")

    assert await show_tree(here(etcd, prefix), "q/d/r1", "jsonl") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert lines == document["trees"][1]["actions"]


async def test_table(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    await put_runs(etcd, prefix)
    assert await show_tree(here(etcd, prefix), "r1", "table") == 0
    first, second = capfd.readouterr().out.split("\n\n")
    title, header, *lines = first.splitlines()
    assert title == ("p/d/r1 in namespace flyte: 4 actions (2 RUNNING, 1 FAILED, 1 SUCCEEDED)")
    assert header.split() == ["ACTION", "PHASE", "TRY", "TIME", "DETAIL"]
    assert lines[3].split() == ["└─", "b", "SUCCEEDED", "1", "1m30s", "do_b"]
    assert [line[: header.index("PHASE")].rstrip() for line in lines] == [
        "a0",
        "├─ a",
        "│  └─ c",
        "└─ b",
    ]
    assert "gone (missing)" in second
    assert "└─ lost" in second


async def test_no_such_run(capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes) -> None:
    await put_runs(etcd, prefix)
    for run in ("r", "r1-", "p/e/r1", "r1/none", "p/d/r1/none"):
        for output in ("table", "json", "jsonl"):
            with pytest.raises(NotFound, match=f"^{run}: there is no such run or action"):
                await show_tree(here(etcd, prefix), run, output)
            assert capfd.readouterr().out == ""
    for run in ("", "/", "a//b"):
        with pytest.raises(ConfigError, match="is not an action"):
            await show_tree(here(etcd, prefix), run)
