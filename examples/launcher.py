"""A launcher of one's own: the executor, whose attempts are started by another engine.

    python launcher.py HOST:PORT PREFIX DIRECTORY

The engine here is the simplest one: a shell in the background, with a directory for each job. For
a batch system, submit, query and cancel a job by that name instead. The executor does the rest:
claims, retries, timeouts, aborts, outcomes. Interrupt it to end it: jobs
continue, and the next start finds them.
"""

import os
import shlex
import signal
import sys
from pathlib import Path

import structlog
import trio

from etcd_actions import open_actions_client, open_etcd
from etcd_actions.executor import (
    AttemptDirectory,
    Command,
    ExecutorSettings,
    Look,
    State,
    open_executor,
)

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

JOB = """\
echo $$ > {job}/pid.new; mv {job}/pid.new {job}/pid
cd {directory} && ({command}); echo $? > {job}/exit.new; mv {job}/exit.new {job}/exit
"""
# The job writes its own number, once it leads a session.
IN_BACKGROUND = """\
setsid sh ./script > log 2>&1 < /dev/null &
until [ -e pid ]; do sleep 0.01; done
"""


class ShellLauncher:
    """Starts each attempt as a shell script in a directory of that attempt's name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def start(self, place: AttemptDirectory, command: Command, lock: int) -> bool:
        """Start it, unless there is a job of its name."""
        job = self._directory / place.name
        try:
            job.mkdir(parents=True)
        except FileExistsError:
            return True
        directory = shlex.quote(str(command.directory or job))
        line = shlex.join(command.arguments)
        script = JOB.format(directory=directory, command=line, job=shlex.quote(str(job)))
        (job / "script").write_text(script)
        await trio.run_process(["sh", "-c", IN_BACKGROUND], cwd=job, env=command.environment)
        return True

    async def look(self, place: AttemptDirectory, *, within: float) -> Look:
        """Its exit code, once it has one."""
        job = self._directory / place.name
        lives = self._lives(job)
        try:
            return Look(State.ENDED, int((job / "exit").read_text()))
        except FileNotFoundError:
            if lives:
                return Look(State.RUNNING)
            return Look(State.ENDED, reason="the job was killed")

    async def stop(self, place: AttemptDirectory) -> None:
        """End its processes: with SIGTERM, after five seconds with SIGKILL."""
        job = self._directory / place.name
        for number, tries in ((signal.SIGTERM, 50), (signal.SIGKILL, 50)):
            for _ in range(tries):
                if not self._lives(job):
                    return
                os.killpg(int((job / "pid").read_text()), number)
                await trio.sleep(0.1)

    async def logs(self, place: AttemptDirectory) -> bytes:
        """Its output so far."""
        log = self._directory / place.name / "log"
        return log.read_bytes() if log.exists() else b""

    def _lives(self, job: Path) -> bool:
        try:
            os.killpg(int((job / "pid").read_text()), 0)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True


async def main(endpoint: str, prefix: str, directory: Path) -> None:
    """Run tasks until the process is interrupted."""
    settings = ExecutorSettings(
        python=Path(sys.executable), service="127.0.0.1:8091", state_dir=directory / "state"
    )
    async with (
        open_etcd(endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix.encode()) as client,
        open_executor(client, settings, launcher=ShellLauncher(directory / "jobs")),
    ):
        print("ready", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    except* KeyboardInterrupt:
        pass
