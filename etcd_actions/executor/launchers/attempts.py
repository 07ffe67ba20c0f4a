"""Starts attempts by a launcher, finds those that were started before, and waits for their ends."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.untrusted_files import UnusableFile, in_thread
from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.outcome import clear
from etcd_actions.executor.attempts.output_directories import take
from etcd_actions.executor.attempts.output_files import Outputs
from etcd_actions.executor.attempts.start_errors import (
    NotStarted,
    OutputsInUse,
    check_command,
    not_started,
    of_os_error,
)
from etcd_actions.executor.launchers.launcher import (
    Launcher,
    LauncherUnavailable,
    Look,
    SharedLauncher,
    State,
)

# How often a start is tried whose supervisor ends at once.
_TRIES: Final = 3
# Seconds for the file system of the outputs.
_FILES_WITHIN: Final = 60.0
# Seconds for another executor that has the lock to start the attempt, and between checks of that.
_STARTED_WITHIN: Final = 60.0
_LOCK_EVERY: Final = 0.05
# Seconds to wait for a directory of outputs: a supervisor reports the end of its attempt before it
# releases its lock.
_RELEASED_WITHIN: Final = 1.0
# Seconds between two looks: at first, and later, since a long attempt may be noticed later.
_LOOK_FIRST: Final = 0.2
_LOOK_LAST: Final = 2.0
_LOOK_GROWS: Final = 1.2
# Seconds between two reads of a log that the launcher has.
_LOG_EVERY: Final = 2.0
UNIT: Final = "attempt"
"""The kind of the unit in which an attempt is examined, see the containment."""


class Attempts:
    """Starts and follows attempts.

    Args:
        launcher: Starts their commands.
        log_bytes: The most bytes of a log that is copied from the launcher.
        containment: The boundary of each look at an attempt, and of each copy of a log.

    Attributes:
        started: Number of attempts that were started.
        adopted: Number of attempts that another executor had started.
        outlive_worker: Whether attempts live on when their worker ends, for the next worker.
    """

    def __init__(
        self,
        launcher: Launcher,
        log_bytes: int = 10 * 1024 * 1024,
        containment: Containment | None = None,
    ) -> None:
        self._launcher = launcher
        self._log_bytes = log_bytes
        self._containment = containment or Containment()
        self.outlive_worker = isinstance(launcher, SharedLauncher)
        self.started = 0
        self.adopted = 0

    async def begin(self, place: AttemptDirectory, command: Command) -> None:
        """Start an attempt unless it was started before, also by an earlier executor.

        Cancelled, it may have been started: then a second call starts nothing.

        Raises:
            NotStarted: No process of it runs; ``by_machine`` is whether a retry may help.
            OutputsInUse: No process of it runs, since another attempt has its outputs' directory.
        """
        for _ in range(_TRIES):
            try:
                place.make()
                lock = await _lock(place)
            except UnusableFile as error:
                raise NotStarted.because(f"{place.path}: {error}") from error
            except OSError as error:
                raise of_os_error(place.path, error, "state") from error
            if lock is None or place.was_started:
                if lock is not None:
                    os.close(lock)
                self.adopted += 1
                return
            try:
                await _prepare(place, command, lock)
                if await self._launcher.start(place, command, lock):
                    place.note_started()
                    self.started += 1
                    return
            finally:
                os.close(lock)
        raise not_started(place.path, None, "its supervisor ended at once, each time", "supervisor")

    async def find(self, place: AttemptDirectory) -> None:
        """Look for an attempt that an executor with another state directory may have started.

        If the launcher knows it, it is noted as started: so :meth:`begin` follows it, and leaves
        the outputs that it may have.

        Raises:
            NotStarted: It is not known now whether it runs, or that it does cannot be noted.
        """
        if not isinstance(self._launcher, SharedLauncher) or place.was_started:
            return
        try:
            if not await self._launcher.finds(place):
                return
            place.make()
            place.note_object()
        except LauncherUnavailable as error:
            raise NotStarted.unknown(str(error)) from error
        except OSError as error:
            raise of_os_error(place.path, error, "state") from error
        place.note_started()
        if not place.was_started:
            raise not_started(place.path, None, "its start cannot be noted", "state")

    async def wait_ended(self, place: AttemptDirectory, launched: trio.Event | None = None) -> None:
        """Return once no process of the attempt lives. Cancelled, it lives on.

        Args:
            place: The attempt.
            launched: Set once its command runs, or has ended.
        """
        within, was_pending, read_log = 0.0, False, trio.current_time()
        while True:
            since = trio.current_time()
            seen = await self._look(place, within)
            if seen is not None and seen.state is State.PENDING:
                was_pending = True
            elif seen is not None:
                if was_pending:
                    # The time limit of the attempt counts from now on.
                    place.note_start(0.0)
                    was_pending = False
                if launched is not None:
                    launched.set()
            if seen is not None and seen.state is State.ENDED:
                break
            if trio.current_time() >= read_log + _LOG_EVERY:
                await self._read_log(place)
                # A long log is read less often.
                read_log = trio.current_time() + (trio.current_time() - since - within)
            await trio.sleep_until(since + within)
            within = min(max(within * _LOOK_GROWS, _LOOK_FIRST), _LOOK_LAST)
        await self._read_log(place)
        place.note_end(seen.exit_code, seen.reason)

    async def end(self, place: AttemptDirectory) -> None:
        """End an attempt; returns once no process of it lives, or that takes too long."""
        await self._launcher.stop(place)

    async def _look(self, place: AttemptDirectory, within: float) -> Look | None:
        """The state of an attempt; None if it cannot be known now."""
        seen: Look | None = None
        with self._containment.unit(UNIT, place.name), suppress(LauncherUnavailable):
            seen = await self._launcher.look(place, within=within)
        return seen

    async def _read_log(self, place: AttemptDirectory) -> None:
        """Copy the log into the attempt's directory, if the launcher has it."""
        with self._containment.unit(UNIT, place.name):
            try:
                data = await self._launcher.logs(place)
            except LauncherUnavailable:
                return
            if data is not None:
                place.write_log(data, self._log_bytes)


async def _lock(place: AttemptDirectory) -> int | None:
    """Lock an attempt that was not started, see :meth:`AttemptDirectory.try_lock`.

    If another executor has the lock and there is no supervisor yet, that executor is about to start
    the attempt, or fails to. This call waits until it is certain which.

    Raises:
        NotStarted: The other executor takes longer than a minute.
        UnusableFile, OSError: It cannot be locked.
    """
    until = trio.current_time() + _STARTED_WITHIN
    while True:
        lock = place.try_lock()
        if lock is not None or place.was_started or place.supervisor() is not None:
            return lock
        if trio.current_time() >= until:
            raise not_started(place.path, None, "another executor starts it now", "process")
        await trio.sleep(_LOCK_EVERY)


async def _prepare(place: AttemptDirectory, command: Command, lock: int) -> None:
    """Check the command, and take and clear its directory of outputs.

    After a cancellation the attempt stays locked until its directory of outputs is cleared.

    Raises:
        NotStarted, OutputsInUse: See :meth:`Attempts.begin`.
    """
    check_command(command.arguments, command.environment, command)
    try:
        place.check_files()
        if not place.note_object():
            raise NotStarted.because(f"{place.path} has the note of another object")
        await _take_outputs(place, command.outputs)
    except UnusableFile as error:
        raise NotStarted.because(str(error)) from error
    except OSError as error:
        raise of_os_error(place.path, error, "state") from error
    # The thread takes the lock. An abandoned one keeps it to its end, so that it removes nothing
    # that a later start of the attempt has written.
    held = [os.dup(lock)]
    try:
        await in_thread(_FILES_WITHIN, command.outputs, _clear, command.outputs, held)
    except UnusableFile as error:
        raise NotStarted.because(str(error)) from error
    except OSError as error:
        raise of_os_error(command.outputs, error, "outputs") from error
    finally:
        with suppress(IndexError):
            os.close(held.pop())


def _clear(outputs: Outputs, held: list[int]) -> None:
    """Clear a directory of outputs, then close the attempt's lock."""
    try:
        lock = held.pop()
    except IndexError:
        # It was abandoned before it began.
        return
    try:
        clear(outputs)
    finally:
        os.close(lock)


async def _take_outputs(place: AttemptDirectory, outputs: Outputs) -> None:
    """Take a directory of outputs; wait for an attempt that is about to end.

    Raises:
        OutputsInUse: Another attempt that lives has it.
        UnusableFile: The file system does not answer.
        OSError: The file of the directory cannot be written.
    """
    until = trio.current_time() + _RELEASED_WITHIN
    while (holder := await in_thread(_FILES_WITHIN, outputs, take, place, outputs)) is not None:
        if trio.current_time() >= until:
            raise OutputsInUse(holder.path)
        await trio.sleep(_RELEASED_WITHIN / 20)
