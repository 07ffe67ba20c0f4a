"""The array job for Slurm: its script by itself, with a worker, and on a Slurm of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etcd_actions import ActionId, Phase, open_actions_client
from etcd_actions.app.worker import Worker
from etcd_actions.config import SETTINGS, Environment, resolve
from etcd_actions.config.settings import (
    CPUS,
    DRAIN_DELAY,
    EXECUTOR_MEMORY,
    EXECUTOR_SLOTS,
    GPUS,
    GRACE,
)
from etcd_actions.etcd.api import Etcd
from etcd_actions.testing import EtcdServer
from tests.cli.command import ROOT, environment, until
from tests.deploy.slurm_cluster import slurm
from tests.executor.tasks import Machine
from tests.executor.tasks import until as until_phase
from tests.support.table import table

SCRIPT = ROOT / "docs" / "deploy" / "worker.sbatch"
ONE, OTHER = ActionId("p", "d", "r1", "a0", "o"), ActionId("p", "d", "r2", "a0", "o")
# Slurm's variables of an allocation.
ALLOCATED = {
    "SLURM_JOB_ID": "17",
    "SLURM_ARRAY_JOB_ID": "12",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_CPUS_PER_TASK": "4",
    "SLURM_CPUS_ON_NODE": "64",
    "SLURM_MEM_PER_NODE": "8192",
    "SLURMD_NODENAME": "n1",
}
GIVEN = {"ETCDCTL_ENDPOINTS": "10.0.0.5:2379", "ETCD_ACTIONS_BLOB_DIR": "/shared/blobs"}


def directives() -> dict[str, str]:
    """The options in the script."""
    lines = re.finditer(r"^#SBATCH --([a-z-]+)=?(.*)$", SCRIPT.read_text(), re.MULTILINE)
    return {found[1]: found[2] for found in lines}


@pytest.fixture
def printing(tmp_path: Path) -> str:
    """A command in the place of etcd-actions that prints its arguments and settings."""
    command = tmp_path / "etcd-actions"
    command.write_text('#!/bin/sh\necho "arguments $*"\nenv\n')
    command.chmod(0o755)
    return str(command)


def output(printing: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the script does with these variables, and the program that prints."""
    return subprocess.run(
        ["bash", SCRIPT, *arguments],
        env={"PATH": os.environ["PATH"], "ETCD_ACTIONS_COMMAND": printing, **variables},
        check=False,
        capture_output=True,
        text=True,
    )


def offered(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The settings that the worker gets."""
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    known = {setting.variable for setting in SETTINGS}
    ours = {name: value for name, value in found.items() if name in known}
    left = {name for name in found if name.startswith("ETCD_ACTIONS_")} - known
    assert left == {"ETCD_ACTIONS_COMMAND"}
    return ours


def test_it_offers_what_was_allotted(printing: str) -> None:
    done = output(printing, "--pool", "cpu", **ALLOCATED, **GIVEN, TMPDIR="/scratch")
    settings = offered(done)
    assert "arguments worker --pool cpu" in done.stdout
    assert "worker 12_3 on n1: 4 CPUs, 0 GPUs" in done.stdout
    resolved = resolve(SETTINGS, [Environment(settings)])
    assert not resolved.errors
    assert (resolved[CPUS].value, resolved[GPUS].value, resolved[EXECUTOR_SLOTS].value) == (4, 0, 4)
    assert resolved[EXECUTOR_MEMORY].value == 7 * 1024**3
    directory = settings["ETCD_ACTIONS_EXECUTOR_STATE_DIR"]
    assert directory == "/scratch/etcd-actions-worker-12_3"


@table(
    "variables, setting, value",
    [
        ({"SLURM_GPUS_ON_NODE": "2"}, "ETCD_ACTIONS_GPUS", "2"),
        ({"ETCD_ACTIONS_GPUS": "1", "SLURM_GPUS_ON_NODE": "2"}, "ETCD_ACTIONS_GPUS", "1"),
        ({"SLURM_CPUS_PER_TASK": ""}, "ETCD_ACTIONS_CPUS", "64"),
        # All of the node's memory, and memory by the CPU.
        ({"SLURM_MEM_PER_NODE": "0"}, "ETCD_ACTIONS_EXECUTOR_MEMORY", None),
        (
            {"SLURM_MEM_PER_NODE": "", "SLURM_MEM_PER_CPU": "2048"},
            "ETCD_ACTIONS_EXECUTOR_MEMORY",
            "7168MiB",
        ),
        ({"ETCD_ACTIONS_POOL": "gpu"}, "ETCD_ACTIONS_POOL", "gpu"),
        # A job that is no array.
        (
            {"SLURM_ARRAY_JOB_ID": "", "SLURM_ARRAY_TASK_ID": ""},
            "ETCD_ACTIONS_EXECUTOR_STATE_DIR",
            "/tmp/etcd-actions-worker-17_0",
        ),
    ],
)
def test_each_setting_follows_slurm_unless_it_is_given(
    printing: str, variables: dict[str, str], setting: str, value: str | None
) -> None:
    settings = offered(output(printing, **{**ALLOCATED, **GIVEN, **variables}))
    assert settings.get(setting) == value


@table("missing", [*GIVEN, "SLURM_JOB_ID"])
def test_what_is_missing_is_named(printing: str, missing: str) -> None:
    variables = {**ALLOCATED, **GIVEN}
    if missing == "SLURM_JOB_ID":
        del variables["SLURM_ARRAY_JOB_ID"]
    del variables[missing]
    done = output(printing, **variables)
    assert done.returncode != 0
    assert missing in done.stderr
    assert "arguments" not in done.stdout


def test_the_signal_comes_early_enough() -> None:
    found = directives()
    to, _, rest = found["signal"].partition(":")
    name, _, seconds = rest.partition("@")
    # B: only the batch script gets it, which is the worker.
    assert (to, name) == ("B", "TERM")
    text = re.search(r"ETCD_ACTIONS_GRACE:-(\w+)", SCRIPT.read_text())
    assert text is not None
    resolved = resolve(SETTINGS, [Environment({"ETCD_ACTIONS_GRACE": text[1]})])
    grace = resolved[GRACE].value + resolved[DRAIN_DELAY].value + Worker.ENDS_WITHIN
    assert int(seconds) >= grace + 10
    assert found["requeue"] == ""
    assert found["open-mode"] == "append"


def test_shellcheck_finds_nothing() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("there is no shellcheck: it is in Debian's package shellcheck")
    done = subprocess.run(
        [program, "--shell=bash", SCRIPT], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def settings_of(directory: Path, etcd: EtcdServer, prefix: bytes) -> dict[str, str]:
    """The variables of a user who submits the script on this machine."""
    command = directory / "etcd-actions"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m etcd_actions "$@"\n')
    command.chmod(0o755)
    return {
        "ETCD_ACTIONS_COMMAND": str(command),
        "ETCDCTL_ENDPOINTS": etcd.endpoint,
        "ETCD_ACTIONS_PREFIX": prefix.decode(),
        "ETCD_ACTIONS_BLOB_DIR": str(directory / "blobs"),
        "ETCD_ACTIONS_PYTHON": sys.executable,
        # That interpreter has no SDK.
        "ETCD_ACTIONS_EXECUTOR_FORK_SERVER": "false",
        "ETCD_ACTIONS_LOG_FORMAT": "json",
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.slow
async def test_a_signal_for_the_script_drains_the_worker(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    """As Slurm sends it before the time limit: to the batch script's process."""
    machine = Machine(tmp_path)
    go, log = tmp_path / "go", tmp_path / "log"
    given = settings_of(tmp_path, shared_etcd, prefix)
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", SCRIPT],
            env=environment(**ALLOCATED, **given, TMPDIR=str(tmp_path)),
            stdout=file,
            stderr=file,
        )
    try:
        await until(lambda: '"working"' in log.read_text() or process.poll() is not None)
        async with open_actions_client(etcd, prefix=prefix) as client:
            script = f'while [ ! -e "{go}" ]; do sleep 0.05; done'
            await client.enqueue(machine.task(ONE, script))
            await until_phase(client, ONE, Phase.RUNNING)
            process.send_signal(signal.SIGTERM)
            go.touch()
            await until(lambda: process.poll() is not None)
            assert process.returncode == 0, log.read_text()
            assert (await client.get_task_action(ONE)).phase is Phase.SUCCEEDED
    finally:
        process.kill()
        process.wait()
    assert len(machine.starts("a0")) == 1


@pytest.mark.slow
async def test_on_a_real_slurm(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    """Two workers: one is drained by a signal for the batch script, the other one is cancelled."""
    machine, place = Machine(tmp_path), tmp_path / "slurm"
    place.mkdir()
    given = settings_of(tmp_path, shared_etcd, prefix) | {
        "TMPDIR": str(place),
        "ETCD_ACTIONS_EXECUTOR_CLAIM_TTL": "5",
    }
    options = ("--array=0-1", "--cpus-per-task=1", "--mem=500M", f"--output={place}/worker-%a.log")
    with slurm(place) as cluster:
        job = cluster.submit(SCRIPT, *options, **given)
        async with open_actions_client(etcd, prefix=prefix) as client:
            for action_id in (ONE, OTHER):
                waits = f'while [ ! -e "{tmp_path}/{action_id.run}" ]; do sleep 0.05; done'
                action = machine.task(action_id, waits)
                # Each run has its own place for outputs.
                action.run_output_base = str(machine.base / action_id.run)
                await client.enqueue(action)
            # Each has the slot of one CPU.
            for action_id in (ONE, OTHER):
                await until_phase(client, action_id, Phase.RUNNING)
            numbers = {each: await number_of(place, job, each) for each in (ONE, OTHER)}
            assert set(numbers.values()) == {"0", "1"}
            cluster.call("scancel", "--batch", "--signal=TERM", f"{job}_{numbers[ONE]}")
            (tmp_path / ONE.run).touch()
            assert (await until_phase(client, ONE)).phase is Phase.SUCCEEDED
            await until(lambda: cluster.states(job).get(numbers[ONE]) == "COMPLETED")
            cluster.call("scancel", f"{job}_{numbers[OTHER]}")
            await until(lambda: cluster.states(job).get(numbers[OTHER]) == "CANCELLED")
            # A new worker runs the next attempt.
            (tmp_path / OTHER.run).touch()
            later = cluster.submit(SCRIPT, "--array=2", *options[1:], **given)
            ended = await until_phase(client, OTHER)
            assert (ended.phase, ended.attempts) == (Phase.SUCCEEDED, 2)
            cluster.call("scancel", "--batch", "--signal=TERM", f"{later}_2")
            await until(lambda: cluster.states(later).get("2") == "COMPLETED")


async def number_of(place: Path, job: str, action_id: ActionId) -> str:
    """The number in the array of the worker that runs an action."""
    pattern = f"etcd-actions-worker-{job}_*/attempts/*{action_id.run}-*"
    (found,) = await until(lambda: list(place.glob(pattern)))
    return found.parents[1].name.rpartition("_")[2]
