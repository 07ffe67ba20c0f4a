"""One member of three is sick, in each of five ways: found and cured by what operators have.

Each trial ends as it began: ``doctor`` finds nothing, no alert fires, a run ends. The cure is what
the remedy of the finding says.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.operators.trial import (
    PartableCluster,
    PlainCluster,
    Trial,
    in_thread,
    open_trial,
    server_tls,
)
from tests.support.chromium import Page
from tests.support.cluster import Member
from tests.support.namespaces import why_not

pytestmark = [pytest.mark.slow, pytest.mark.faults]

UNHEALTHY = "EtcdActionsMemberUnhealthy"
QUOTA = 16 << 20


@pytest.fixture
async def trial(tmp_path: Path, page: Page) -> AsyncIterator[Trial]:
    """Three members on the loopback interface."""
    certificates, tls = server_tls(tmp_path)
    cluster = PlainCluster(tmp_path, size=3, tls=tls, flags=[f"--quota-backend-bytes={QUOTA}"])
    cluster.certificates = certificates
    try:
        async with open_trial(tmp_path, cluster, page) as trial:
            yield trial
    finally:
        cluster.stop()


@pytest.fixture
async def parted(tmp_path: Path, page: Page) -> AsyncIterator[Trial]:
    """Three members, each in a network of its own."""
    if reason := why_not():
        pytest.skip(reason)
    certificates, tls = server_tls(tmp_path)
    cluster = PartableCluster(tmp_path, tls=tls)
    cluster.certificates = certificates
    with cluster.network():
        try:
            async with cluster.relayed(), open_trial(tmp_path, cluster, page) as trial:
                yield trial
        finally:
            cluster.stop()


async def test_a_member_whose_process_is_stopped(trial: Trial) -> None:
    """It accepts connections, and answers nothing."""
    member = await in_thread(trial.cluster.leader)
    member.suspend()
    finding = await trial.finds("no-answer", member)
    assert "SIGCONT" in finding["remedy"]
    await trial.page_shows(f"{member.name}: ", "2 of 3 members up", "no answer")
    await trial.alerts(UNHEALTHY)
    await trial.runs_one()
    await trial.keep_screen("stopped")

    member.resume()
    await trial.is_well()


async def test_a_quota_that_is_used_up(trial: Trial) -> None:
    value = "x" * (1 << 20)
    name = await trial.starts_one()
    await trial.ends(name)

    def fill() -> None:
        for _ in range(2 * QUOTA // len(value)):
            trial.cluster.etcdctl("put", "/other", stdin=value)

    with pytest.raises(RuntimeError, match="database space exceeded"):
        await in_thread(fill)
    # The members do not have equal sizes: some may have raised no alarm yet.
    finding = await trial.finds("alarm-nospace", more=("quota-high", "quota-nearly-full"))
    assert finding["members"]
    await trial.page_shows("NOSPACE")
    await trial.alerts(UNHEALTHY)
    await trial.keep_screen("nospace")

    await trial.does(finding["remedy"])
    await trial.is_well()


async def test_a_certificate_that_has_expired(trial: Trial) -> None:
    """Connections that are open go on; new ones fail."""
    member = trial.cluster.members[1]
    trial.cluster.certify(member, expired=True)
    finding = await trial.finds("certificate-expired", member)
    assert "--cert-file" in finding["remedy"]
    await trial.page_shows("2 of 3 members up", f"{member.name}: ", "certificate has expired")
    await trial.alerts(UNHEALTHY)
    await trial.runs_one()
    await trial.keep_screen("expired")

    trial.cluster.certify(member)
    await trial.is_well()


async def test_a_member_that_was_never_promoted(trial: Trial, tmp_path: Path) -> None:
    """It took the place of one that was lost, and still has no vote."""
    cluster = trial.cluster
    gone = cluster.members[2]

    def replace() -> Member:
        # etcd removes none before its members have been connected for some seconds.
        until_done("member", "remove", gone.id())
        gone.kill()
        cluster.members.remove(gone)
        member = Member("m3", tmp_path / "m3")
        peer = f"http://127.0.0.1:{member.peer_port}"
        until_done("member", "add", member.name, "--learner", f"--peer-urls={peer}")
        cluster.members.append(member)
        member.launch([*cluster._command(member), "--initial-cluster-state=existing"])
        return member

    def until_done(*arguments: str) -> None:
        give_up = time.monotonic() + 30
        while True:
            try:
                cluster.etcdctl(*arguments)
            except RuntimeError as error:
                if "unhealthy cluster" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.2)
            else:
                return

    member = await in_thread(replace)
    finding = await trial.finds("learner", member)
    await trial.page_shows("learner")
    await trial.alerts(UNHEALTHY)
    await trial.runs_one()
    await trial.keep_screen("learner")

    await trial.does(finding["remedy"].partition("or: ")[2])
    await trial.is_well()


async def test_a_member_without_a_way_to_its_peers(parted: Trial) -> None:
    cluster = parted.cluster
    assert isinstance(cluster, PartableCluster)
    member = await in_thread(cluster.leader)
    cluster.part(member)
    finding = await parted.finds("no-leader", member)
    assert "network" in finding["remedy"]
    await parted.page_shows("no leader")
    await parted.alerts(UNHEALTHY)
    await parted.runs_one()
    await parted.keep_screen("parted")

    cluster.join(member)
    await parted.is_well()
