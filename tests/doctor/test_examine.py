"""The examination as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etcd_actions import open_etcd
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.doctor import Finding, Severity
from etcd_actions.errors import Unavailable
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange
from etcd_actions.testing import EtcdServer, OwnEtcd
from tests.doctor.illness import UNHURRIED, VERSION_IDS, diagnose


async def test_a_healthy_etcd_is_left_as_it_was(own_etcd: OwnEtcd) -> None:
    diagnosis = await diagnose(own_etcd.endpoint)
    assert diagnosis.ill == set()
    assert {finding.id for finding in diagnosis.findings} - VERSION_IDS == {
        "reachable",
        "clock",
        "leader",
        "permissions",
        "no-alarm",
        "quota",
        "history",
        "latency",
        "watch",
        "kept",
        "actions",
    }
    async with open_etcd(own_etcd.endpoint) as etcd:
        keys = await etcd.range(KeyRange(b"\0", b"\xff"))
    assert (keys.total, keys.revision) == (0, 1)


async def test_slow_answers(shared_etcd: EtcdServer) -> None:
    noted = await diagnose(shared_etcd.endpoint, limits=replace(UNHURRIED, slow_note=0.0))
    assert noted.ill == {"latency-noticeable"}
    warned = await diagnose(shared_etcd.endpoint, limits=replace(UNHURRIED, slow_warning=0.0))
    assert warned.ill == {"latency-high"}
    assert "etcd_disk_wal_fsync_duration_seconds" in warned.one("latency-high").remedy


async def test_checks_are_bounded(shared_etcd: EtcdServer) -> None:
    diagnosis = await diagnose(shared_etcd.endpoint, limits=replace(UNHURRIED, check_seconds=0.0))
    assert diagnosis.ill == {"check-timed-out"}


async def test_a_failed_check_stops_no_other(
    shared_etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(etcd: EtcdClient, revision: int, named: object) -> list[Finding]:
        raise Unavailable("the member went away")

    monkeypatch.setattr("etcd_actions.doctor.alarms.check_alarms", fail)
    diagnosis = await diagnose(shared_etcd.endpoint)
    assert diagnosis.ill == {"check-failed"}
    assert diagnosis.one("check-failed").seen == "alarms: the member went away"
    assert diagnosis.one("actions").severity == "ok"
    assert diagnosis.code is ExitCode.WARNINGS


async def test_the_worst_comes_first(shared_etcd: EtcdServer) -> None:
    diagnosis = await diagnose(f"{shared_etcd.endpoint},no-such-host.invalid", ahead=60)
    ranks = [finding.rank for finding in diagnosis.findings]
    assert ranks[0] is Severity.ERROR
    assert ranks == sorted(ranks, reverse=True)
