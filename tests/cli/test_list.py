"""Which actions ``list`` shows, in which form, and what it reads for that."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_actions.cli.commands.list_actions import Filter, list_actions
from etcd_actions.cli.formats.standard_output import name_lines
from etcd_actions.errors import ConfigError, NotFound
from etcd_actions.etcd.api import Etcd, KeyRange, Put, RangeResult, Txn
from tests.cli.command import environment, running
from tests.cli.here import Reads, here, reads, taskaction
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday

OBJECTS = {
    b"flyte/r1-a0": taskaction("r1", "a0", None, phase="Executing"),
    b"flyte/r1-a1": taskaction("r1", "a1", phase="Succeeded", recorded=True),
    b"flyte/r1-b1": taskaction("r1", "b1", "a1", phase="Failed"),
    # Its key begins like those of run r1.
    b"flyte/r1-x-a0": taskaction("r1-x", "a0", None, phase="Queued"),
    b"other/r1-a0": taskaction("r1", "a0", None, project="q", domain="e", namespace="other"),
    b"other/r2-a0": taskaction("r2", "a0", None, phase="Paused", namespace="other"),
}


async def put_all(etcd: Etcd, prefix: bytes, objects: dict[bytes, bytes]) -> int:
    puts = [Put(prefix + tail, value) for tail, value in objects.items()]
    for at in range(0, len(puts), 100):
        await etcd.txn(Txn([], puts[at : at + 100]))
    return (await etcd.range(KeyRange.of_prefix(prefix), count_only=True)).revision


async def listed(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes, **flags: Any
) -> list[dict[str, Any]]:
    namespace, limit = flags.pop("namespace", None), flags.pop("limit", None)
    code = await list_actions(
        here(etcd, prefix, namespace), Filter(**flags), output="jsonl", limit=limit
    )
    assert code == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({}, "r1/a0 r1/a1 r1/b1 r1-x/a0 r1/a0 r2/a0"),
        ({"namespace": "flyte"}, "r1/a0 r1/a1 r1/b1 r1-x/a0"),
        ({"namespace": "fly"}, ""),
        ({"run": "r1"}, "r1/a0 r1/a1 r1/b1 r1/a0"),
        ({"run": "r1", "namespace": "other"}, "r1/a0"),
        ({"run": "r1-x"}, "r1-x/a0"),
        ({"run": "r1", "phases": ["PAUSED"]}, ""),
        ({"run": "r1", "project": "q"}, "r1/a0"),
        ({"domain": "e"}, "r1/a0"),
        ({"phases": {"SUCCEEDED", "PAUSED"}}, "r1/a1 r2/a0"),
        ({"parent": "a1"}, "r1/b1"),
        ({"unrecorded": True, "phases": {"SUCCEEDED", "FAILED"}}, "r1/b1"),
        ({"labels": {"flyte.org/terminal-status-recorded": "true"}}, "r1/a1"),
        ({"labels": {"flyte.org/terminal-status-recorded": None}, "run": "r1"}, "r1/a1"),
        ({"labels": {"flyte.org/terminal-status-recorded": "false"}}, ""),
        ({"limit": 2}, "r1/a0 r1/a1"),
        ({"run": "r1", "limit": 4}, "r1/a0 r1/a1 r1/b1 r1/a0"),
    ],
)
async def test_filters_are_exact(
    capfd: pytest.CaptureFixture[str],
    etcd: Etcd,
    prefix: bytes,
    flags: dict[str, Any],
    wanted: str,
) -> None:
    await put_all(etcd, prefix, OBJECTS)
    rows = await listed(capfd, etcd, prefix, **flags)
    assert [f"{row['run']}/{row['action']}" for row in rows] == wanted.split()


async def test_a_row(capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes) -> None:
    revision = await put_all(etcd, prefix, OBJECTS)
    [row] = await listed(capfd, etcd, prefix, phases={"SUCCEEDED"})
    assert row.pop("output_uri").endswith("/a1/1")
    assert row == {
        "type": "ACTION",
        "key": (prefix + b"flyte/r1-a1").decode(),
        "namespace": "flyte",
        "name": "r1-a1",
        "revision": revision,
        "run": "r1",
        "action": "a1",
        "parent": "a0",
        "phase": "SUCCEEDED",
        "attempts": 1,
        "terminal": True,
        "recorded": True,
        "project": "p",
        "domain": "d",
        "short_name": "do_a1",
        "created_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:01:30Z",
    }


@pytest.mark.parametrize("name", ["", "a//b"])
async def test_no_run_has_such_a_name(etcd: Etcd, prefix: bytes, name: str) -> None:
    with pytest.raises(ConfigError, match=r"--run .* is not an action: give RUN"):
        await list_actions(here(etcd, prefix), Filter(run=name))


@pytest.mark.parametrize("output", ["jsonl", "json"])
async def test_a_run_has_the_names_that_it_has_in_all_commands(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes, output: str
) -> None:
    await put_all(etcd, prefix, OBJECTS)
    common = here(etcd, prefix)
    for text in ("r1-x", "r1-x-a0", "r1-x/a0", "p/d/r1-x", "p/d/r1-x/a0", "flyte/r1-x-a0"):
        await list_actions(common, Filter(run=text), output=output)
        printed = capfd.readouterr().out
        rows = [json.loads(printed)] if output == "jsonl" else json.loads(printed)["actions"]
        assert [(row["run"], row["action"]) for row in rows] == [("r1-x", "a0")], text
    with pytest.raises(NotFound, match="r1-y: there is no such run or action: did you mean r1"):
        await list_actions(common, Filter(run="r1-y"), output=output)
    # In another project, and in the run's own with another phase, there is nothing to print.
    await list_actions(common, Filter(run="r1-x", project="none"), output=output)


async def test_a_run_is_read_alone(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    await put_all(etcd, prefix, OBJECTS | {b"no_object": b"x", b"/none": b"x", b"\xff/n": b"x"})
    noted, through = reads(etcd)
    rows = await listed(capfd, through, prefix, run="r2")
    assert len(rows) == 1
    # A key for each of five namespaces to find it by, of which three are none, and the action.
    assert noted.keys_read == 6


async def test_what_cannot_be_read_is_shown_and_counted(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    bad = {b"flyte/bad": b"rubbish", b"flyte/enc": b"k8s:enc:aes", b"n": b"{}"}
    await put_all(etcd, prefix, OBJECTS | bad)
    assert await list_actions(here(etcd, prefix), Filter(), output="jsonl") == 0
    out, err = capfd.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    shown = [row for row in rows if row["type"] == "UNDECODABLE"]
    assert [row["key"] for row in shown] == [(prefix + tail).decode() for tail in sorted(bad)]
    assert "encrypted" in shown[1]["reason"]
    assert len(rows) == len(OBJECTS) + 3
    assert err == "etcd-actions: 3 values are not TaskActions\n"

    assert await list_actions(here(etcd, prefix), Filter(project="q"), output="jsonl") == 0
    out, err = capfd.readouterr()
    assert [json.loads(line)["type"] for line in out.splitlines()] == ["ACTION"]
    assert err.startswith("etcd-actions: 3 values are not TaskActions and omitted")


class _WritesBetween(Reads):
    """Another key appears, and one changes, behind each page."""

    async def range(self, keys: KeyRange, **options: Any) -> RangeResult:
        found = await super().range(keys, **options)
        prefix = found.kvs[0].key.rpartition(b"/")[0]
        await self.etcd.put(prefix + b"/zz-a%d" % len(self.ranges), taskaction("zz", "a0"))
        await self.etcd.put(prefix + b"/r-a700", taskaction("r", "late"))
        return found


async def test_many_pages_are_of_one_revision(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    many = {b"flyte/r-a%03d" % n: taskaction("r", f"a{n}") for n in range(800)}
    await put_all(etcd, prefix, many)
    changing = _WritesBetween(etcd)
    rows = await listed(capfd, changing, prefix)  # type: ignore[arg-type]
    assert len(changing.ranges) > 1
    assert [row["action"] for row in rows] == [f"a{n}" for n in range(800)]


async def test_json_is_one_document(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    revision = await put_all(etcd, prefix, OBJECTS)
    rows = await listed(capfd, etcd, prefix)
    for wanted, expected in ((Filter(), rows), (Filter(project="none"), [])):
        await list_actions(here(etcd, prefix), wanted, output="json")
        document = json.loads(capfd.readouterr().out)
        assert document == {"revision": revision, "actions": expected}
    await list_actions(here(etcd, prefix + b"nothing/"), Filter(project="p"), output="json")
    assert json.loads(capfd.readouterr().out)["actions"] == []


async def test_table(
    capfd: pytest.CaptureFixture[str],
    etcd: Etcd,
    prefix: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    failed = {"errorState": {"code": "Boom", "kind": "USER", "message": "a\x1b[2Jb\nc"}}
    evil = {b"flyte/r1-z": taskaction("r1", "名\x1b[2J", phase="Failed", status=failed)}
    await put_all(etcd, prefix, OBJECTS | evil)
    await list_actions(here(etcd, prefix, "flyte"), Filter(run="r1"), output="table")
    out = capfd.readouterr().out
    header, *lines = out.splitlines()
    assert header.split() == ["RUN", "ACTION", "PARENT", "PHASE", "TRY", "AGE", "DETAIL"]
    assert [line.split()[1] for line in lines] == ["a0", "a1", "b1", r"名\x1b[2J"]
    assert r"Boom: a\x1b[2Jb\nc" in lines[-1]
    assert "\x1b" not in out
    assert lines[1].index("a0") == header.index("PARENT")


async def test_a_name_is_one_line(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    """A stored name cannot make the next command take another one, nor drive a terminal."""
    evil = {b"flyte/r-a0": taskaction("r\x1b[2J\np/d/other", "a0", None)}
    await put_all(etcd, prefix, evil)
    await list_actions(here(etcd, prefix), Filter(), output="name")
    assert capfd.readouterr().out == "p/d/r\\x1b[2J\\np/d/other/a0\n"
    assert name_lines(["r1", "a\nb", "\u202ec"]) == b"r1\na\\nb\n\\u202ec\n"


@pytest.fixture
async def many(shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes) -> tuple[str, ...]:
    """Flags to list more than a pipe holds."""
    await put_all(
        etcd, prefix, {b"flyte/r-a%03d" % n: taskaction("r", f"a{n}") for n in range(700)}
    )
    return ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())


@pytest.mark.parametrize("output", first_everyday(["jsonl", "table"]))
async def test_it_ends_quietly_when_nobody_reads_on(many: tuple[str, ...], output: str) -> None:
    command = [sys.executable, "-m", "etcd_actions", "list", "-o", output, *many]
    done = await trio.run_process(
        ["bash", "-c", 'set -o pipefail; "$@" | head -1', "_", *command],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


async def test_ctrl_c_ends_it_at_once(many: tuple[str, ...], tmp_path: Path) -> None:
    with running(tmp_path, "list", *many, pipe=True) as command:
        await trio.to_thread.run_sync(command.pipe.readline)
        # It has more to write than the pipe takes, and nobody reads it.
        command.signal(signal.SIGINT)
        assert await command.wait() == 130
        assert command.err == ""
