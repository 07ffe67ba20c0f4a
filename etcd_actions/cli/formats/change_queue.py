"""The queue between a reflector and an output."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import structlog
import trio

from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.watch import Change

# Above either limit the reflector waits: the output is slower than etcd.
_MOST_PENDING = 20_000
_MOST_PENDING_BYTES = 64 * 1024 * 1024
# Seconds between warnings about a slow output.
_WARNING_INTERVAL = 60.0
# Items popped at a time: enough to be cheap, few enough to let other tasks run.
_BATCH = 500

_log = structlog.get_logger(__name__)


class ChangeQueue:
    """The changes that the reflector delivered and the output has not written, in order.

    It is the reflector's sink. It is also the task status of the reflector, for the end of the
    first list: so SYNCED is an item of the queue, in order with the changes.
    """

    def __init__(self) -> None:
        self._pending: deque[Change | SyncedRow] = deque()
        self._bytes = 0
        self._closed = False
        self._next_warning = -math.inf
        self._filled = trio.Event()
        self._capacity = trio.Event()

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Queue changes."""
        self._pending.extend(changes)
        self._bytes += sum(map(_size, changes))
        self._filled.set()

    def started(self, value: int | None = None) -> None:
        """Queue the end of the first list, of revision ``value``."""
        self._pending.append(SyncedRow(value or 0))
        self._filled.set()

    async def wait_list_capacity(self) -> None:
        """Return once the reflector may read another page of a list."""
        await self.wait_stream_capacity()

    async def wait_stream_capacity(self) -> None:
        """Return once the reflector may receive more changes of a stream."""
        if self._is_full() and trio.current_time() > self._next_warning:
            _log.warning("output_too_slow", pending=len(self._pending))
            self._next_warning = trio.current_time() + _WARNING_INTERVAL
        while self._is_full():
            # A list and the stream can wait at the same time.
            if self._capacity.is_set():
                self._capacity = trio.Event()
            await self._capacity.wait()

    def close(self) -> None:
        """End the queue after the changes that it has."""
        self._closed = True
        self._filled.set()

    async def pop(self) -> list[Change | SyncedRow]:
        """The next items, at most some hundred; empty at the end."""
        while not self._pending and not self._closed:
            self._filled = trio.Event()
            await self._filled.wait()
        items = [self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))]
        self._bytes -= sum(map(_size, items))
        if not self._is_full():
            self._capacity.set()
        return items

    def _is_full(self) -> bool:
        return len(self._pending) > _MOST_PENDING or self._bytes > _MOST_PENDING_BYTES


def _size(item: Change | SyncedRow) -> int:
    return len(item.value or b"") + len(item.prev_value or b"") if isinstance(item, Change) else 0
