"""The unit of workers: systemd accepts it, and a worker runs by it, drains and is found again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.app.worker import Worker
from etcd_actions.config import SETTINGS, Environment, resolve
from etcd_actions.config.settings import DRAIN_DELAY, GRACE
from etcd_actions.etcd.api import Etcd
from etcd_actions.testing import EtcdServer
from tests.cli.command import ROOT, Running, running
from tests.deploy.unit_files import Unit
from tests.executor.tasks import Machine, until
from tests.support.documents import block
from tests.support.waiting import eventually

DEPLOY = ROOT / "docs" / "deploy"
UNIT = DEPLOY / "etcd-actions-worker@.service"
PAGE = "docs/deploy/systemd.md"
ONE = ActionId("p", "d", "r1", "a0", "o")


def test_its_settings_exist_and_its_times_fit() -> None:
    unit = Unit(UNIT, "gpu")
    environment = unit.environment
    assert set(environment) <= {setting.variable for setting in SETTINGS}
    found = resolve(SETTINGS, [Environment(environment)])
    assert not found.errors
    assert unit.arguments == ["worker"]
    grace = found[GRACE].value + found[DRAIN_DELAY].value + Worker.ENDS_WITHIN
    assert float(unit.value("TimeoutStopSec")) >= grace + 10
    assert environment["ETCD_ACTIONS_POOL"] == "gpu"
    state = f"/var/lib/{unit.value('StateDirectory')}"
    assert environment["ETCD_ACTIONS_EXECUTOR_STATE_DIR"] == state
    # SIGTERM is for the worker alone, which waits for its tasks.
    assert unit.value("KillMode") == "mixed"
    assert unit.value("OOMPolicy") == "continue"
    # The folder that all mount has one owner.
    assert not unit.values("DynamicUser")


def test_the_settings_of_the_page() -> None:
    """The blocks of docs/deploy/systemd.md."""
    names = {setting.name for setting in SETTINGS}
    assert set(tomllib.loads(block(PAGE, "toml").text)) <= names
    lines = block(PAGE, "ini").text.splitlines()
    environment = dict(line.split("=", 1) for line in lines)
    assert set(environment) <= {setting.variable for setting in SETTINGS}
    assert not resolve(SETTINGS, [Environment(environment)]).errors


def verified(directory: Path, change: tuple[str, str] = ("", "")) -> str:
    """The complaints of systemd about the unit, with a change, for an instance."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze: it is in Debian's package systemd")
    text = UNIT.read_text().replace("/opt/etcd-actions/bin/etcd-actions", "/bin/true")
    unit = directory / "etcd-actions-worker@gpu.service"
    unit.write_text(text.replace(*change))
    done = subprocess.run(
        [program, "verify", "--man=no", unit], check=False, capture_output=True, text=True
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_systemd_accepts_it(tmp_path: Path) -> None:
    assert verified(tmp_path) == ""
    assert "Unknown key" in verified(tmp_path, ("KillMode=", "KilMode="))
    assert "kill mode" in verified(tmp_path, ("KillMode=mixed", "KillMode=everything"))


class Place:
    """A machine of a test on which the unit's paths are folders of the test."""

    def __init__(self, directory: Path, etcd: EtcdServer, prefix: bytes) -> None:
        self.directory = directory
        self.machine = Machine(directory)
        configured = directory / "etc"
        configured.mkdir()
        (configured / "worker.toml").write_text(
            f'endpoints = "{etcd.endpoint}"\nprefix = "{prefix.decode()}"\n'
            f'blob_dir = "{directory / "blobs"}"\npython = "{sys.executable}"\n'
        )
        # Of this instance only: a second one on the machine has another port.
        (configured / "worker-gpu.env").write_text("ETCD_ACTIONS_MONITORING_LISTEN=127.0.0.1:0\n")
        # Those of the unit's own paths; the state directory is made by systemd.
        moved = {
            "/etc/etcd-actions": configured,
            "/var/lib/etcd-actions-worker": directory / "state",
        }
        self.unit = Unit(UNIT, "gpu", moved)
        Path(self.unit.value("WorkingDirectory")).mkdir(parents=True, mode=0o700)

    async def enqueue(self, client: ActionsClient, script: str) -> None:
        action = self.machine.task(ONE, script)
        action.task.queue = "gpu"
        await client.enqueue(action)


@pytest.fixture
def place(tmp_path: Path, shared_etcd: EtcdServer, prefix: bytes) -> Place:
    return Place(tmp_path, shared_etcd, prefix)


@pytest.mark.slow
async def test_it_runs_the_tasks_of_its_pool_and_drains(
    place: Place, etcd: Etcd, prefix: bytes
) -> None:
    """A stop lets the attempt end that runs, and the command ends with 0."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        with running(
            place.directory, *place.unit.arguments, pipe=False, **place.unit.environment
        ) as worker:
            await worker.logged("working")
            go = place.directory / "go"
            await place.enqueue(client, f'while [ ! -e "{go}" ]; do sleep 0.05; done')
            await until(client, ONE, Phase.RUNNING)
            worker.signal(signal.SIGTERM)
            go.touch()
            assert await worker.wait() == 0
        ended = await client.get_task_action(ONE)
        assert ended.phase is Phase.SUCCEEDED
    assert len(place.machine.starts("a0")) == 1


@pytest.mark.faults
async def test_after_a_kill_the_restarted_worker_runs_the_next_attempts(
    place: Place, etcd: Etcd, prefix: bytes
) -> None:
    """Killed as the kernel does it, and started again as Restart= does it."""
    go = place.directory / "go"
    async with open_actions_client(etcd, prefix=prefix) as client:
        command = place.unit.arguments
        with running(place.directory, *command, pipe=False, **place.unit.environment) as worker:
            await worker.logged("working")
            await place.enqueue(client, f'while [ ! -e "{go}" ]; do sleep 0.05; done')
            await eventually(lambda: len(place.machine.starts("a0")) == 1)
            worker.signal(signal.SIGKILL)
            await worker.wait()
        with running(place.directory, *command, pipe=False, **place.unit.environment) as worker:
            await worker.logged("working")
            go.touch()
            ended = await until(client, ONE)
            assert ended.phase is Phase.SUCCEEDED
            await stopped(worker)
    assert ended.attempts == len(place.machine.starts("a0")) == 2


async def stopped(worker: Running) -> None:
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
