"""A Ray cluster of a head and nodes on 127.0.0.1, on ports and in a directory of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import trio

from tests.cli.command import environment

_MARK = "RAY_CLUSTER_OF_A_TEST"
_START_WITHIN = 240.0
_LOOK_EVERY = 0.5


class RayCluster:
    """A head without slots for tasks, and two nodes; made by :func:`open_ray_cluster`.

    Attributes:
        address: The URL of the head's job interface.
    """

    def __init__(self, python: Path, directory: Path) -> None:
        self._ray = python.with_name("ray")
        self._directory = directory
        self._mark = secrets.token_hex(8)
        self._port, self._dashboard = _free_ports(2)
        self._agent = 0
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"http://127.0.0.1:{self._dashboard}"

    async def start(self) -> None:
        """Start what does not run, and wait until jobs can be submitted."""
        head = (
            *("--head", "--port", str(self._port), "--num-cpus", "0"),
            *("--include-dashboard", "true", "--dashboard-host", "127.0.0.1"),
            *("--dashboard-port", str(self._dashboard)),
            *("--ray-client-server-port", str(_free_ports(1)[0])),
            *("--temp-dir", str(self._directory)),
        )
        node = ("--address", f"127.0.0.1:{self._port}", "--num-cpus", "3")
        with trio.fail_after(_START_WITHIN):
            await self._start(self._answers, "head", head)
            await self._start(lambda: self.nodes() >= 2, "node1", node)
            await self._start(lambda: self.nodes() >= 3, "node2", node)

    def kill(self, name: str) -> None:
        """Kill all processes of the head or of a node, and what they have started."""
        process = self._processes.pop(name, None)
        for _ in range(50):
            found = list(self._of(name))
            for each in found:
                with suppress(psutil.Error):
                    each.kill()
            if process is not None:
                process.wait()
            if not found:
                return
            psutil.wait_procs(found, timeout=0.2)
        raise AssertionError(f"processes of {name} live")

    def running(self, text: str) -> list[psutil.Process]:
        """The processes of the cluster whose command has a text."""
        found = []
        for process in self._of(""):
            with suppress(psutil.Error):
                if text in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def nodes(self) -> int:
        """How many nodes live, by the head."""
        url = f"{self.address}/nodes?view=summary"
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            return int(response.read().count(b'"ALIVE"'))
        return 0

    def end(self) -> None:
        """End all of it."""
        for name in ("node1", "node2", "head", ""):
            self.kill(name)

    async def _start(self, is_up: Callable[[], bool], name: str, flags: tuple[str, ...]) -> None:
        """Start processes, again and again: a node ends some time after its head.

        A head does not start before the nodes of the last one have ended, and a node gives up on a
        busy machine.
        """
        while not is_up():
            if name not in self._processes or self._processes[name].poll() is not None:
                self.kill(name)
                self._open(name, *flags)
            process = self._processes[name]
            # Each look is a call of the head, which is busy with its own start.
            while process.poll() is None and not is_up():  # noqa: ASYNC110 - another process
                await trio.sleep(_LOOK_EVERY)

    def _answers(self) -> bool:
        url = f"{self.address}/api/jobs/"
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
        return False

    def _open(self, name: str, *flags: str) -> None:
        node, agent, environments, metrics, manager, objects = map(str, _free_ports(6))
        command = [
            *(str(self._ray), "start", "--block", "--disable-usage-stats"),
            *("--node-ip-address", "127.0.0.1", "--object-store-memory", str(80 * 1024**2)),
            *("--dashboard-agent-listen-port", node, "--dashboard-agent-grpc-port", agent),
            *("--runtime-env-agent-port", environments, "--metrics-export-port", metrics),
            *("--node-manager-port", manager, "--object-manager-port", objects),
            *flags,
        ]
        # Ray's own code warns.
        ours = environment()
        variables = {each: ours[each] for each in ours if not each.startswith("PYTHON")}
        variables |= {
            _MARK: f"{self._mark}-{name}",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
            "PATH": f"{self._ray.parent}{os.pathsep}{variables['PATH']}",
        }
        with (self._directory / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                cwd=self._directory,
                start_new_session=True,
            )

    def _of(self, name: str) -> Iterator[psutil.Process]:
        mark = f"{self._mark}-{name}"
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK, "").startswith(mark):
                    yield process


@contextmanager
def open_ray_cluster(python: Path) -> Iterator[RayCluster]:
    """A cluster that is not started yet; at the end all its processes are killed.

    Args:
        python: The interpreter of an environment with Ray and Flyte's SDK.
    """
    # Short, because Ray's sockets are in it.
    directory = Path("/tmp") / f"ray-{secrets.token_hex(4)}"
    directory.mkdir(mode=0o700)
    cluster = RayCluster(python, directory)
    try:
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(directory, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Different ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
