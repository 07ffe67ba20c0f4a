"""Faults of the machine that etcd runs on: its disk, descriptors, name, clock and version."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions import open_etcd
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd import TransportName
from etcd_actions.etcd.api import Etcd, Status
from etcd_actions.etcd.client import EtcdClient
from etcd_actions.testing.proxy import open_proxy
from etcd_actions.watch import Reflector, store_identity
from tests.support.cluster import EtcdCluster
from tests.support.etcd_server import EtcdServer
from tests.support.load import Load, make_run
from tests.support.patient import patiently
from tests.support.recording import RecordingRunService, RecordingSink, eventually
from tests.support.scene import (
    PROCESSOR,
    UNHURRIED,
    judge_delivery,
    judge_marks,
    processing,
    reflecting,
)

pytestmark = pytest.mark.faults

_ROOT = Path(__file__).parents[2]
_DAYS = 86_400.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 MB: etcd keeps 64 MB for each of two files of its log."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160m", "etcd-test", directory],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@needs_root
async def test_etcd_ends_since_its_disk_is_full(
    small_disk: Path, tmp_path: Path, prefix: bytes
) -> None:
    """We stay, and are told so by the watch; with room again all is delivered and marked."""
    cluster = EtcdCluster(small_disk / "etcd")
    member = cluster.members[0]
    # On the full disk the reason of its end could not be written.
    (member.directory / "etcd.log").symlink_to(tmp_path / "etcd.log")
    sink = RecordingSink()
    try:
        cluster.start()
        with trio.fail_after(180):
            async with (
                open_etcd(cluster.endpoints[0], request_timeout=2) as etcd,
                open_etcd(cluster.endpoints[0], request_timeout=2) as direct,
                reflecting(etcd, prefix, sink) as reflector,
            ):
                run_service = RecordingRunService(direct)
                async with processing(etcd, prefix, run_service) as processor:
                    await Load(direct).play([make_run(prefix, "rd1", 3)])
                    filler = small_disk / "filler"
                    with filler.open("wb") as file:
                        free = shutil.disk_usage(small_disk).free
                        os.posix_fallocate(file.fileno(), 0, max(1, free - 100_000))
                    while not has_ended(member.pid):
                        try:
                            await direct.put(b"/filling", bytes(1_000_000))
                        except EtcdError:
                            await trio.sleep(0.05)  # The pace of the load.
                    await eventually(lambda: not reflector.statistics().streaming)
                    member.kill()
                    filler.unlink()
                    await trio.to_thread.run_sync(cluster.start_member, member)
                    await Load(direct, seed=1).play([make_run(prefix, "rd2", 3)])
                    await judge_marks([processor], [run_service], direct, prefix)
                    await judge_delivery(sink, direct, prefix)
        assert member.logged("no space left on device")
    finally:
        cluster.stop()


def has_ended(pid: int) -> bool:
    """Whether a child has ended; it is not reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_etcd_may_open_no_more_files(
    tmp_path: Path, prefix: bytes, transport: TransportName
) -> None:
    """It takes no connection: typed errors, no mark that is not there, and all goes on later."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux can limit another process")
    cluster = EtcdCluster(tmp_path)
    sink = RecordingSink()
    try:
        cluster.start()
        member = cluster.members[0]
        usual = resource.prlimit(member.pid, resource.RLIMIT_NOFILE)
        with trio.fail_after(120):
            async with (
                open_proxy(member.port) as proxy,
                open_etcd(cluster.endpoints[0], request_timeout=3) as direct,
                open_etcd(
                    proxy.endpoint, transport=transport, request_timeout=1, dial_timeout=0.5
                ) as etcd,
                reflecting(etcd, prefix, sink),
            ):
                run_service = RecordingRunService(direct)
                async with processing(etcd, prefix, run_service) as processor:
                    await Load(direct).play([make_run(prefix, "rd1", 3)])
                    # Nothing new may be opened, whatever is open stays.
                    resource.prlimit(member.pid, resource.RLIMIT_NOFILE, (5, usual[1]))
                    proxy.cut()
                    for _ in range(3):
                        with pytest.raises(Unavailable):
                            await etcd.put(b"/descriptors", b"")
                    await Load(direct, seed=1).play([make_run(prefix, "rd2", 3)])
                    resource.prlimit(member.pid, resource.RLIMIT_NOFILE, usual)
                    await patiently(etcd.put, b"/descriptors", b"")
                    await judge_marks([processor], [run_service], direct, prefix)
                    await judge_delivery(sink, direct, prefix)
    finally:
        cluster.stop()


async def test_we_may_open_no_more_files(shared_etcd: EtcdServer) -> None:
    """Clear errors, with nothing written; what is open goes on; with room all is well again."""
    client = await trio.run_process(
        [sys.executable, "-m", "tests.support.descriptors", shared_etcd.endpoint],
        cwd=_ROOT,
        capture_stdout=True,
        check=False,
    )
    lines = client.stdout.decode().splitlines()
    assert client.returncode == 0
    assert lines[3:] == ["ok"]
    for line in lines[:3]:
        assert line.startswith("Unavailable: ")
        assert "Too many open files" in line


@asynccontextmanager
async def naming(
    hosts: Path, endpoint: str, transport: TransportName
) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """A client with an /etc/hosts of its own: what has it write, and gives what came of it."""
    command = f'mount --bind "{hosts}" /etc/hosts && exec "$@"'
    client = [sys.executable, "-m", "tests.support.resolving", endpoint, transport]
    process = await trio.lowlevel.open_process(
        ["unshare", "-m", "sh", "-c", command, "sh", *client],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def ask() -> str:
        await stdin.send_all(b"\n")
        said = b""
        while not said.endswith(b"\n"):
            more = await stdout.receive_some()
            assert more
            said += more
        return said.decode().strip()

    try:
        yield ask
    finally:
        process.kill()
        await process.wait()


@needs_root
async def test_the_name_of_etcd_is_gone_and_comes_back_elsewhere(
    shared_etcd: EtcdServer, tmp_path: Path, transport: TransportName
) -> None:
    """Without an address, and with one where nobody is: Unavailable; with the right one ok."""
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    hosts = tmp_path / "hosts"
    here = f"{shared_etcd.endpoint.partition(':')[0]} etcd.invalid\n"
    hosts.write_text(here)
    # What is connected stays so; a client that begins finds nobody, or no address.
    for lost in ("127.0.0.3 etcd.invalid\n", ""):
        hosts.write_text(lost)
        async with naming(hosts, f"etcd.invalid:{shared_etcd.port}", transport) as ask:
            with trio.fail_after(60):
                assert await ask() == "Unavailable"
                hosts.write_text(here)
                answers = [await ask()]
                while answers[-1] != "ok":
                    answers.append(await ask())
            assert set(answers) <= {"Unavailable", "ok"}


async def test_the_wall_clock_is_set_under_load(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten days on, ten days back: the leader leads on, the stream stays, and all is marked."""
    sink, run_service = RecordingSink(), RecordingRunService(etcd)
    settings = replace(PROCESSOR, elect=True, election_ttl=10, reflector=UNHURRIED)
    step = 0.0
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + step)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(step * 1e9))
    with trio.fail_after(90):
        async with (
            open_etcd(shared_etcd.endpoint) as own,
            reflecting(own, prefix, sink, settings=UNHURRIED) as reflector,
            processing(own, prefix, run_service, settings=settings) as processor,
        ):
            await eventually(lambda: processor.statistics().elected)
            load = Load(etcd)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load.play, [make_run(prefix, "rt1", 4)])
                for number, to in enumerate((10 * _DAYS, -10 * _DAYS, 0.0), 1):
                    await load.reached(5 * number)
                    step = to
                    assert processor.statistics().elected
            await judge_marks([processor], [run_service], etcd, prefix)
            await judge_delivery(sink, etcd, prefix)
            assert processor.statistics().elected
            assert reflector.statistics().reconnects == {}


def is_back(reflector: Reflector, cuts: int) -> bool:
    """Whether the stream was opened anew more often than so."""
    statistics = reflector.statistics()
    return statistics.streaming and sum(statistics.reconnects.values()) > cuts


async def test_an_older_server_behind_a_newer_one_is_named(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reconnect it says 3.3.10: its bugs are logged once, and its progress not trusted."""
    sink = RecordingSink()
    older = False
    status = EtcdClient.status

    async def claim(client: EtcdClient) -> Status:
        found = await status(client)
        return found._replace(version="3.3.10") if older else found

    monkeypatch.setattr(EtcdClient, "status", claim)
    monkeypatch.setattr(store_identity, "_logged", set())
    with trio.fail_after(60), capture_logs() as logs:
        async with (
            open_proxy(shared_etcd.port) as proxy,
            open_etcd(proxy.endpoint, request_timeout=2) as proxied,
            reflecting(proxied, prefix, sink) as reflector,
        ):
            older = True
            for cuts in range(2):
                proxy.cut()
                await eventually(partial(is_back, reflector, cuts))
                await Load(etcd).play([make_run(prefix, "ro1", 2)])
            await judge_delivery(sink, etcd, prefix)
            assert not reflector._identity.reports_progress
    named: list[Any] = [
        each
        for each in logs
        if each["event"] == "etcd_has_known_bugs" and each["version"] == "3.3.10"
    ]
    assert len(named) == 1
    assert named[0]["bugs"]
