from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions import open_etcd
from etcd_actions._internal.retrying import Attempts
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.versions import (
    KNOWN_BUGS,
    EtcdVersion,
    free_of_known_bugs,
    has_reliable_progress,
    known_bugs,
    loses_writes_when_killed,
)
from etcd_actions.testing import EtcdServer
from etcd_actions.watch import Change, Reflector, ReflectorSettings, store_identity
from tests.support.table import table
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3.4.23", (3, 4, 23)),
        ("v3.6.0", (3, 6, 0)),
        ("3.6.0-rc.1", (3, 6, 0)),
        ("3.7.0-alpha.0+git", (3, 7, 0)),
        (" 3.5.21\n", (3, 5, 21)),
    ],
)
def test_parse(text: str, version: tuple[int, int, int]) -> None:
    assert EtcdVersion.parse(text) == version


@table("text", ["", "3", "3.5", "3.5.x", "3.5.1.2", "etcd 3.5.1", "३.५.१"])
def test_parse_refuses_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="is not a valid version of etcd"):
        EtcdVersion.parse(text)


def test_prints_as_etcd_writes_it() -> None:
    assert str(EtcdVersion(3, 4, 23)) == "3.4.23"


def test_orders_by_number_not_by_text() -> None:
    assert EtcdVersion.parse("3.4.9") < EtcdVersion.parse("3.4.23")


@table(
    ("text", "loses"),
    [
        ("3.3.27", True),
        ("3.4.20", True),
        ("3.4.21", False),
        ("3.4.37", False),
        ("3.5.0", True),
        ("3.5.5", True),
        ("3.5.6", False),
        ("3.6.0", False),
        ("4.0.0", False),
    ],
)
def test_loses_writes_when_killed(text: str, loses: bool) -> None:
    assert loses_writes_when_killed(EtcdVersion.parse(text)) is loses


@table(
    ("text", "reliable"),
    [
        ("3.3.27", False),
        ("3.4.24", False),
        ("3.4.25", True),
        ("3.5.0", False),
        ("3.5.7", False),
        ("3.5.8", True),
        ("3.6.0", True),
        ("4.0.0", True),
    ],
)
def test_has_reliable_progress(text: str, reliable: bool) -> None:
    assert has_reliable_progress(EtcdVersion.parse(text)) is reliable


def numbers(text: str) -> set[int]:
    return {bug.number for bug in known_bugs(EtcdVersion.parse(text))}


@table(
    ("number", "having", "free"),
    [
        (13766, ["3.5.0", "3.5.2"], ["3.3.27", "3.4.9", "3.5.3", "3.6.0"]),
        (14370, ["3.3.27", "3.4.20", "3.5.0", "3.5.4"], ["3.4.21", "3.5.5", "3.6.0"]),
        (14685, ["3.5.0", "3.5.5"], ["3.4.23", "3.5.6"]),
        (14571, ["3.4.21", "3.5.5"], ["3.4.22", "3.5.6"]),
        (15275, ["3.4.23", "3.5.7"], ["3.4.24", "3.5.8"]),
        (15271, ["3.4.24", "3.5.7"], ["3.4.25", "3.5.8"]),
        (15220, ["3.4.24", "3.5.7"], ["3.4.25", "3.5.8"]),
        (17507, ["3.4.25", "3.4.30", "3.5.8", "3.5.12"], ["3.4.24", "3.4.31", "3.5.7", "3.5.13"]),
        (17529, ["3.4.30", "3.5.12"], ["3.4.31", "3.5.13"]),
        (17780, ["3.4.31", "3.5.13"], ["3.4.32", "3.5.14"]),
        (18089, ["3.4.33", "3.5.15"], ["3.4.34", "3.5.16"]),
        (19179, ["3.4.35", "3.5.17"], ["3.4.36", "3.5.18", "3.6.0"]),
        (20221, ["3.4.37", "3.5.21", "3.6.1"], ["3.4.38", "3.5.22", "3.6.2"]),
        (20271, ["3.4.37", "3.5.22", "3.6.4"], ["3.4.38", "3.5.23", "3.6.5"]),
        (20418, ["3.4.41", "3.5.27", "3.6.8"], ["3.4.42", "3.5.28", "3.6.9", "3.7.0"]),
    ],
)
def test_known_bugs(number: int, having: list[str], free: list[str]) -> None:
    assert [text for text in having if number not in numbers(text)] == []
    assert [text for text in free if number in numbers(text)] == []


def test_every_bug_is_tested_and_listed_once() -> None:
    all_numbers = [bug.number for bug in KNOWN_BUGS]
    assert len(set(all_numbers)) == len(all_numbers) == 15


@pytest.mark.parametrize(
    ("text", "number", "fix"),
    [("3.4.23", 18089, "3.4.34"), ("3.5.1", 18089, "3.5.16"), ("3.3.27", 15220, "3.4.25")],
)
def test_the_release_that_fixes_a_bug(text: str, number: int, fix: str) -> None:
    version = EtcdVersion.parse(text)
    (bug,) = (bug for bug in known_bugs(version) if bug.number == number)
    assert str(bug.fixed_in(version)) == fix
    assert bug.id == f"etcd#{number}"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("3.4.23", "3.4.42"),
        ("3.5.1", "3.5.28"),
        ("3.6.0", "3.6.9"),
        ("3.6.16", "3.6.16"),
        ("3.3.27", "3.4.42"),
    ],
)
def test_the_least_upgrade_without_known_bugs(text: str, target: str) -> None:
    version = free_of_known_bugs(EtcdVersion.parse(text))
    assert str(version) == target
    assert known_bugs(version) == ()


class Ignores:
    """A sink for which nothing is too much."""

    def dispatch(self, changes: Sequence[Change], /) -> None:
        assert not changes

    async def wait_list_capacity(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_stream_capacity(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_known_bugs_are_logged_once_a_process(
    shared_etcd: EtcdServer, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_identity, "_logged", set())
    opened = 0
    async with open_etcd(shared_etcd.endpoint) as etcd, trio.open_nursery() as nursery:

        class Reopened(Reflector):
            async def _watch_once(self, attempt: Attempts) -> None:
                nonlocal opened
                opened += 1
                await super()._watch_once(attempt)

        settings = ReflectorSettings(stream_life=0.01)
        reflector = Reopened(etcd, KeyRange.of_prefix(prefix), Ignores(), settings=settings)
        with capture_logs() as logs:
            nursery.start_soon(reflector.run)
            await eventually(lambda: opened > 3)
        nursery.cancel_scope.cancel("seen enough")
    named = [line for line in logs if line["event"] == "etcd_has_known_bugs"]
    bugs = known_bugs(shared_etcd.version)
    assert [line["version"] for line in named] == ([str(shared_etcd.version)] if bugs else [])
    for line in named:
        assert line["bugs"] == len(bugs)
        assert line["see"] == "etcd-actions doctor"
        assert line["fixed_in"] == str(free_of_known_bugs(shared_etcd.version))
        expected = "info" if all(bug.averted for bug in bugs) else "warning"
        assert line["log_level"] == expected
