"""Whether there is room for one more attempt: slots, and memory."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.scheduling.board import Board

_MEASURE_EVERY = 0.5


class Room:
    """Counts who is here.

    Args:
        board: Knows which of them wait for children.
        slots: How many may be busy at once.
        memory: How many bytes they may use together; None for no limit.
        containment: The boundary of a measurement.
        ring_later: Called where the answer may change without any news.
    """

    def __init__(
        self,
        board: Board,
        slots: int,
        memory: int | None,
        containment: Containment,
        ring_later: Callable[[float], None],
    ) -> None:
        self._board = board
        self._slots = slots
        self._memory = memory
        self._containment = containment
        self._ring_later = ring_later
        # Of whom the process is not known yet; None before there is a place.
        self._starting: dict[str, AttemptDirectory | None] = {}
        self._groups: dict[str, int] = {}
        self._changed = True
        self._measured = -1.0
        self._used: int | None = None

    def enter(self, name: str) -> None:
        """An action is attended to."""
        self._board.hold(name)
        self._starting[name] = None

    def began(self, name: str, place: AttemptDirectory) -> None:
        """An attempt of it was started."""
        self._starting[name] = place
        self._changed |= self._groups.pop(name, None) is not None

    def leave(self, name: str) -> None:
        """It is not attended to any more."""
        self._board.release(name)
        self._starting.pop(name, None)
        self._changed |= self._groups.pop(name, None) is not None

    async def has_room(self) -> bool:
        """Whether one more may begin. One is always let run."""
        if self._board.busy >= self._slots:
            return False
        if self._memory is None or not (self._starting or self._groups):
            return True
        for name, place in list(self._starting.items()):
            pid = None if place is None else place.pid
            if pid is not None:
                del self._starting[name]
                self._groups[name] = pid
                self._changed = True
        if self._starting:
            # What begins now is not in any measurement yet.
            self._ring_later(_MEASURE_EVERY)
            return False
        if self._changed or trio.current_time() - self._measured > _MEASURE_EVERY:
            await self._measure()
        if self._used is not None and self._used >= self._memory:
            self._ring_later(_MEASURE_EVERY)
            return False
        return True

    async def _measure(self) -> None:
        """One that fails is none: then only slots count."""
        self._used, self._changed = None, False
        with self._containment.unit("measurement", "memory"):
            groups = set(self._groups.values())
            self._used = await trio.to_thread.run_sync(memory_of, groups, abandon_on_cancel=True)
        self._measured = trio.current_time()


def memory_of(groups: set[int]) -> int:
    """The bytes that groups of processes have in memory."""
    used = 0
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) in groups:
                used += process.memory_info().rss
        except (psutil.Error, ProcessLookupError):
            # It has ended meanwhile.
            continue
    return used
