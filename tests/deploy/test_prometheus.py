"""A real Prometheus that scrapes a real process: no panel is empty under load."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId
from etcd_actions.testing import EtcdServer
from tests.cli.command import environment, running
from tests.deploy.test_dashboard import DEPLOY, filled, panels
from tests.executor.tasks import Machine
from tests.server.clients import ConnectClient
from tests.support.etcd_server import free_port
from tests.support.waiting import eventually_holds

pytestmark = pytest.mark.slow


class Prometheus:
    """Its HTTP API."""

    def __init__(self, port: int) -> None:
        self._port = port

    def query(self, expression: str) -> list[dict[str, Any]]:
        text = urllib.parse.urlencode({"query": expression})
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)) as wire:
            wire.request("GET", f"/api/v1/query?{text}")
            response = wire.getresponse()
            body = response.read()
            if response.status != http.HTTPStatus.OK:
                raise OSError(body.decode())
            answer = json.loads(body)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def values(self, expression: str) -> list[dict[str, Any]]:
        """The result; nothing while it does not serve yet."""
        try:
            return await trio.to_thread.run_sync(self.query, expression)
        except OSError:
            return []


@asynccontextmanager
async def scraping(
    directory: Path,
    target: str,
    rules: Path = DEPLOY / "alerts.yml",
    *,
    workers: dict[str, str] | None = None,
) -> AsyncIterator[Prometheus]:
    """Prometheus by docs/deploy/prometheus.yml, of one process, more often than there.

    ``workers`` are further targets, each with its pool.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("there is no Prometheus: it is Debian's package prometheus")
    settings = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    settings["rule_files"] = [str(rules)]
    (job,) = settings["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    for each, pool in (workers or {}).items():
        settings["scrape_configs"].append(
            {
                "job_name": "etcd-actions-worker",
                "static_configs": [{"targets": [each], "labels": {"pool": pool}}],
            }
        )
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings))
    port = free_port()
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            env=environment(),
        )
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait()


def task(machine: Machine, run: str, script: str) -> pb.EnqueueRequest:
    return pb.EnqueueRequest(action=machine.task(ActionId("p", "d", run, "a0"), script))


async def test_no_panel_is_empty_under_load(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    machine = Machine(tmp_path)
    arguments = ("run", "--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
    executing = (
        *("--executor", "local", "--python", sys.executable),
        *("--executor-state-dir", machine.state_dir, "--blob-dir", tmp_path / "blobs"),
    )
    with running(tmp_path, *arguments, *executing) as run:
        service = (await run.logged("serving"))["listen"]
        target = (await run.logged("monitoring"))["listen"]
        client = ConnectClient(service)
        async with scraping(tmp_path, target) as prometheus, trio.open_nursery() as nursery:
            nursery.start_soon(load, client, machine)
            # Two scrapes are enough for a rate; a run needs a moment to end.
            empty: list[str] = ["all"]
            with trio.move_on_after(60):
                while empty:
                    empty = [
                        f"{panel['title']}: {target['expr']}"
                        for panel in panels()
                        for target in panel["targets"]
                        if not real(await prometheus.values(filled(target["expr"], "30s")))
                    ]
            assert empty == []

            async def is_leading() -> bool:
                found = await prometheus.values("etcd_actions_leader")
                return [each["value"][1] for each in found] == ["1"]

            await eventually_holds(is_leading)
            assert await prometheus.values('ALERTS{severity="critical",alertstate="firing"}') == []
            nursery.cancel_scope.cancel("seen enough")


async def load(client: ConnectClient, machine: Machine) -> None:
    """Tasks that succeed and fail, without end."""
    number = 0
    while True:
        number += 1
        for script in ("exit 0", "exit 3"):
            request = task(machine, f"r{number}{script[-1]}", script)
            await trio.to_thread.run_sync(partial(client.call, "Enqueue", request))
        await trio.sleep(0.2)  # The pace of the load.


def real(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The values that are numbers: a rate of nothing by nothing is none."""
    return [each for each in found if each["value"][1] != "NaN"]
