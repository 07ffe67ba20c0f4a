"""The command as a process of its own, always reaped."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import trio

from tests.support.warm import COMMAND, INTERPRETER, ROOT, WarmPopen

__all__ = ["DEADLINE", "ROOT", "Finished", "Running", "environment", "finish", "running", "until"]

DEADLINE = 60.0

T = TypeVar("T")


def environment(**extra: str) -> dict[str, str]:
    """Ours, without what would decide for the command where etcd is."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ETCDCTL_", "ETCD_ACTIONS_"))
        and name not in ("NO_COLOR", "COLUMNS")
    }
    ours = {
        **INTERPRETER,
        "ETCD_ACTIONS_LISTEN": "127.0.0.1:0",
        "ETCD_ACTIONS_MONITORING_LISTEN": "127.0.0.1:0",
    }
    return env | ours | extra


class Finished:
    """How a command ended that was waited for."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def complaint(self) -> str:
        """The one line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("etcd-actions: ")
        return lines[0]


def finish(*arguments: str | Path, stdin: str = "", **env: str) -> Finished:
    """Run a command to its end."""
    with WarmPopen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**env),
    ) as process:
        try:
            out, err = process.communicate(stdin, DEADLINE)
        except BaseException:
            process.kill()
            raise
    return Finished(process.returncode, out, err)


class Running:
    """A command that goes on. Standard output is a file unless the test reads a pipe."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._out = out
        self._err = err

    @property
    def pipe(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def err(self) -> str:
        return self._err.read_text()

    def rows(self) -> list[dict[str, Any]]:
        """The whole lines of standard output."""
        return [json.loads(line) for line in _whole_lines(self._out.read_text())]

    def logs(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = [json.loads(line) for line in _whole_lines(self._err.read_text()) if line[0] == "{"]
        return [line for line in lines if line["event"] == event]

    async def logged(self, event: str) -> dict[str, Any]:
        """The first log line of an event, waited for."""
        return (await self.until(lambda: self.logs(event)))[0]

    async def row(self, kind: str) -> dict[str, Any]:
        """The first row of a type, waited for."""
        rows = await self.until(lambda: [row for row in self.rows() if row["type"] == kind])
        return rows[0]

    async def until(self, look: Callable[[], T]) -> T:
        """Look again and again until there is something; the command must go on meanwhile."""

        def look_alive() -> T:
            found = look()
            assert found or self.process.poll() is None, self.err
            return found

        return await until(look_alive)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def handles(self, number: int) -> None:
        """Return once the command handles a signal: its code has begun to run."""
        mask = 1 << (number - 1)

        def looks() -> bool:
            try:
                status = Path(f"/proc/{self.pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return True
            caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
            return bool(int(caught.split()[1], 16) & mask)

        await until(looks)

    async def wait(self) -> int:
        """Wait for its end and return the code."""
        return await trio.to_thread.run_sync(self.process.wait, DEADLINE)


@contextmanager
def running(
    directory: Path,
    *arguments: str | Path,
    pipe: bool = False,
    within: Sequence[str | Path] = (),
    **env: str,
) -> Iterator[Running]:
    """Run a command until the test has ended it, or the context does.

    ``within`` is a program that executes the command, such as ``ip netns exec NAME``.
    """
    number = len(list(directory.glob("*.err")))
    out, err = directory / f"{number}.out", directory / f"{number}.err"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = WarmPopen(
            [*map(str, within), *COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else out_file,
            stderr=err_file,
            env=environment(**env),
        )
    try:
        yield Running(process, out, err)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def until(look: Callable[[], T]) -> T:
    """Look until there is something true, at most for the deadline."""
    give_up = time.monotonic() + DEADLINE
    while not (found := look()):
        if time.monotonic() > give_up:
            raise TimeoutError("waited for in vain")
        await trio.sleep(0.01)
    return found


def _whole_lines(text: str) -> list[str]:
    return text[: text.rfind("\n") + 1].splitlines()
