"""The proxies of the environment: nothing on this machine is ever asked for through one."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import open_etcd
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.service_client import open_service_client
from etcd_actions.etcd import TransportName
from etcd_actions.executor.attempts.environment import spare_loopback
from etcd_actions.run_service import open_run_service
from tests._internal.test_tracing import collector
from tests.cli.command import finish, running
from tests.cli.test_hostile_service import grpc_service
from tests.run_service.test_grpc import UPDATE
from tests.support.etcd_server import EtcdServer
from tests.support.run_service_server import RunServiceServer

_NAMES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_NONE = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


class Trap:
    """A proxy that takes connections, notes them, and ends them."""

    def __init__(self) -> None:
        self.taken = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def environment(self) -> dict[str, str]:
        """All variables that name it."""
        return dict.fromkeys([*_NAMES, *map(str.upper, _NAMES)], self.url) | dict.fromkeys(
            _NONE, ""
        )

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                taken, _ = self._socket.accept()
            except OSError:
                return
            self.taken += 1
            taken.close()


@contextmanager
def trapped() -> Iterator[Trap]:
    trap = Trap()
    try:
        yield trap
    finally:
        trap.close()


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trap]:
    """A proxy that each variable of this process names."""
    with trapped() as trap:
        for name, value in trap.environment().items():
            monkeypatch.setenv(name, value)
        yield trap


def test_the_trap_would_catch_a_client_that_asks_the_environment(
    trap: Trap, shared_etcd: EtcdServer
) -> None:
    """Else the other tests would say nothing."""
    with pytest.raises((OSError, http.client.HTTPException)):
        # The opener of the module remembers the variables of its first use.
        urllib.request.build_opener().open(f"http://{shared_etcd.endpoint}/health", timeout=10)
    assert trap.taken == 1


async def test_etcd_is_asked_directly(
    trap: Trap, shared_etcd: EtcdServer, prefix: bytes, transport: TransportName
) -> None:
    async with open_etcd(shared_etcd.endpoint, transport=transport) as etcd:
        assert (await etcd.put(prefix, b"v")).revision > 1
    assert trap.taken == 0


async def test_the_run_service_is_asked_directly(trap: Trap) -> None:
    with RunServiceServer() as server:
        async with open_run_service(server.endpoint) as run_service:
            await run_service.update_action_status(UPDATE)
    assert trap.taken == 0


async def test_the_service_is_asked_directly(trap: Trap) -> None:
    """By the commands that have ``--service``."""
    with grpc_service(lambda *_: b"") as service, trio.fail_after(30):
        async with open_service_client(service) as asked:
            await asked.abort(pb.AbortRequest())
    assert trap.taken == 0


@pytest.mark.parametrize("name", [*_NAMES, *map(str.upper, _NAMES)])
def test_a_task_with_a_proxy_asks_this_machine_directly(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other machines it asks as it was told; what it was told to spare stays."""
    environment = {name: "http://10.0.0.1:3128", "no_proxy": "example.org"}
    spare_loopback(environment)
    assert environment["no_proxy"] == environment["NO_PROXY"] == environment["no_grpc_proxy"]
    for variable in (*_NAMES, *map(str.upper, _NAMES), *_NONE):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    for host, direct in (("127.0.0.1", True), ("localhost", True), ("example.org", True)):
        assert bool(urllib.request.proxy_bypass(f"{host}:8090")) is direct
    assert not urllib.request.proxy_bypass("flyte.example.com")


def test_a_task_without_a_proxy_is_told_nothing_of_them() -> None:
    environment = {"PATH": "/bin", "http_proxy": ""}
    spare_loopback(environment)
    assert environment == {"PATH": "/bin", "http_proxy": ""}
    everything = {"HTTP_PROXY": "http://10.0.0.1:3128", "NO_PROXY": "*"}
    spare_loopback(everything)
    assert everything["NO_PROXY"] == everything["no_proxy"] == "*"


@pytest.mark.slow
async def test_a_whole_process_and_its_commands_ask_directly(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, transport: TransportName
) -> None:
    """etcd, the run service, the collector of traces, the service: none through the proxy."""
    common = (
        *("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()),
        *("--transport", transport),
    )
    root = tmp_path / "root.json"
    root.write_text(
        '{"actionId":{"run":{"org":"o","project":"p","domain":"d","name":"r1"},"name":"a0"},'
        '"inputUri":"s3://b/in","runOutputBase":"s3://b/out",'
        '"task":{"spec":{"taskTemplate":{"type":"python"},"shortName":"f"}}}'
    )
    with (
        trapped() as trap,
        RunServiceServer() as run_service,
        collector() as (url, bodies),
        running(
            tmp_path,
            "run",
            *common,
            *("--otlp-endpoint", url, "--run-service", str(run_service.endpoint)),
            pipe=False,
            **trap.environment(),
        ) as service,
    ):
        listen = (await service.logged("serving"))["listen"]
        for command in (
            ("enqueue", root, "--service", listen),
            ("status", "p/d/r1/a0", "SUCCEEDED", "--service", listen),
            ("list", *common),
            ("doctor", *common),
        ):
            ended = await trio.to_thread.run_sync(partial(finish, *command, **trap.environment()))
            # What doctor finds is of no matter here.
            assert ended.code in (0, ExitCode.WARNINGS), ended.err
        await service.until(lambda: (bool(run_service.told) and bool(bodies)) or None)
        service.process.terminate()
        assert await service.wait() == 0
        assert trap.taken == 0
