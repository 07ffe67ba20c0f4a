"""The limits of running attempts: slots, and memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import psutil
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.scheduling.board import Board

# Seconds between two measurements of the memory.
_MEASURE_EVERY: Final = 0.5


class Capacity:
    """The slots and the memory of the actions that run.

    Args:
        board: Counts the busy slots.
        slots: The number of actions that may be busy at once.
        memory: The limit of their memory together, in bytes; None for no limit.
        containment: The boundary of a measurement.
        wake_later: Called with seconds after which memory may be free without any update.
    """

    def __init__(
        self,
        board: Board,
        slots: int,
        memory: int | None,
        containment: Containment,
        wake_later: Callable[[float], None],
    ) -> None:
        self._board = board
        self._slots = slots
        self._memory = memory
        self._containment = containment
        self._wake_later = wake_later
        # Actions whose process is not known yet; None before they have a directory.
        self._starting: dict[str, AttemptDirectory | None] = {}
        # The process group of each action.
        self._groups: dict[str, int] = {}
        self._changed = True
        self._measured = -1.0
        self._used: int | None = None

    def enter(self, name: str) -> None:
        """Count an action that takes a slot."""
        self._board.hold(name)
        self._starting[name] = None

    def began(self, name: str, place: AttemptDirectory) -> None:
        """Note that an attempt of the action was started."""
        self._starting[name] = place
        self._changed |= self._groups.pop(name, None) is not None

    def leave(self, name: str) -> None:
        """Release the slot of an action."""
        self._board.release(name)
        self._starting.pop(name, None)
        self._changed |= self._groups.pop(name, None) is not None

    async def is_free(self) -> bool:
        """Whether one more action may start. The memory never prevents the only one."""
        if self._board.busy >= self._slots:
            return False
        if self._memory is None or not (self._starting or self._groups):
            return True
        for name, place in list(self._starting.items()):
            if place is not None and (pid := place.pid) is not None:
                del self._starting[name]
                self._groups[name] = pid
                self._changed = True
        # No measurement includes a process that is being started.
        is_free = not self._starting
        if is_free:
            if self._changed or trio.current_time() - self._measured > _MEASURE_EVERY:
                await self._measure()
            is_free = self._used is None or self._used < self._memory
        if not is_free:
            self._wake_later(_MEASURE_EVERY)
        return is_free

    async def _measure(self) -> None:
        """Measure the memory; after a failure only slots count."""
        self._used, self._changed = None, False
        with self._containment.unit("measurement", "memory"):
            groups = set(self._groups.values())
            self._used = await trio.to_thread.run_sync(memory_of, groups, abandon_on_cancel=True)
        self._measured = trio.current_time()


def memory_of(groups: set[int]) -> int:
    """The resident bytes of groups of processes."""
    used = 0
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) in groups:
                used += process.memory_info().rss
        except (psutil.Error, ProcessLookupError):
            # It has ended.
            continue
    return used
