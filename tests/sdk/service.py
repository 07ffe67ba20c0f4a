"""``etcd-actions run`` with the local executor, as a process that can be killed."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import psutil
import trio

from tests.cli.command import Running, finish, running
from tests.support.etcd_server import free_port

__all__ = ["PROGRAMS", "Site", "free_port", "kill"]

PROGRAMS = Path(__file__).parent / "programs"


class Site:
    """What the services of a test have in common.

    Attributes:
        directory: The test's own.
        state_dir: The executors' state.
        executor: The flags of the executor.
    """

    def __init__(self, directory: Path, endpoint: str, prefix: bytes, python: Path) -> None:
        self.directory = directory
        self.state_dir = directory / "executor"
        self.notes = directory / "notes"
        self.notes.mkdir()
        self.common: tuple[str, ...] = ("--endpoints", endpoint, "--prefix", prefix.decode())
        self.python = ("--python", str(python))
        self.executor: tuple[str, ...] = ("--executor", "local")

    def service(self, port: int, *flags: str) -> AbstractContextManager[Running]:
        """A service on a port, for as long as the context lasts; then it is killed."""
        return running(
            self.directory,
            "run",
            *self.common,
            *self.python,
            "--listen",
            f"127.0.0.1:{port}",
            *self.executor,
            "--executor-state-dir",
            self.state_dir,
            "--executor-claim-ttl",
            "5",
            *flags,
        )

    def worker(self, name: str, *flags: str) -> AbstractContextManager[Running]:
        """A worker with a state directory of its own, for as long as the context lasts."""
        return running(
            self.directory,
            "worker",
            *self.common,
            *self.python,
            "--executor-state-dir",
            self.state_dir / name,
            "--executor-claim-ttl",
            "5",
            *flags,
        )

    async def submit(self, program: str, task: str, *inputs: str, run: str) -> None:
        """Put a program's root in, and do not wait for it."""
        flags = [flag for each in inputs for flag in ("--input", each)]
        finished = await trio.to_thread.run_sync(
            lambda: finish(
                "submit",
                f"{PROGRAMS / program}:{task}",
                *flags,
                *self.common,
                *self.python,
                "--run",
                run,
                "--output-base",
                self.directory / "runs" / run,
                "--detach",
            )
        )
        assert finished.code == 0, finished.err

    def starts(self) -> Counter[str]:
        """How often each action was started, by name and attempt."""
        try:
            return Counter((self.notes / "starts").read_text().splitlines())
        except FileNotFoundError:
            return Counter()

    def end_all(self) -> None:
        """End what lives on without its service: fork servers, and what they have started.

        All of them write into this test's directory.
        """
        for process in psutil.process_iter():
            if self._writes_here(process.pid):
                with suppress(psutil.Error):
                    process.kill()

    def _writes_here(self, pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/fd/2").readlink().is_relative_to(self.state_dir)
        except OSError:
            return False


def kill(service: Running) -> None:
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()
