"""A whole process whose ports are held by others, and that runs what its user says only."""

from __future__ import annotations

import http.client
import os
import shlex
import sys
import time
from pathlib import Path

import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId
from etcd_actions.testing import OwnEtcd
from tests.cli.command import finish, running
from tests.server.clients import GrpcClient
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually
from tests.web.listeners import sockets
from tests.web.test_who import STRANGER, ask_as, needs_linux, needs_root

# Each starts processes.
pytestmark = pytest.mark.slow

ROOT = ActionId("p", "d", "r1", "a0", "o")
FEW = 512


@pytest.fixture
def few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command may have few descriptors, and starts with fewer."""
    script = tmp_path / "limited"
    python = shlex.quote(sys.executable)
    # The soft limit first: a hard limit below it is invalid.
    script.write_text(f'#!/bin/sh -e\nulimit -Sn 100\nulimit -Hn {FEW}\nexec {python} "$@"\n')
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def status(text: str, path: str = "/readyz") -> int:
    connection = http.client.HTTPConnection(text, timeout=20)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def until_ready(text: str) -> None:
    give_up = time.monotonic() + 60
    while status(text) != 200:
        assert time.monotonic() < give_up
        time.sleep(0.05)  # A process rings no bell, and no trio runs here.


@pytest.mark.usefixtures("few_descriptors")
async def test_idle_connections_take_nothing_from_etcd_and_probes(
    own_etcd: OwnEtcd, prefix: bytes, tmp_path: Path
) -> None:
    """Each of its own descriptors used up ended the process when etcd was started anew."""
    common = ("--endpoints", own_etcd.endpoint, "--prefix", prefix.decode())
    with running(tmp_path, "run", *common) as service:
        listen = (await service.logged("serving"))["listen"]
        monitoring = (await service.logged("monitoring"))["listen"]
        descriptors = Path(f"/proc/{service.pid}/fd")

        def enqueue(name: str) -> None:
            asker = GrpcClient(listen)
            action = flyte.task(ActionId("p", "d", name, "a0", "o"))
            asker.call("Enqueue", pb.EnqueueRequest(action=action))
            asker.close()

        with sockets(address(listen), FEW + 100), sockets(address(monitoring), 100):
            if descriptors.is_dir():
                assert len(list(descriptors.iterdir())) < FEW * 3 / 4 + 64
            assert await trio.to_thread.run_sync(status, monitoring) == 200
            await trio.to_thread.run_sync(enqueue, "r1")
            own_etcd.stop()
            own_etcd.start()
            await trio.to_thread.run_sync(until_ready, monitoring)
            await trio.to_thread.run_sync(enqueue, "r2")
        assert service.process.poll() is None


@needs_linux
@needs_root
@pytest.mark.parametrize("with_tokens", [False, True])
async def test_where_commands_run_another_user_of_this_machine_gets_nothing(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, with_tokens: bool
) -> None:
    """Neither on the service's place, nor on that which tasks have where it wants tokens."""
    flags = ["--executor", "local", "--executor-state-dir", str(tmp_path / "executor")]
    flags += ["--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()]
    if with_tokens:
        tokens = tmp_path / "tokens"
        tokens.write_text("secret\n")
        flags += ["--token-file", str(tokens)]
    with running(tmp_path, "run", *flags) as service:
        await service.until(lambda: len(service.logs("serving")) == 1 + with_tokens)
        listen = service.logs("serving")[-1]["listen"]
        assert await trio.to_thread.run_sync(ask_as, STRANGER, address(listen)) == "closed"
        own = await trio.to_thread.run_sync(ask_as, os.geteuid(), address(listen))
        assert own == "HTTP/1.1 404"
        refused = await service.logged("connections_refused")
        assert (refused["reason"], refused["uid"]) == ("user", STRANGER)
        monitoring = (await service.logged("monitoring"))["listen"]
        name = "tasks" if with_tokens else "service"

        def metrics() -> str:
            connection = http.client.HTTPConnection(monitoring, timeout=20)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            connection.close()
            return text

        text = await trio.to_thread.run_sync(metrics)
        wanted = f'http_connections_refused_total{{listener="{name}",reason="user"}} 1.0'
        assert wanted in text


@needs_linux
@needs_root
async def test_other_users_can_be_let_in_on_purpose(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    flags = ["--executor", "local", "--executor-state-dir", str(tmp_path / "executor")]
    flags += ["--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()]
    for users in ("any", str(STRANGER)):
        with running(tmp_path, "run", *flags, "--listen-users", users) as service:
            listen = (await service.logged("serving"))["listen"]
            asked = await trio.to_thread.run_sync(ask_as, STRANGER, address(listen))
            assert asked == "HTTP/1.1 404"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--listen-users", "own", "--listen", "0.0.0.0:0"), ("--listen-users", "127.0.0.1")),
        (("--listen-users", "me"), ("--listen-users", "'me'", "user ids")),
        (("--max-connections", "999999999"), ("--max-connections", "ulimit -n")),
        (("--max-connections", "0"), ("--max-connections", "1 or more")),
        (("--allowed-hosts", "http://a"), ("--allowed-hosts", "'http://a'", "without a port")),
        (("--header-timeout", "0"), ("--header-timeout",)),
    ],
)
def test_what_cannot_be_is_told_with_its_flag(
    shared_etcd: EtcdServer, prefix: bytes, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    common = ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
    done = finish("run", *common, *flags, "--log-level", "error")
    assert done.code == 2
    for word in words:
        assert word in done.complaint


async def test_the_process_outlives_a_frame_for_a_stream_that_is_gone(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """On the service's port and on that for monitoring: each ended it."""
    from tests.web.listeners import h2_client  # noqa: PLC0415

    common = ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
    with running(tmp_path, "run", *common) as service:
        monitoring = (await service.logged("monitoring"))["listen"]
        for place in ((await service.logged("serving"))["listen"], monitoring):
            async with h2_client(address(place)) as client:
                number = await client.ask("/nothing", method="POST", end=False)
                assert await client.is_answered(number) in (404, 405)
                await client.stream.send_all(b"\0\0\4\0\0" + number.to_bytes(4, "big") + b"late")
                second = await client.ask("/nothing", method="POST")
                assert await client.is_answered(second) in (404, 405)
        assert await trio.to_thread.run_sync(status, monitoring) == 200
        await eventually(lambda: service.process.poll() is None)
