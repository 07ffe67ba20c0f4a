"""A Slurm of a test's own: a controller and two nodes on loopback, of Debian's packages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.etcd_server import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue")
_START_SECONDS = 60.0
# Two nodes of this machine, each with more CPUs than it may have.
_SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock
CryptoType=crypto/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1
KillWait=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000\n"
)


class Slurm:
    """A cluster that runs."""

    def __init__(self, settings: Path) -> None:
        self._environment = {"PATH": os.environ["PATH"], "SLURM_CONF": str(settings)}

    def call(self, *command: str | Path, **variables: str) -> str:
        """Run one of Slurm's commands: its output."""
        done = subprocess.run(
            command,
            env=self._environment | variables,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, script: Path, *options: str, **variables: str) -> str:
        """The number of a new job."""
        return self.call("sbatch", "--parsable", *options, script, **variables)

    def states(self, job: str) -> dict[str, str]:
        """The states of the tasks of an array job, by their numbers."""
        lines = self.call("squeue", "--noheader", "--states=all", "--array", "-o%K %T", "-j", job)
        return dict(line.split() for line in lines.splitlines())


@contextmanager
def slurm(directory: Path) -> Iterator[Slurm]:
    """Start one; all of its jobs and processes have ended afterwards."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        pytest.skip(f"no {missing[0]}: Debian's packages munge, slurmctld, slurmd, slurm-client")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as root only")
    host = socket.gethostname()
    (directory / "state").mkdir()
    key = directory / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    # munged wants a folder that others cannot write.
    directory.chmod(0o755)
    settings = directory / "slurm.conf"
    text = _SETTINGS.format(host=host, port=free_port(), directory=directory)
    for name in ("n1", "n2"):
        text += _NODE.format(name=name, host=host, port=free_port())
    settings.write_text(text + "PartitionName=main Nodes=n1,n2 Default=YES State=UP\n")
    files = {
        name: f"--{name}={directory / f'munge.{name}'}"
        for name in ("pid-file", "seed-file", "log-file")
    }
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}",
         f"--socket={directory / 'munge.sock'}", *files.values()],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]  # fmt: skip
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            stack.enter_context(_running(directory / f"{number}.log", command, settings))
            if number == 0:
                _wait_for((directory / "munge.sock").exists)
        cluster = Slurm(settings)
        _wait_for(lambda: _nodes(cluster) == ["idle", "idle"])
        try:
            yield cluster
        finally:
            cluster.call("scancel", "--user=root")
            _wait_for(lambda: cluster.call("squeue", "--noheader") == "")


def _nodes(cluster: Slurm) -> list[str]:
    try:
        return cluster.call("sinfo", "--noheader", "-N", "-o%T").split()
    except AssertionError:
        return []


@contextmanager
def _running(log: Path, command: list[str], settings: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env={"PATH": _path(), "SLURM_CONF": str(settings)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("Slurm does not do it")
        time.sleep(0.1)


def _path() -> str:
    """The daemons are where only root looks."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
