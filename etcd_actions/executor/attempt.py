"""Runs one attempt: starts its process, or finds it again, and waits for its end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Final

import structlog
import trio

from etcd_actions.executor.command import Command
from etcd_actions.executor.fork_server import ForkServer
from etcd_actions.executor.outcome import clear
from etcd_actions.executor.places import AttemptPlace

_LOOK_EVERY = 0.5
# The end of a process is seen before whoever reaped it has written it down.
_EXIT_IN = 2.0

# Marks the start, and the end, as the fork server does. In the background, so that it is no
# child of ours and outlives us; $$ is the number of its group, which signals go to.
_LAUNCHER: Final = """
directory=$1; shift
{
    echo $$ >"$directory/started.new" && mv "$directory/started.new" "$directory/started"
    "$@"
    echo $? >"$directory/exit.new" && mv "$directory/exit.new" "$directory/exit"
} &
"""

_log = structlog.get_logger(__name__)


class Attempts:
    """Starts and follows attempts.

    Args:
        fork_server: What starts the SDK's commands; None to execute them like others.
        nursery: Where the ends of processes that it does not start are waited for.
        kill_grace: Seconds between asking a process to end and killing it.
    """

    def __init__(
        self, fork_server: ForkServer | None, nursery: trio.Nursery, kill_grace: float
    ) -> None:
        self._fork_server = fork_server
        self._nursery = nursery
        self._kill_grace = kill_grace
        self._closed: dict[Path, trio.Event] = {}
        self.started = 0
        self.adopted = 0

    async def begin(self, place: AttemptPlace, command: Command) -> None:
        """See to it that the attempt was started, exactly once.

        One that lives, or has lived, is left as it is: an executor before us started it.
        """
        place.make()
        while True:
            lock = place.try_lock()
            if lock is None or place.was_started:
                if lock is not None:
                    os.close(lock)
                self.adopted += 1
                return
            log = place.open_log()
            try:
                if await self._start(place, command, lock, log):
                    self.started += 1
                    return
            finally:
                os.close(lock)
                os.close(log)

    async def wait_ended(self, place: AttemptPlace, *, exit_within: float = _EXIT_IN) -> None:
        """Return once no process of the attempt lives. Cancelled, it lives on.

        Args:
            place: Which attempt.
            exit_within: How long to wait for it to be written down how it ended.
        """
        event = self._closed.get(place.path)
        if event is None:
            fork_server = self._fork_server
            event = trio.Event() if fork_server is None else fork_server.ended(place)
        while True:
            with trio.move_on_after(_LOOK_EVERY):
                await event.wait()
            if not place.is_alive:
                break
            if event.is_set():
                # The fork server is gone, or the process left others behind.
                event = trio.Event()
        with trio.move_on_after(exit_within):
            while place.exit_code is None:  # noqa: ASYNC110 - a file rings no bell
                await trio.sleep(0.02)

    def forget(self, place: AttemptPlace) -> None:
        """Nobody asks for an attempt any more."""
        if self._fork_server is not None:
            self._fork_server.forget(place)
        self._closed.pop(place.path, None)

    async def end(self, place: AttemptPlace) -> None:
        """Ask an attempt to end, and kill it when it does not; returns once it has ended."""
        place.kill(signal.SIGTERM)
        with trio.move_on_after(self._kill_grace) as scope:
            await self.wait_ended(place, exit_within=0)
        if scope.cancelled_caught:
            place.kill(signal.SIGKILL)
            await self.wait_ended(place, exit_within=0)

    async def _start(self, place: AttemptPlace, command: Command, lock: int, log: int) -> bool:
        directory = command.directory
        if directory is None:
            directory = place.path / "work"
            directory.mkdir(exist_ok=True)
        clear(command.outputs)
        if command.is_sdk and self._fork_server is not None:
            request = place.write_request(
                {
                    "arguments": command.arguments,
                    "environment": command.environment,
                    "directory": str(directory),
                }
            )
            return await self._fork_server.start(place, request, lock, log)
        alive, held = os.pipe()
        try:
            await trio.run_process(
                ["/bin/sh", "-c", _LAUNCHER, "sh", str(place.path), *command.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock, held),
                start_new_session=True,
                env=command.environment,
                cwd=directory,
            )
        except BaseException:
            os.close(alive)
            raise
        finally:
            os.close(held)
        closed = self._closed[place.path] = trio.Event()
        self._nursery.start_soon(_wait_closed, alive, closed)
        return True


async def _wait_closed(descriptor: int, closed: trio.Event) -> None:
    """Wait until nobody has the other end of a pipe any more."""
    try:
        await trio.lowlevel.wait_readable(descriptor)
        closed.set()
    finally:
        os.close(descriptor)
