"""Whole processes of ours, ``etcd-actions run``, that are killed, stopped, ended and restarted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from etcd_actions.testing.etcd_server import lasting_port
from tests.cli.command import environment
from tests.support.waiting import eventually

GRACE = 3.0
_PATIENCE = 30.0
# What the schedules bring about themselves.
_ERRORS = {"watch_lost", "quorum_lost", "run_service_rejected"}
_FAILURES = {
    "RunServiceUnavailable",
    "RunServiceActionUnknown",
    "Unavailable",
    "OutcomeUnknown",
    "NoSpace",
    "LeaseNotFound",
    "LeaseTooShort",
    "Compacted",
}
_EXPECTED_CODES = {"kill": -signal.SIGKILL, "term": 0}


@dataclass
class Life:
    """One start of a process, and how it ended.

    Attributes:
        process: Which one of the schedule.
        pid: Its number.
        log: What it wrote to standard error.
        began: When it was started.
        how: What ended it: ``kill``, ``term``, or empty for nothing of ours.
        code: Its exit code; None while it lives.
        took: Seconds from SIGTERM to the end.
        in_time: Whether the program had begun to handle signals when SIGTERM came.
        stopped: Seconds that it was stopped for, in all.
    """

    process: int
    pid: int
    log: Path
    began: float
    how: str = ""
    code: int | None = None
    took: float = 0.0
    in_time: bool = True
    stopped: float = 0.0

    def lines(self) -> list[str]:
        """Its log."""
        return self.log.read_text(errors="replace").splitlines()

    def events(self) -> Counter[str]:
        """How often it logged what, with the level: ``error value_undecodable``."""
        found: Counter[str] = Counter()
        for line in self.lines():
            logged = _parsed(line)
            if logged is not None:
                found[f"{logged.get('level')} {logged.get('event')}"] += 1
        return found

    def problems(self) -> list[str]:
        """What such a process must never do."""
        wrong = []
        where = f"process {self.process}, pid {self.pid}, {self.log.name}"
        expected = _EXPECTED_CODES.get(self.how)
        if self.code is not None and self.how == "":
            wrong.append(f"died: {where} ended by itself with {self.code}")
        elif self.code != expected and (self.in_time or self.code != -signal.SIGTERM):
            wrong.append(f"exit: {where} was sent {self.how} and ended with {self.code}")
        for line in self.lines():
            logged = _parsed(line)
            if logged is None:
                wrong.append(f"trace: {where} wrote {line[:300]}")
            elif _is_unexpected(logged):
                wrong.append(f"unexpected: {where} logged {line[:1500]}")
        return wrong


def _is_unexpected(logged: dict[str, Any]) -> bool:
    """Whether a line tells of a bug: not of what the schedule does to the process."""
    event = logged.get("event")
    if event == "handler_failed":
        return str(logged.get("error")).partition(":")[0] not in _FAILURES
    return event == "unit_failed" or (logged.get("level") == "error" and event not in _ERRORS)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


class Process:
    """One of the processes of a schedule: its ports stay the same over restarts.

    Args:
        number: Which one.
        directory: Where its logs go.
        arguments: What it is started with, besides its ports.
        module: What is run.
    """

    def __init__(
        self,
        number: int,
        directory: Path,
        arguments: list[str],
        *,
        module: str = "tests.schedules.process_main",
    ) -> None:
        self.number = number
        self.lives: list[Life] = []
        self.lock = trio.Lock()
        self.port, self.monitoring_port = lasting_port(), lasting_port()
        self._directory = directory
        self._arguments = [
            *arguments,
            f"--listen=127.0.0.1:{self.port}",
            f"--monitoring-listen=127.0.0.1:{self.monitoring_port}",
        ]
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it serves clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of its present life; 0 without one."""
        return self._process.pid if self._process is not None else 0

    @property
    def life(self) -> Life:
        """The present or the last one."""
        return self.lives[-1]

    def start(self) -> None:
        """Start it, and return at once."""
        log = self._directory / f"process-{self.number}-{len(self.lives)}.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, "run", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=out,
                # As the program does itself, before it has loaded gRPC.
                env=environment(),
            )
        self.lives.append(Life(self.number, self._process.pid, log, time.monotonic()))

    async def kill(self) -> None:
        """SIGKILL, and reap."""
        await self._end("kill", signal.SIGKILL)

    async def term(self) -> None:
        """SIGTERM, and wait for the end."""
        self.life.in_time = self._handles(signal.SIGTERM)
        await self._end("term", signal.SIGTERM)

    async def pause(self, seconds: float) -> None:
        """SIGSTOP for a while."""
        self._send(signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            self.life.stopped += seconds
            self._send(signal.SIGCONT)

    def look(self) -> None:
        """Note it if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            self.life.code = self._process.returncode

    def is_ready(self) -> bool:
        """Whether it says that it is; asks it, so it blocks for up to a second."""
        try:
            url = f"http://127.0.0.1:{self.monitoring_port}/readyz"
            with urllib.request.urlopen(url, timeout=1):
                return True
        except OSError:
            return False

    def close(self) -> None:
        """End it, however."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    async def _end(self, how: str, number: signal.Signals) -> None:
        process, life = self._process, self.life
        if process is None or life.code is not None:
            return
        self.look()
        if life.code is not None:
            return
        life.how = how
        asked = time.monotonic()
        self._send(number)
        with trio.move_on_after(_PATIENCE):
            await eventually(lambda: process.poll() is not None)
        if process.poll() is None:
            # It is told by its code.
            process.kill()
            process.wait()
        life.code, life.took = process.returncode, time.monotonic() - asked
        self._process = None

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _handles(self, number: int) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) & 1 << (number - 1))
