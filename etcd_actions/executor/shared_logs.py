"""The logs of workers' attempts, copied to the directories of their outputs while they grow.

The state directory of a worker is its own. So the log is also next to the outputs, which the
service reads: ``<base>/<action>/<attempt>/log/``. There are two files, as in the state directory:
when ``log`` is full it becomes ``log.before``. ``exit`` is written last.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions._internal.untrusted_files import in_thread, local_path
from etcd_actions.executor.attempts.attempt_directory import EXIT, AttemptDirectory
from etcd_actions.executor.attempts.attempt_log import AttemptLog
from etcd_actions.executor.supervision.bounded_log import LOG, LOG_BEFORE

_DIRECTORY: Final = "log"
# Seconds between two steps of a copy.
_COPY_EVERY: Final = 1.0
# Seconds for the file system of the copy.
_FILES_WITHIN: Final = 20.0
_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class SharedLogs:
    """Reads the logs that workers have copied.

    Args:
        is_readable: Whether the logs next to the outputs of a URI may be read.
    """

    def __init__(self, is_readable: Callable[[str], bool]) -> None:
        self._is_readable = is_readable

    @asynccontextmanager
    async def open(self, outputs: str) -> AsyncIterator[AttemptLog]:
        """Read the log next to the outputs of an attempt from its beginning.

        Raises:
            FileNotFoundError: There is none, or not yet.
            UnusableFile: It is not a regular file.
            OSError: It cannot be read.
        """
        path = local_path(outputs)
        if path is None or not path.is_absolute() or not self._is_readable(outputs):
            raise FileNotFoundError(outputs)
        place = AttemptDirectory.at(path / _DIRECTORY)
        log = await in_thread(_FILES_WITHIN, path, AttemptLog, place)
        try:
            yield log
        finally:
            log.close()


@asynccontextmanager
async def copied_log(
    place: AttemptDirectory, outputs: Path, most: int, containment: Containment
) -> AsyncIterator[None]:
    """Copy the log of an attempt while the context is open, and the rest when it is left.

    A failure of the copy is counted, and ends the copy alone.

    Args:
        place: The attempt.
        outputs: The directory of its outputs.
        most: The most bytes of the copy.
        containment: The boundary.
    """
    copy = _LogCopy(place, outputs / _DIRECTORY, most)
    unit = partial(containment.unit, "attempt", f"the log of {place.path}")
    try:
        async with owned_tasks("the copy of a log") as nursery:

            async def keep_copying() -> None:
                with unit():
                    while True:
                        await trio.sleep(_COPY_EVERY)
                        await copy.step()

            nursery.start_soon(keep_copying)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel("the attempt has ended")
        with unit(), trio.move_on_after(_FILES_WITHIN):
            await copy.step()
            await in_thread(_FILES_WITHIN, copy.directory, copy.finish)
    finally:
        copy.close()


class _LogCopy:
    """The copy of one log, which continues where its last step ended.

    Args:
        place: The attempt.
        directory: The directory of the copy.
        most: The most bytes of both files of the copy.
    """

    def __init__(self, place: AttemptDirectory, directory: Path, most: int) -> None:
        self.directory = directory
        self._place = place
        self._half = max(most // 2, 1)
        self._source: AttemptLog | None = None
        self._size = 0
        self._hangs = False

    async def step(self) -> None:
        """Copy the bytes that were written since the last step."""
        if self._source is None:
            try:
                self._source = await trio.to_thread.run_sync(AttemptLog, self._place)
            except FileNotFoundError:
                return
        # Shielded: after a cancellation a part might be missing, or be written twice.
        with trio.CancelScope(shield=True):
            while not self._hangs and (data := await self._source.read()):
                self._hangs = True
                with trio.move_on_after(_FILES_WITHIN):
                    await trio.to_thread.run_sync(self._write, data, abandon_on_cancel=True)
                    self._hangs = False

    def close(self) -> None:
        """Close the log that is copied. Idempotent."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def finish(self) -> None:
        """Note that the log is complete."""
        if self.directory.is_dir() and not self._hangs:
            code = self._place.exit_code
            self._append(EXIT, f"{-1 if code is None else code}".encode())

    def _write(self, data: bytes) -> None:
        if not self._size:
            self.directory.mkdir(parents=True, exist_ok=True)
        elif self._size + len(data) > self._half:
            (self.directory / LOG).replace(self.directory / LOG_BEFORE)
            self._size = 0
        self._append(LOG, data)
        self._size += len(data)

    def _append(self, name: str, data: bytes) -> None:
        file = os.open(self.directory / name, _APPEND, 0o600)
        try:
            os.write(file, data)
        finally:
            os.close(file)
