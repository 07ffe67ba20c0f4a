"""The command as a process, and the page that lists its findings."""

from __future__ import annotations

import json
from pathlib import Path

from etcd_actions.doctor import KINDS, Kind
from etcd_actions.etcd.versions import KNOWN_BUGS, known_bugs, loses_writes_when_killed
from etcd_actions.testing import EtcdServer
from tests.cli.command import finish
from tests.doctor.illness import VERSION_IDS
from tests.support.etcd_server import free_port

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"


def test_healthy(shared_etcd: EtcdServer, prefix: bytes) -> None:
    done = finish("doctor", "--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
    assert done.err == ""
    findings = [json.loads(line) for line in done.out.splitlines()]
    # A machine that tests share may be slow to answer; that is for the note to say.
    expected = VERSION_IDS | {"latency-noticeable"}
    assert {finding["severity"] for finding in findings if finding["id"] not in expected} == {"ok"}
    worst = findings[0]["severity"]
    assert done.code == {"error": 9, "warning": 8}.get(worst, 0)
    if not known_bugs(shared_etcd.version):
        assert done.code == 0
    assert list(findings[0]) == [
        "severity",
        "id",
        "subject",
        "seen",
        "meaning",
        "remedy",
        "members",
    ]


def test_table_for_people(shared_etcd: EtcdServer) -> None:
    dead = f"127.0.0.1:{free_port()}"
    done = finish("doctor", "-o", "table", "--endpoints", f"{shared_etcd.endpoint},{dead}")
    assert done.code == 9
    lines = done.out.splitlines()
    assert lines[0] == f"error    connection-refused  {dead}"
    assert lines[1] == "         it refuses connections"
    assert lines[3].startswith("         > start etcd, ")
    errors = 1 + loses_writes_when_killed(shared_etcd.version)
    assert lines[-1].startswith(f"{errors} error, ")
    assert "\x1b" not in done.out


def test_document(shared_etcd: EtcdServer) -> None:
    done = finish("doctor", "-o", "json", "--endpoints", f"127.0.0.1:{free_port()}")
    report = json.loads(done.out)
    assert report["worst"] == "error"
    assert [finding["id"] for finding in report["findings"]] == ["connection-refused"]
    assert done.code == 9


def row(kind: Kind) -> str:
    cells = (f"`{kind.id}`", kind.severity.label, kind.meaning, kind.remedy.replace("|", "\\|"))
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def test_the_page_lists_all_findings() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == [row(kind) for kind in KINDS]


def test_the_page_lists_all_known_bugs() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| etcd#")]
    assert rows == [
        f"| {bug.id} | {bug.consequence} | {', '.join(str(fix) for _, fix in bug.affected)} | "
        f"{'yes' if bug.averted else 'no'} |"
        for bug in KNOWN_BUGS
    ]


def test_ids_are_unique() -> None:
    ids = [kind.id for kind in KINDS]
    assert len(set(ids)) == len(ids)


def test_what_is_wrong_has_a_meaning_and_a_remedy() -> None:
    for kind in KINDS:
        assert bool(kind.severity) == bool(kind.meaning) == bool(kind.remedy), kind.id
