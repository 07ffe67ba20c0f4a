"""Starts the guard of a worker: a process that ends the attempts if the worker cannot.

A worker cannot if it is killed, stopped or suspended. `supervision/guard.py` is the program.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from etcd_actions._internal.call_time import boot_time
from etcd_actions.errors import ConfigError
from etcd_actions.executor.attempts.environment import helper_environment
from etcd_actions.executor.supervision import supervisor

_LOCK: Final = "worker.lock"
# Seconds to wait for the lock: the guard of a killed worker ends the attempts before it exits.
_FREE_WITHIN: Final = 15.0
# Seconds to wait for the end of the guard.
_ENDS_WITHIN: Final = 10.0
# The guard's program. Its interpreter does not have this package: it imports from the directory.
_PROGRAM: Final = "import sys; sys.path.append(sys.argv.pop(1)); import guard; guard.main()"
_DIRECTORY: Final = str(Path(supervisor.__file__).parent)

_log = structlog.get_logger(__name__)


class Guard:
    """The guard of one state directory; :func:`open_guard` makes it.

    Args:
        state_dir: The directory.
        lock: The descriptor with its lock.
    """

    def __init__(self, state_dir: Path, lock: int) -> None:
        self._state_dir = state_dir
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._sent = 0.0

    def extend(self, left: float) -> None:
        """Have the guard end the attempts ``left`` seconds from now, unless this is called again.

        It starts the guard if that does not run.

        Raises:
            OSError: The guard cannot be started.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        until = boot_time() + left
        # The guard has this time already: it changes only when the claims are renewed.
        if abs(until - self._sent) < 0.01:
            return
        with suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), f"{until:.3f}\n".encode())
            self._sent = until

    async def close(self) -> None:
        """End the guard, which kills the attempts that still run."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        with trio.move_on_after(_ENDS_WITHIN, shield=True):
            while process.poll() is None:  # noqa: ASYNC110 - another process
                await trio.sleep(0.02)

    def _start(self) -> None:
        if self._process is not None:
            _log.warning("guard_ended", code=self._process.returncode)
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._sent = 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, _DIRECTORY, str(self._state_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[self._lock],
            start_new_session=True,
            env=helper_environment(),
            cwd="/",
        )


@asynccontextmanager
async def open_guard(state_dir: Path) -> AsyncIterator[Guard]:
    """Lock a state directory for one worker, with its guard, while the context is open.

    Raises:
        ConfigError: Another worker has the directory.
    """
    lock = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(lock):
            _log.info("state_directory_in_use", path=str(state_dir), waits=_FREE_WITHIN)
        with trio.move_on_after(_FREE_WITHIN):
            while not _locked(lock):  # noqa: ASYNC110 - another process
                await trio.sleep(0.05)
        if not _locked(lock):
            raise ConfigError(
                f"--executor-state-dir {state_dir}: another worker uses it: give each worker a "
                "directory of its own"
            )
        guard = Guard(state_dir, lock)
        try:
            yield guard
        finally:
            await guard.close()
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
