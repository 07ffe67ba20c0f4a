"""What ``run`` serves: where, for whom, and how it ends."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from pathlib import Path

import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId
from tests.cli.command import finish, running
from tests.server.clients import SENTINEL, ConnectClient, GrpcClient, Reading
from tests.support import flyte
from tests.support.etcd_server import EtcdServer

# Each starts processes.
pytestmark = pytest.mark.slow

ROOT = ActionId("p", "d", "r1", "a0", "o")


@pytest.fixture
def common(shared_etcd: EtcdServer, prefix: bytes) -> tuple[str, ...]:
    return ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())


def ready(address: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", "/readyz", headers={"Accept": "application/json"})
    response = connection.getresponse()
    checks: dict[str, str] = json.loads(response.read())["checks"]
    connection.close()
    return response.status, checks


@pytest.mark.parametrize("kind", [GrpcClient, ConnectClient])
async def test_it_is_not_ready_first_then_streams_end_then_it_exits(
    common: tuple[str, ...], tmp_path: Path, kind: type[GrpcClient | ConnectClient]
) -> None:
    request = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(ROOT))
    with running(tmp_path, "run", *common, "--drain-delay", "1s") as service:
        listen = (await service.logged("serving"))["listen"]
        monitoring = (await service.logged("monitoring"))["listen"]
        assert (await trio.to_thread.run_sync(ready, monitoring))[0] == 200
        async with trio.open_nursery() as nursery:
            reading = Reading(await trio.to_thread.run_sync(kind(listen).stream, request))
            nursery.start_soon(reading.run)
            await reading.until(lambda state: state == SENTINEL)
            service.signal(signal.SIGTERM)
            await service.logged("stopping")
            status, checks = await trio.to_thread.run_sync(ready, monitoring)
            assert (status, checks["draining"]) == (503, "it is about to end")
            await reading.ended()
            assert reading.error is None
        assert await service.wait() == 0


def test_it_listens_on_this_machine_unless_told_otherwise(common: tuple[str, ...]) -> None:
    shown = finish(
        "config", "show", *common, ETCD_ACTIONS_LISTEN="", ETCD_ACTIONS_MONITORING_LISTEN=""
    )
    rows = {row["name"]: row["value"] for row in map(json.loads, shown.out.splitlines())}
    assert (rows["listen"], rows["monitoring_listen"]) == ("127.0.0.1:8091", "127.0.0.1:8092")


async def test_who_may_enqueue_beyond_this_machine_is_warned_of(
    common: tuple[str, ...], tmp_path: Path
) -> None:
    with running(tmp_path, "run", *common, "--listen", "0.0.0.0:0") as service:
        warned = await service.logged("anybody_may_enqueue")
        assert "--token-file" in warned["remedy"]


async def test_nothing_is_served_where_that_is_not_wanted(
    common: tuple[str, ...], tmp_path: Path
) -> None:
    flags = ("--listen", "none", "--monitoring-listen", "none")
    with running(tmp_path, "run", *common, *flags) as service:
        await service.logged("synced")
        service.signal(signal.SIGTERM)
        assert await service.wait() == 0
        assert not service.logs("serving")
        assert not service.logs("monitoring")


LOCAL = ("--executor", "local")
RAY = ("--executor", "ray", "--ray-address")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((*LOCAL, "--listen", "0.0.0.0:0"), ("--listen 0.0.0.0:0", "--token-file")),
        ((*LOCAL, "--listen", "none"), ("--executor local", "--listen")),
        ((*LOCAL, "--python", "/nowhere/python"), ("--python", "/nowhere/python")),
        (
            (*LOCAL, "--executor-state-dir", "/proc/x"),
            ("--executor-state-dir", "can be written"),
        ),
        ((*LOCAL, "--executor-claim-ttl", "2"), ("--executor-claim-ttl", "5 seconds")),
        (("--executor", "ray"), ("--executor ray", "--ray-address")),
        ((*RAY, "http://127.0.0.1:1", "--listen", "0.0.0.0:0"), ("--listen", "in the Ray cluster")),
        ((*RAY, "http://127.0.0.1:1", "--executor-memory", "1GiB"), ("--executor-memory", "Ray")),
        ((*RAY, "http://127.0.0.1:1", "--secret", "a=env:HOME"), ("--secret", "on its nodes")),
        ((*RAY, "http://head:8265"), ("http://head:8265", "--tasks-listen")),
        ((*RAY, "http://head:8265", "--tasks-listen", "0.0.0.0:1"), ("--tasks-listen 0.0.0.0:1",)),
        ((*RAY, "head:8265"), ("--ray-address", "http://host:port")),
        (("--listen-cert", "a.pem"), ("--listen-cert", "--listen-key")),
        (("--listen-cert", "/no.pem", "--listen-key", "/no.pem"), ("/no.pem",)),
        (("--token-file", "/nowhere/tokens"), ("tokens", "/nowhere/tokens")),
        (("--listen", "localhost"), ("--listen", "host:port")),
        (("--otlp-endpoint", "127.0.0.1"), ("--otlp-endpoint", "http://host:port")),
    ],
)
def test_what_cannot_be_served_ends_it_at_once(
    common: tuple[str, ...], flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = finish("run", *common, *flags, "--log-level", "error")
    assert done.code == 2
    for word in words:
        assert word in done.complaint


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--executor", "ray"), ("--executor ray", "--ray-address")),
        ((*RAY, "http://127.0.0.1:1", "--gpus", "1"), ("--gpus", "Ray has those of its nodes")),
        ((*RAY, "http://127.0.0.1:1", "--cpus", "2"), ("--cpus", "Ray has those of its nodes")),
        ((*RAY, "http://head:8265"), ("http://head:8265", "--tasks-listen")),
    ],
)
def test_what_a_worker_of_ray_cannot_have_ends_it_at_once(
    common: tuple[str, ...], tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = finish("worker", *common, *flags, "--executor-state-dir", tmp_path)
    assert done.code == 2
    for word in words:
        assert word in done.complaint


def test_a_port_that_is_taken_is_named(common: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("--listen", "--monitoring-listen"):
            done = finish("run", *common, flag, place, "--log-level", "error")
            assert done.code == 2
            assert f"{flag}: cannot listen on {place}" in done.complaint


async def test_tokens_of_the_service_are_shown_nowhere(
    common: tuple[str, ...], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("very-secret-token\n")
    root = tmp_path / "root.bin"
    root.write_bytes(pb.EnqueueRequest(action=flyte.task(ROOT)).SerializeToString())
    flags = ("--token-file", tokens, "--log-level", "debug")
    with running(tmp_path, "run", *common, *flags) as service:
        listen = (await service.logged("serving"))["listen"]
        asked = ("enqueue", root, "--service", listen)
        refused = await trio.to_thread.run_sync(lambda: finish(*asked))
        assert refused.code == 4
        done = await trio.to_thread.run_sync(
            lambda: finish(*asked, "--service-token-file", tokens, "--log-level", "debug")
        )
        assert done.code == 0, done.err
        assert "very-secret" not in service.err + done.err + refused.err
