"""What a reflector has given out and an output has yet to take."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import structlog
import trio

from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.watch import Change

# Above either the reader waits: whoever takes our output is slower than etcd.
_MOST_PENDING = 20_000
_MOST_PENDING_BYTES = 64 * 1024 * 1024
# Seconds between warnings that the output is slow.
_TOLD_FOR = 60.0
# Taken in one go: enough to be cheap, few enough to let others run.
_BATCH = 500

_log = structlog.get_logger(__name__)


class Feed:
    """What the reflector has given out and nobody has written yet, in order.

    It is the reflector's sink and, for the moment of the first list's end, its task
    status: a mark in the queue keeps SYNCED in its place.
    """

    def __init__(self) -> None:
        self._pending: deque[Change | SyncedRow] = deque()
        self._bytes = 0
        self._closed = False
        self._told_until = -math.inf
        self._filled = trio.Event()
        self._room = trio.Event()

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Queue changes."""
        self._pending.extend(changes)
        self._bytes += sum(map(_size, changes))
        self._filled.set()

    def started(self, value: int | None = None) -> None:
        """The first list was given out, of revision ``value``."""
        self._pending.append(SyncedRow(value or 0))
        self._filled.set()

    async def wait_list_room(self) -> None:
        """Return when there is room for another page of a list."""
        await self.wait_stream_room()

    async def wait_stream_room(self) -> None:
        """Return at once, or when there is room again."""
        if self._is_full() and trio.current_time() > self._told_until:
            _log.warning("output_too_slow", pending=len(self._pending))
            self._told_until = trio.current_time() + _TOLD_FOR
        while self._is_full():
            # Several may wait: a list and the stream.
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._filled.set()

    async def take(self) -> list[Change | SyncedRow]:
        """The next ones, some hundred at most; empty at the end."""
        while not self._pending and not self._closed:
            self._filled = trio.Event()
            await self._filled.wait()
        taken = [self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))]
        self._bytes -= sum(map(_size, taken))
        if not self._is_full():
            self._room.set()
        return taken

    def _is_full(self) -> bool:
        return len(self._pending) > _MOST_PENDING or self._bytes > _MOST_PENDING_BYTES


def _size(item: Change | SyncedRow) -> int:
    return len(item.value or b"") + len(item.prev_value or b"") if isinstance(item, Change) else 0
