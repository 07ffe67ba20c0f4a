"""A queue of work by key: a short-lived trio channel a key, and a pool of workers.

For work that waits for others, such as a run service. What needs no waiting is done where the
change arrives, see :mod:`etcd_actions.follow.handler`.

- **Ordered.** The changes of one key are handled in the order in which they were
  dispatched, and never two at a time. Different keys are handled side by side, by at most
  as many workers as run.
- **Short-lived.** A key has a channel only while it has work, so memory and cost follow the
  work and not the number of keys.
- **Conflating.** Dispatching never waits. A put that finds an unhandled put of the same
  incarnation (``create_revision``) takes its place: latest wins. Deletes, and puts of
  another incarnation, queue up behind what is there. Only a key that is deleted and
  recreated faster than it is handled, for more than :data:`_LONGEST` steps, loses the oldest of
  them: what is kept begins with its last delete.
- **Bounded.** Above ``soft_bytes`` the values of newly dispatched puts are dropped and read
  again, at their own revision, when their turn comes.
- **Patient.** A handler that fails is called again after a back-off, without limit, with the
  failed change or a newer state of the same incarnation; it does not hold a worker
  until then. :meth:`WorkQueue.statistics` lists the failing keys.
- **Contained.** A change is a unit of :mod:`etcd_actions._internal.containment`: whatever its
  handler raises, even ``SystemExit``, fails that key alone. What is no error of this package is
  counted as an unexpected failure of a unit, too.

A change that a cancelled worker was handling is handled again by another one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import final

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment, describe
from etcd_actions._internal.histogram import Distribution, Histogram
from etcd_actions.errors import EtcdActionsError, RunServiceUnavailable, Unavailable
from etcd_actions.watch import Change
from etcd_actions.watch.change import conflated

_BACKOFF = Backoff(initial=0.1, cap=30.0)
_LONGEST = 16
_TURN = 64
_AWAY = (Unavailable, RunServiceUnavailable)

_log = structlog.get_logger(__name__)

Handler = Callable[[Change], Awaitable[None]]
Reread = Callable[[Change], Awaitable[Change | None]]


@dataclass(frozen=True, kw_only=True)
class WorkQueueSettings:
    """Limits of a queue.

    Attributes:
        soft_bytes: Bytes of pending values above which new ones are dropped and read again.
        backoff: Delays, in seconds, before a failed handler is called again.
    """

    soft_bytes: int = 64 * 1024 * 1024
    backoff: Backoff = _BACKOFF


@dataclass(frozen=True, kw_only=True)
class FailingKey:
    """A key whose handler keeps failing: how often in a row, since when, and why last."""

    key: bytes
    failures: int
    since: float
    error: str


@dataclass(frozen=True, kw_only=True)
class WorkQueueStatistics:
    """What a queue holds and has done.

    Attributes:
        keys: Number of keys with work: waiting, being handled or to be retried.
        pending_changes: Number of changes not yet taken by a worker.
        pending_bytes: Bytes of their values.
        dispatched: Number of changes that came in.
        handled: Number of changes handled with success.
        conflated: Number of changes that a newer one replaced before they were handled.
        dropped_values: Number of values dropped above the soft limit.
        failures: Number of failed handler calls.
        handler_seconds: Time spent in handlers, of all workers together.
        turns: How often a worker took a key with work.
        wait_seconds: How long keys with work waited for that, all together.
        failing: The keys that wait to be retried.
        turn_times: How long a handler took: for one change, or for what arrived together.
        wait_times: How long a key with work waited for a worker.
    """

    keys: int
    pending_changes: int
    pending_bytes: int
    dispatched: int
    handled: int
    conflated: int
    dropped_values: int
    failures: int
    handler_seconds: float
    turns: int
    wait_seconds: float
    failing: tuple[FailingKey, ...]
    turn_times: Distribution
    wait_times: Distribution


class _Counts:
    """The counts of :class:`WorkQueueStatistics`, shared by a queue and its channels."""

    def __init__(self) -> None:
        self.pending_changes = self.pending_bytes = 0
        self.dispatched = self.handled = self.conflated = self.dropped_values = 0
        self.failures = self.turns = 0
        self.handler_seconds = self.wait_seconds = 0.0
        self.turn_times = Histogram()
        self.wait_times = Histogram()


@final
class KeyChannel(trio.abc.ReceiveChannel[Change]):
    """The unhandled changes of one key, read as a trio channel.

    It ends (:class:`trio.EndOfChannel`) when the key has no more work; a change that comes
    after that opens a new channel. At most one task may read it.
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
        self, key: bytes, counts: _Counts, reread: Reread, on_end: Callable[[bytes], None]
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
        """Append a change, conflating it with the last one if that is allowed."""
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
        """Return a change that could not be handled, to be received again."""
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

        A dropped value is read again at its own revision. Where that is compacted and the
        key has moved on the change is skipped: the watch brings the newer state. When the
        read fails, or is cancelled, the change stays and is received next time.
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
        """Give up what is pending and end the channel; twice is harmless."""
        self._forget(len(self.pending))
        if not self._ended:
            self._ended = True
            self._on_end(self.key)

    async def aclose(self) -> None:
        """The same, as channels of trio have it."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _forget(self, count: int) -> None:
        self._counts.pending_bytes -= sum(len(change.kv.value) for change in self.pending[:count])
        self._counts.pending_changes -= count
        del self.pending[:count]


class WorkQueue:
    """See the module's text.

    Run :meth:`worker` in as many tasks as there may be handlers at work, or have
    :meth:`start_workers` start them as they are needed; and run :meth:`retry_failed` in one.

    Args:
        handler: Called with each change; an exception from it means: try again.
        reread: Reads a dropped value again: the change with its value, or None to skip it.
        settings: See :class:`WorkQueueSettings`.
        containment: Counts unexpected failures; by default the queue has its own.
        unit: What kind of unit a change is there.
    """

    def __init__(
        self,
        handler: Handler,
        reread: Reread,
        settings: WorkQueueSettings | None = None,
        *,
        containment: Containment | None = None,
        unit: str = "change",
    ) -> None:
        self._containment = containment or Containment()
        self._unit = unit
        self._handler = handler
        self._reread = reread
        self._settings = settings or WorkQueueSettings()
        self._counts = _Counts()
        self._channels: dict[bytes, KeyChannel] = {}
        self._ready: deque[KeyChannel] = deque()
        self._parked: list[trio.lowlevel.Task] = []
        self._waking = False
        self._startable = 0
        self._start: Callable[[], object] | None = None
        self._failing: dict[bytes, FailingKey] = {}
        self._retries: list[tuple[float, int, KeyChannel]] = []
        self._retry_added = trio.Event()
        self._idle: trio.Event | None = None

    def statistics(self) -> WorkQueueStatistics:
        """See :class:`WorkQueueStatistics`."""
        counts = vars(self._counts) | {
            "turn_times": self._counts.turn_times.read(),
            "wait_times": self._counts.wait_times.read(),
        }
        failing = tuple(self._failing.values())
        return WorkQueueStatistics(keys=len(self._channels), failing=failing, **counts)

    def dispatch(self, changes: Iterable[Change]) -> None:
        """Queue changes, in order. Never waits, never fails."""
        channels, counts, soft_bytes = self._channels, self._counts, self._settings.soft_bytes
        for change in changes:
            key = change.key
            channel = channels.get(key)
            if channel is None:
                channel = channels[key] = KeyChannel(key, counts, self._reread, self._end)
                self._ready.append(channel)
            counts.dispatched += 1
            if counts.pending_bytes > soft_bytes and change.value:
                counts.dropped_values += 1
                channel.put(change.without_value())
            else:
                channel.put(change)
        self._wake_one()

    @property
    def pending_bytes(self) -> int:
        """Bytes of the values of the changes that no worker has taken."""
        return self._counts.pending_bytes

    @property
    def has_work(self) -> bool:
        """Whether any key has."""
        return bool(self._channels)

    def has_work_for(self, key: bytes) -> bool:
        """Whether a change of a key is waiting, being handled or to be retried."""
        return key in self._channels

    def oldest_delete(self) -> int | None:
        """The lowest revision that a delete which is not handled yet may have, None without one.

        A synthesised one may have any below its own. It reads every key that has work: not
        for a call for each change.
        """
        deletes = [
            1 if change.synthesised else change.mod_revision
            for channel in self._channels.values()
            for change in (channel.handling, *channel.pending)
            if change is not None and change.is_delete
        ]
        return min(deletes, default=None)

    async def wait_idle(self) -> None:
        """Return once no key has work."""
        while self._channels:
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()
        await trio.lowlevel.checkpoint()

    def dispatch_if_idle(self, change: Change) -> bool:
        """Queue a change, unless its key has work; whether it was queued.

        For a change that was handled before: behind newer ones it would go back in time.
        """
        if change.key in self._channels:
            return False
        self.dispatch((change,))
        return True

    def start_workers(self, most: int, start: Callable[[], object]) -> None:
        """Have ``start`` add a worker when a key has work and no worker is free.

        Args:
            most: How many it starts at most.
            start: Starts a task that runs :meth:`worker`. Must not fail.
        """
        self._startable, self._start = most, start
        self._wake_one()

    async def worker(self) -> None:
        """Handle the changes of one key after another, until cancelled."""
        self._waking = False
        counts, handler = self._counts, self._handler
        turn = 0
        while True:
            channel = await self._next()
            change: Change | None = None
            try:
                while channel.pending:
                    # Handlers that never wait must not keep the reader from its turn.
                    turn += 1
                    if turn % _TURN == 0:
                        await trio.lowlevel.checkpoint()
                    try:
                        change = channel.receive_nowait()
                    except trio.WouldBlock:
                        change = await channel.receive()
                    channel.handling = change
                    began = perf_counter()
                    try:
                        await handler(change)
                    finally:
                        channel.handling = None
                        took = perf_counter() - began
                        counts.handler_seconds += took
                        counts.turn_times.observe(took)
                    change = None
                    counts.handled += 1
                    if channel.failures:
                        channel.failures = 0
                        self._failing.pop(channel.key, None)
                channel.close()
            except trio.Cancelled:
                if change is not None:
                    channel.put_back(change)
                if self._channels.get(channel.key) is channel:
                    self._ready.append(channel)
                raise
            except BaseException as error:
                self._failed(channel, change, error)

    async def retry_failed(self) -> None:
        """Make failed keys ready again after their delay, until cancelled."""
        while True:
            self._retry_added = trio.Event()
            until = self._retries[0][0] if self._retries else float("inf")
            with trio.move_on_at(until):
                await self._retry_added.wait()
            while self._retries and self._retries[0][0] <= trio.current_time():
                channel = heapq.heappop(self._retries)[2]
                channel.ready_at = perf_counter()
                self._ready.append(channel)
            self._wake_one()

    async def _next(self) -> KeyChannel:
        """The next channel with work. Who waited least is woken first, one at a time."""
        while not self._ready:
            await self._park()
            self._waking = False
        channel = self._ready.popleft()
        self._counts.turns += 1
        waited = perf_counter() - channel.ready_at
        self._counts.wait_seconds += waited
        self._counts.wait_times.observe(waited)
        self._wake_one()
        return channel

    def _wake_one(self) -> None:
        if not self._ready or self._waking:
            return
        if self._parked:
            self._waking = True
            trio.lowlevel.reschedule(self._parked.pop())
        elif self._start is not None and self._startable:
            self._waking = True
            self._startable -= 1
            self._start()

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _end(self, key: bytes) -> None:
        del self._channels[key]
        if self._failing:
            # What failed may have been skipped since: it is not needed any more.
            self._failing.pop(key, None)
        if self._idle is not None and not self._channels:
            self._idle.set()
            self._idle = None

    def put_off(self, change: Change, error: BaseException) -> None:
        """Have a change handled after a delay: it was handled elsewhere, which failed.

        The key must have no work. What of the failure passes through every boundary is raised.
        """
        channel = KeyChannel(change.key, self._counts, self._reread, self._end)
        self._channels[change.key] = channel
        self._failed(channel, change, error)

    def newest_of(self, key: bytes) -> Change | None:
        """The last change of a key that no worker has taken; None without one."""
        channel = self._channels.get(key)
        return channel.pending[-1] if channel is not None and channel.pending else None

    def _failed(self, channel: KeyChannel, change: Change | None, error: BaseException) -> None:
        """Put off what failed; raise what is not the handler's failure but a cancellation."""
        if change is None and self._channels.get(channel.key) is not channel:
            # The channel has ended: the value that was read again is not needed any more.
            if not isinstance(error, trio.EndOfChannel):
                raise error
            return
        if not isinstance(error, EtcdActionsError):
            key = channel.key.decode(errors="backslashreplace")
            error = self._containment.caught(self._unit, key, error)
        if change is not None:
            channel.put_back(change)
        now = trio.current_time()
        self._counts.failures += 1
        channel.failures += 1
        if channel.failures == 1:
            channel.since = now
        delay = self._settings.backoff.delay(channel.failures)
        reason = describe(error)
        heapq.heappush(self._retries, (now + delay, self._counts.failures, channel))
        self._failing[channel.key] = FailingKey(
            key=channel.key, failures=channel.failures, since=channel.since, error=reason
        )
        self._retry_added.set()
        with self._containment.unit("log_line", "handler_failed"):
            _log.warning(
                "handler_failed",
                key=channel.key.decode(errors="backslashreplace"),
                error=reason,
                failures=channel.failures,
                retry_in=round(delay, 3),
                # Once, and in an outage not for each key: repeated tracebacks bury everything else.
                exc_info=error if channel.failures == 1 and not isinstance(error, _AWAY) else None,
            )
