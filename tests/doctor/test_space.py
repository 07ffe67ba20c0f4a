"""Alarms, quotas and history."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.errors import NoSpace
from etcd_actions.etcd.api import Etcd, PutResult, Status
from etcd_actions.testing import EtcdFactory, OwnEtcd
from tests.doctor.illness import UNHURRIED, diagnose


async def until(etcd: Etcd, holds: Callable[[Status], bool]) -> None:
    """Wait for a commit; space is free only from the one behind the next write on."""
    with trio.fail_after(60):
        while not holds(await etcd.status()):
            await etcd.put(b"/tick", b"")


async def write(etcd: Etcd, times: int, size: int = 0) -> PutResult:
    """Write a key some times; etcd tells the size of its file after a commit only."""
    for _ in range(times - 1):
        await etcd.put(b"/key", b"x" * size)
    last = await etcd.put(b"/key", b"x" * size)
    await until(etcd, lambda status: status.db_size >= times * size)
    return last


async def test_alarm_of_a_full_etcd(etcd_factory: EtcdFactory) -> None:
    full = etcd_factory(flags=["--quota-backend-bytes=1000000"])
    async with open_etcd(full.endpoint) as etcd:
        with pytest.raises(NoSpace):
            await write(etcd, 100, 300_000)
    # How full the file is by then depends on when etcd commits.
    limits = replace(UNHURRIED, quota_warning=math.inf, quota_error=math.inf)
    diagnosis = await diagnose(full.endpoint, limits=limits)
    assert diagnosis.ill == {"alarm-nospace"}
    finding = diagnosis.one("alarm-nospace")
    assert "etcdctl compact" in finding.remedy
    assert "etcdctl alarm disarm" in finding.remedy
    assert "<" not in finding.remedy
    assert diagnosis.code is ExitCode.ERRORS


async def test_quota_that_is_almost_used_up(etcd_factory: EtcdFactory) -> None:
    etcd = etcd_factory(flags=["--quota-backend-bytes=1000000"])
    async with open_etcd(etcd.endpoint) as connection:
        await write(connection, 1, 400_000)
    warned = await diagnose(
        etcd.endpoint, limits=replace(UNHURRIED, quota_warning=0.4, quota_error=2.0)
    )
    assert warned.ill == {"quota-high"}
    finding = warned.one("quota-high")
    assert "of the quota of 976.6 KiB" in finding.seen
    assert "--quota-backend-bytes" in finding.remedy
    assert warned.code is ExitCode.WARNINGS
    failed = await diagnose(etcd.endpoint, limits=replace(UNHURRIED, quota_error=0.4))
    assert failed.ill == {"quota-nearly-full"}
    assert failed.code is ExitCode.ERRORS


async def test_free_space_in_the_file(own_etcd: OwnEtcd) -> None:
    async with open_etcd(own_etcd.endpoint) as etcd:
        newest = await write(etcd, 10, 500_000)
        await etcd.compact(newest.revision, physical=True)
        await until(etcd, lambda status: status.db_size_in_use < 2_000_000)
    limits = replace(UNHURRIED, wasted=1_000_000, short_history=1)
    diagnosis = await diagnose(own_etcd.endpoint, limits=limits)
    assert diagnosis.ill == {"defragment"}
    assert f"--endpoints {own_etcd.endpoint} defrag" in diagnosis.one("defragment").remedy


async def test_history(own_etcd: OwnEtcd) -> None:
    limits = replace(UNHURRIED, long_history=20, short_history=10)
    async with open_etcd(own_etcd.endpoint) as etcd:
        newest = (await write(etcd, 30)).revision
        never = await diagnose(own_etcd.endpoint, limits=limits)
        await etcd.compact(newest - 14, physical=True)
        some = await diagnose(own_etcd.endpoint, limits=limits)
        await etcd.compact(newest, physical=True)
        little = await diagnose(own_etcd.endpoint, limits=limits)
    assert never.ill == {"never-compacted"}
    finding = never.one("never-compacted")
    assert f"revisions 1 to {newest} " in finding.seen
    assert "--auto-compaction-mode" in finding.remedy
    assert f"etcdctl compact {newest}" in finding.remedy
    assert never.code is ExitCode.WARNINGS
    assert some.ill == set()
    assert f"revisions {newest - 14} to {newest} are kept: 15 of" in some.one("history").seen
    assert little.ill == {"history-short"}
