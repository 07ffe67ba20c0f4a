"""``top``: one frame of etcd and of the service's page, and the live screen of a terminal."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from etcd_actions import ActionId, Phase, __version__
from etcd_actions.cli.cluster import ClusterSample, _facts
from etcd_actions.cli.commands.top import show_top
from etcd_actions.etcd.api import Etcd
from etcd_actions.shards import ShardKeys
from tests.cli.command import environment, finish, running
from tests.cli.reading_site import Site, open_site
from tests.support.etcd_server import EtcdServer


@pytest.fixture
async def site(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> AsyncIterator[Site]:
    async with open_site(etcd, shared_etcd, prefix, tmp_path) as site:
        await site.put_run("r1", "c1", "c2")
        await site.status("r1/c1", Phase.SUCCEEDED)
        await site.status("r1/a0", Phase.RUNNING)
        await site.recorded("r1", Phase.RUNNING.value)
        key = site.keys.claim(ActionId("p", "d", "r1", "c2"))
        await etcd.put(key, b'{"object":"x","owner":"host/7"}')
        yield site


async def test_a_frame_of_etcd(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    await show_top(site.common("etcd"), interval=0.1, once=True, output="json")
    out, err = capfd.readouterr()
    frame = json.loads(out)
    assert err == ""
    assert frame["runs"] == {"RUNNING": 1}
    (run,) = frame["active"]
    assert (run["run"], run["done"], run["actions"]) == ("r1", 1, 3)
    cluster = frame["cluster"]
    assert cluster["etcd"].startswith("1 of 1 members up, revision ")
    assert cluster["Actions"].startswith("3: 1 ")
    assert cluster["Executors"] == "host/7 (1)"
    assert cluster["Leader"] != "none"
    assert cluster["Dead letters"] == "0"
    assert frame["rates"]["changes"] >= 0

    await show_top(site.common("etcd"), interval=0.1, once=True, output=None)
    text = capfd.readouterr().out
    assert "\x1b" not in text
    assert "Runs          1  1 RUNNING" in text
    assert "1/3" in text


def test_rates() -> None:
    before, now = (
        ClusterSample({}, {"a": 5, "b": 9}, at=1.0),
        ClusterSample({}, {"a": 25, "c": 1}, at=3.0),
    )
    assert now.rates(before) == {"a": 10.0}
    # Another process, which counts from 0.
    assert ClusterSample({}, {"a": 0}, at=4.0).rates(now) == {"a": 0.0}


async def test_a_service_without_a_page(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    await show_top(site.common("service"), interval=0.1, once=True, output="json")
    frame = json.loads(capfd.readouterr().out)
    assert (frame["runs"], frame["active"][0]["done"]) == ({"RUNNING": 1}, 1)
    assert "--page=false" in frame["note"]


@pytest.mark.slow
async def test_the_service_of_a_process(
    site: Site, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """As people run it: the state is that of the process."""
    arguments = ["run", "--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()]
    with running(tmp_path, *arguments) as process:
        address = (await process.logged("serving"))["listen"]
        done = await trio.to_thread.run_sync(
            lambda: finish("top", "--once", "-o", "json", "--service", address)
        )
        assert done.code == 0, done.err
        frame = json.loads(done.out)
        assert frame["runs"] == {"RUNNING": 1}
        assert frame["cluster"]["etcd"].startswith("1 of 1 members up")
        assert "Lag" in frame["cluster"]
        assert "requests" in frame["rates"]
        done = await trio.to_thread.run_sync(
            lambda: finish("version", "-o", "json", "--service", address)
        )
        versions = json.loads(done.out)
        assert versions["service"] == __version__
        assert versions["etcd"] == str(shared_etcd.version)


@pytest.mark.slow
async def test_live_on_a_terminal(site: Site) -> None:
    """Frames replace each other; Ctrl-C ends it with 0, and a closed terminal, too."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "etcd_actions", "top", "--interval", "100ms"),
            *site.arguments("etcd"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=subprocess.PIPE,
        env=environment(LINES="20", COLUMNS="70"),
    )
    os.close(its)
    shown = b""
    try:
        while shown.count(b"\x1b[H\x1b[J") < 3:
            shown += await trio.to_thread.run_sync(os.read, ours, 65536)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):
            while await trio.to_thread.run_sync(os.read, ours, 65536):
                pass
        code = await trio.to_thread.run_sync(process.wait, 30)
        assert process.stderr is not None
        assert (code, b"Traceback" in process.stderr.read()) == (0, False)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        if process.stderr is not None:
            process.stderr.close()
    for frame in shown.split(b"\x1b[H\x1b[J")[1:3]:
        assert b"etcd-actions top" in frame
        assert b"r1" in frame
        assert frame.count(b"\n") <= 20


async def test_shards_replace_the_leader(
    site: Site, etcd: Etcd, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = ShardKeys(site.keys, None)
    for key in (keys.range(0), keys.range(1), keys.owner(1), keys.member("h/1/x")):
        await etcd.put(key, b"")
    await show_top(site.common("etcd"), interval=0.1, once=True, output="json")
    cluster = json.loads(capfd.readouterr().out)["cluster"]
    assert cluster["Shards"] == "2, 1 with an owner, 1 members"
    assert "Leader" not in cluster

    state = {"shards": [{"owner": "a"}, {"owner": ""}], "shardMembers": 2, "leader": True}
    facts = _facts(state)
    assert facts["Shards"] == "2, 1 with an owner, 2 members"
    assert "Leader" not in facts
