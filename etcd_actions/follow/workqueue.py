"""A queue of work by key: each key with work has a trio channel, and workers take the channels.

It is for work that waits, as for the run service. Work that does not wait is done when the change
arrives, see :mod:`etcd_actions.follow.handler`.

- **Ordered.** The changes of one key are handled in the order in which they were dispatched,
  and never two at a time. Each worker handles one key at a time.
- **Short-lived.** A key has a channel only while it has work, so memory and cost follow the
  work and not the number of keys.
- **Conflating.** Dispatching never waits. A put replaces an unhandled put of the same
  incarnation (``create_revision``). A delete, or a put of another incarnation, is queued after
  it. If a key is deleted and recreated faster than it is handled, and has more than 16 changes,
  those before its last delete are dropped.
- **Bounded.** Above ``soft_bytes`` the values of newly dispatched puts are dropped and read
  again, at their own revision, when their turn comes.
- **Patient.** A handler that fails is called again after a back-off, without limit, with the
  failed change or a newer state of the same incarnation; it does not hold a worker
  until then. :meth:`WorkQueue.statistics` lists the failing keys.
- **Contained.** A change is a unit of :mod:`etcd_actions._internal.containment`: whatever its
  handler raises, even ``SystemExit``, fails that key alone. An exception that is not an
  :class:`~etcd_actions.errors.EtcdActionsError` is also counted as an unexpected failure.

If a worker is cancelled while it handles a change, another worker handles that change again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from time import perf_counter

import structlog
import trio

from etcd_actions._internal.argument_types import check_fields
from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment, describe
from etcd_actions._internal.histogram import Distribution
from etcd_actions.errors import EtcdActionsError, RunServiceUnavailable, Unavailable
from etcd_actions.follow.key_channel import Counts, KeyChannel, Reread
from etcd_actions.watch import Change

_BACKOFF = Backoff(initial=0.1, cap=30.0)
_TURN = 64
"""Changes that a worker handles before other tasks run."""
_AWAY = (Unavailable, RunServiceUnavailable)
"""Errors of an outage: they are logged without a traceback."""

_log = structlog.get_logger(__name__)

Handler = Callable[[Change], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class WorkQueueSettings:
    """Limits of a queue.

    Attributes:
        soft_bytes: Bytes of pending values above which new ones are dropped and read again.
        backoff: Delays, in seconds, before a failed handler is called again.
    """

    soft_bytes: int = 64 * 1024 * 1024
    backoff: Backoff = _BACKOFF

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class FailingKey:
    """A key whose handler keeps failing.

    Attributes:
        key: The key.
        failures: How often the handler failed in a row.
        since: The time of the first of these failures, on trio's clock.
        error: The last failure.
    """

    key: bytes
    failures: int
    since: float
    error: str


@dataclass(frozen=True, kw_only=True)
class WorkQueueStatistics:
    """The contents of a queue, and its counts since its start. Times are in seconds.

    Attributes:
        keys: Number of keys with work: waiting, being handled or to be retried.
        pending_changes: Number of changes not yet taken by a worker.
        pending_bytes: Bytes of their values.
        dispatched: Number of changes that were dispatched.
        handled: Number of changes that were handled with success.
        conflated: Number of changes that a newer one replaced before they were handled.
        dropped_values: Number of values dropped above the soft limit.
        failures: Number of failed handler calls.
        failing: The keys that wait to be retried.
        turn_times: How long a handler took for one change; of the inline handler, for a batch.
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
    failing: tuple[FailingKey, ...]
    turn_times: Distribution
    wait_times: Distribution


class WorkQueue:
    """Hands the changes of each key to a handler, in order.

    Run :meth:`worker` in one task for each handler that may run at a time, or have
    :meth:`start_workers` start these tasks when they are needed. Run :meth:`retry_failed` in one.

    Args:
        handler: Called with each change. After an exception it is called again.
        reread: See :data:`~etcd_actions.follow.key_channel.Reread`.
        settings: See :class:`WorkQueueSettings`.
        containment: Counts unexpected failures; by default one of its own.
        unit: The kind of unit that a change is in ``containment``.
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
        self._counts = Counts()
        self._channels: dict[bytes, KeyChannel] = {}
        self._ready: deque[KeyChannel] = deque()
        self._parked: list[trio.lowlevel.Task] = []
        # Whether a worker was woken or started, and does not run yet.
        self._waking = False
        # The number of workers that may still be started.
        self._startable = 0
        self._start: Callable[[], object] | None = None
        self._paused = False
        self._handling = 0
        # Set when no handler runs any more; None without a task that waits for that.
        self._settled: trio.Event | None = None
        self._failing: dict[bytes, FailingKey] = {}
        self._retries: list[tuple[float, int, KeyChannel]] = []
        self._retry_added = trio.Event()
        self._idle: trio.Event | None = None

    def statistics(self) -> WorkQueueStatistics:
        """The present counts; see :class:`WorkQueueStatistics`."""
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
        """Whether a change of any key is waiting, being handled or to be retried."""
        return bool(self._channels)

    def has_work_for(self, key: bytes) -> bool:
        """Whether a change of a key is waiting, being handled or to be retried."""
        return key in self._channels

    def oldest_delete(self) -> int | None:
        """The lowest possible revision of the deletes that are not handled; None without one.

        It is 1 for a synthesised delete, whose real revision is not known. The time that this takes
        is in proportion to the number of keys with work, so it is not called for each change.
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

    @property
    def is_handling(self) -> bool:
        """Whether a handler is running."""
        return self._handling > 0

    async def pause(self) -> None:
        """Call the handler no more, and return once no handler is running.

        It cannot be undone, also after a cancellation.
        """
        self._paused = True
        while self._handling:
            if self._settled is None:
                self._settled = trio.Event()
            await self._settled.wait()
        await trio.lowlevel.checkpoint()

    def dispatch_if_idle(self, change: Change) -> bool:
        """Queue a change that was handled before, unless its key has work, which is newer.

        Returns:
            Whether it was queued.
        """
        if change.key in self._channels:
            return False
        self.dispatch((change,))
        return True

    def start_workers(self, most: int, start: Callable[[], object]) -> None:
        """Have ``start`` add a worker when a key has work and no worker is free.

        Args:
            most: The most workers to start.
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
                    # A handler may never wait: let the reader of the watch run, too.
                    turn += 1
                    if turn % _TURN == 0:
                        await trio.lowlevel.checkpoint()
                    try:
                        change = channel.receive_nowait()
                    except trio.WouldBlock:
                        change = await channel.receive()
                    if self._paused:
                        await trio.sleep_forever()
                    channel.handling = change
                    self._handling += 1
                    began = perf_counter()
                    try:
                        await handler(change)
                    finally:
                        channel.handling = None
                        self._handled_one()
                        took = perf_counter() - began
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

    def _handled_one(self) -> None:
        self._handling -= 1
        if not self._handling and self._settled is not None:
            self._settled.set()
            self._settled = None

    async def _next(self) -> KeyChannel:
        """The next channel with work. The worker that parked last is woken first, one at a time."""
        while not self._ready:
            await self._park()
            self._waking = False
        channel = self._ready.popleft()
        waited = perf_counter() - channel.ready_at
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
            # The change that failed may have been skipped since.
            self._failing.pop(key, None)
        if self._idle is not None and not self._channels:
            self._idle.set()
            self._idle = None

    def put_off(self, change: Change, error: BaseException) -> None:
        """Queue a change whose handling failed elsewhere, to be handled after a delay.

        The key must have no work.

        Raises:
            BaseException: The part of ``error`` that no boundary contains: a cancellation, or
                KeyboardInterrupt.
        """
        channel = KeyChannel(change.key, self._counts, self._reread, self._end)
        self._channels[change.key] = channel
        self._failed(channel, change, error)

    def newest_of(self, key: bytes) -> Change | None:
        """The last change of a key that no worker has taken; None without one."""
        channel = self._channels.get(key)
        return channel.pending[-1] if channel is not None and channel.pending else None

    def _failed(self, channel: KeyChannel, change: Change | None, error: BaseException) -> None:
        """Schedule the retry of a change; raise the part of the failure that is a cancellation."""
        if change is None and self._channels.get(channel.key) is not channel:
            # The channel has ended: the change whose value was being read was dropped.
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
                # One traceback for a key, and none in an outage, which fails each key.
                exc_info=error if channel.failures == 1 and not isinstance(error, _AWAY) else None,
            )
