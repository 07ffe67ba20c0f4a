"""Attempts without an etcd, by each way of starting them, and SDKs that are none."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.launchers.attempts import Attempts
from etcd_actions.executor.launchers.fork_server import ForkServer, open_fork_server
from etcd_actions.executor.launchers.local import LocalLauncher
from tests.executor.objects import an_object
from tests.support.everyday import first_everyday

Way = Literal["exec", "launch", "fork"]
WAYS: tuple[Way, ...] = ("exec", "launch", "fork")
EVERYDAY_WAYS = first_everyday(WAYS[::-1])
"""For ``parametrize``: the others are variations of one promise."""

# Its a0 runs the Python code that it is given.
WORKING_SDK = """
import sys

def main():
    exec(sys.argv[1], {"__name__": "__main__"})
"""


def make_sdk(directory: Path, runtime: str | None, *, command: str | None = None) -> Path:
    """A python with a package ``flyte`` that is the test's own.

    Args:
        directory: Where it is made.
        runtime: The source of ``flyte._bin.runtime``; None for no package at all.
        command: The source of a program ``a0`` beside the python.
    """
    programs, packages = directory / "bin", directory / "packages"
    programs.mkdir(parents=True)
    packages.mkdir()
    if runtime is not None:
        package = packages / "flyte" / "_bin"
        package.mkdir(parents=True)
        (packages / "flyte" / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "runtime.py").write_text(runtime)
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    if command is not None:
        (programs / "a0").write_text(command)
        (programs / "a0").chmod(0o755)
    return python


class Bench:
    """Starts attempts that run Python code.

    Attributes:
        directory: The test's own; outputs are in ``out`` below it.
        fork_server: What starts them; None where they are executed.
    """

    def __init__(
        self,
        directory: Path,
        attempts: Attempts,
        fork_server: ForkServer | None,
        containment: Containment,
    ) -> None:
        self.directory = directory
        self.attempts = attempts
        self.fork_server = fork_server
        self.containment = containment

    def place(self, uid: str = "uid", attempt: int = 1) -> AttemptDirectory:
        return AttemptDirectory(self.directory / "state", an_object(uid=uid), attempt)

    def command(
        self,
        code: str,
        *,
        directory: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> Command:
        # Without the installed packages it starts in half the time.
        direct = [sys.executable, "-S", "-c", code]
        arguments = direct if self.fork_server is None else ["a0", code]
        return self.raw(*arguments, directory=directory, environment=environment)

    def raw(
        self,
        *arguments: str,
        directory: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> Command:
        path = f"{self.directory / 'sdk' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "HERE": str(self.directory)}
        return Command(
            list(arguments), own | (environment or {}), directory, self.directory / "out"
        )

    async def run(self, code: str, uid: str = "uid") -> int | None:
        """Run code to its end; gives its exit code."""
        place = self.place(uid)
        await self.attempts.begin(place, self.command(code))
        with trio.fail_after(30):
            await self.attempts.wait_ended(place)
        return place.exit_code


@asynccontextmanager
async def open_bench(
    directory: Path,
    way: Way,
    *,
    kill_grace: float = 5.0,
    log_bytes: int = 1 << 20,
    python: Path | None = None,
) -> AsyncIterator[Bench]:
    """Attempts for as long as the context lasts; what runs then is left running."""
    (directory / "state").mkdir(exist_ok=True)
    (directory / "out").mkdir(exist_ok=True)
    containment = Containment()
    async with AsyncExitStack() as stack:
        server = None
        if way == "fork":
            python = python or make_sdk(directory / "sdk", WORKING_SDK)
            server = await stack.enter_async_context(
                open_fork_server(python, directory / "state", containment)
            )
        launcher = None
        if way == "launch":
            launcher = await stack.enter_async_context(
                open_fork_server(Path(sys.executable), directory / "state", containment, plain=True)
            )
        nursery = await stack.enter_async_context(trio.open_nursery())
        local = LocalLauncher(nursery, kill_grace, log_bytes, server, launcher, containment)
        attempts = Attempts(local, log_bytes, containment)
        yield Bench(directory, attempts, server, containment)
        nursery.cancel_scope.cancel("the test is over")


def lives(pid: int) -> bool:
    """Whether a process lives; one that has ended and is not reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in (b"Z", b"X")


def numbers_in(directory: Path) -> list[int]:
    """The processes that noted their numbers, each by an empty file."""
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit()]
