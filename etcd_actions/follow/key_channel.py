"""The unhandled changes of one key of a work queue, as a trio channel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import final

import trio

from etcd_actions._internal.histogram import Histogram
from etcd_actions.watch import Change
from etcd_actions.watch.change import conflated

_LONGEST = 16
"""Changes of a key from which on those before its last delete are dropped."""

Reread = Callable[[Change], Awaitable[Change | None]]
"""Reads a dropped value again: returns the change with its value, or None to skip it."""


class Counts:
    """The counts of a queue, shared with its channels; see ``WorkQueueStatistics``."""

    def __init__(self) -> None:
        self.pending_changes = self.pending_bytes = 0
        self.dispatched = self.handled = self.conflated = self.dropped_values = 0
        self.failures = 0
        self.turn_times = Histogram()
        self.wait_times = Histogram()


@final
class KeyChannel(trio.abc.ReceiveChannel[Change]):
    """The unhandled changes of one key, read as a trio channel.

    It ends (:class:`trio.EndOfChannel`) when the key has no more work. The next change of the key
    opens a new channel. At most one task may read it.

    Attributes:
        key: The key.
        failures: How often the handler failed in a row.
        since: The time of the first of these failures, on trio's clock.
        ready_at: When the channel was queued for a worker, by :func:`time.perf_counter`.
        pending: The changes that no worker has taken, in order.
        handling: The change that a worker handles now; None without one.
    """

    __slots__ = (
        "_counts",
        "_ended",
        "_on_end",
        "_reread",
        "failures",
        "handling",
        "key",
        "pending",
        "ready_at",
        "since",
    )

    def __init__(
        self, key: bytes, counts: Counts, reread: Reread, on_end: Callable[[bytes], None]
    ) -> None:
        self.key = key
        self.failures = 0
        self.since = 0.0
        self.ready_at = perf_counter()
        self.pending: list[Change] = []
        self.handling: Change | None = None
        self._counts = counts
        self._reread = reread
        self._on_end = on_end
        self._ended = False

    def put(self, change: Change) -> None:
        """Append a change; conflate it with the last one if :func:`conflated` allows that."""
        counts, pending = self._counts, self.pending
        counts.pending_bytes += len(change.kv.value)
        if pending and (merged := conflated(pending[-1], change)) is not None:
            counts.pending_bytes -= len(pending[-1].kv.value)
            counts.conflated += 1
            pending[-1] = merged
            return
        counts.pending_changes += 1
        pending.append(change)
        if len(pending) > _LONGEST:
            deletes = [index for index, each in enumerate(pending) if each.is_delete]
            if deletes and deletes[-1] > 0:
                counts.conflated += deletes[-1]
                self._forget(deletes[-1])

    def put_back(self, change: Change) -> None:
        """Put a change that was not handled back at the front."""
        counts, pending = self._counts, self.pending
        if pending and (merged := conflated(change, pending[0])) is not None:
            counts.conflated += 1
            pending[0] = merged
            return
        counts.pending_bytes += len(change.kv.value)
        counts.pending_changes += 1
        pending.insert(0, change)

    def receive_nowait(self) -> Change:
        """The next change.

        Raises:
            trio.WouldBlock: Its value was dropped; :meth:`receive` reads it again.
            trio.EndOfChannel: The key has no more work.
        """
        if not self.pending:
            self.close()
            raise trio.EndOfChannel
        change = self.pending[0]
        if change.value_dropped:
            raise trio.WouldBlock
        del self.pending[0]
        self._counts.pending_changes -= 1
        self._counts.pending_bytes -= len(change.kv.value)
        return change

    async def receive(self) -> Change:
        """The next change, with its value.

        A dropped value is read again at its own revision. If that is compacted, and the key has a
        newer state, the change is skipped: the watch delivers the newer state. If the read fails,
        or is cancelled, the change stays and is received next time.

        Raises:
            trio.EndOfChannel: The key has no more work.
            EtcdError: The value could not be read.
        """
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.receive_nowait()
            except trio.WouldBlock:
                dropped = self.pending[0]
            found = await self._reread(dropped)
            # A newer state may have taken its place during the read: then that one is next.
            if self.pending and self.pending[0] is dropped:
                self._forget(1)
                if found is not None:
                    return found

    def close(self) -> None:
        """Drop the pending changes and end the channel. Idempotent."""
        self._forget(len(self.pending))
        if not self._ended:
            self._ended = True
            self._on_end(self.key)

    async def aclose(self) -> None:
        """As :meth:`close`; a method of every trio channel."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _forget(self, count: int) -> None:
        self._counts.pending_bytes -= sum(len(change.kv.value) for change in self.pending[:count])
        self._counts.pending_changes -= count
        del self.pending[:count]
