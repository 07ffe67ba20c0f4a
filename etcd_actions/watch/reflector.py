"""The reflector: delivers every change of a prefix to one sink.

It lists the prefix at one revision, then watches from there. For each key its sink receives a
subsequence of the states that the key had in etcd, in their order. Once etcd is reachable and the
key does not change, the last delivered state is the key's true one.

Only states that etcd no longer has are omitted: those before the first list, and those that a
compaction removed during an interruption. Then a list delivers the present state (``listed``). A
key that is missing in that list gets a *synthesised* delete, so no delivered key ends without
one. A key that was deleted and recreated gets the delete first, then its new state. Disconnects,
changes of etcd's leader and restarts of etcd omit nothing within its history, and deliver nothing
twice.

Changes of different keys have no promised order, since several key ranges are watched side by
side. For the same reason the changes of one transaction can arrive in parts.

The first list can be made at a saved :attr:`Reflector.revision`, while etcd's history reaches
back to it: then every change since is delivered, deletes too.

The task that reads the stream calls the sink, a plain function, and lets other tasks run between
some hundred changes. A sink with a queue may have the reader wait for capacity: before each page
of a list, and before the next message of the stream. A reader that waits for long falls behind a
compaction, and gets synthesised deletes instead of real ones.

The reflector shares the index of delivered revisions with its sink
(:mod:`etcd_actions.watch.delivered`): a list is compared with it.

When nothing was received for half of ``dead_after`` a linearizable read checks whether the
cluster answers. If it does not within the rest, the stream is closed and another one opened. A
stream whose member lost its leader is closed, too.

At every reconnect the store is verified (:mod:`etcd_actions.watch.store_identity`). If it is
another one all ranges are listed again, every present state is delivered, new or not, and
revisions may be lower: only then the ``mod_revision`` of a key decreases.

An unexpected failure, of an unusable response or of the sink, ends the stream and not the
reflector. Then a list (reason ``failed``) is compared with the certainly delivered states; the
others are delivered, maybe for the second time. Until a stream has lived for a while the
reflector is parked in its :class:`~etcd_actions._internal.containment.Containment`.

Cancelling :meth:`Reflector.run` at any point leaves nothing behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from etcd_actions._internal.containment import Containment, describe
from etcd_actions._internal.retrying import Attempts, retrying
from etcd_actions.errors import (
    EtcdError,
    InvalidRequest,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    first_error,
)
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.watch.delivered import DeliveredRevisions, NotingSink, Sink
from etcd_actions.watch.delivery import Delivery, Merge
from etcd_actions.watch.idle_check import IdleCheck
from etcd_actions.watch.listings import Listings, text_of
from etcd_actions.watch.range_stream import RangeStream
from etcd_actions.watch.store_identity import StoreIdentity
from etcd_actions.watch.watch_settings import ReflectorSettings, ReflectorStatistics
from etcd_actions.watch.watched_range import WatchedRanges

_MANY_FAILURES = 8
"""Failures in a row from which on they are logged as errors."""
_REQUEST_EVERY = 0.1
"""Seconds between two requests of progress while :meth:`Reflector.reach` waits."""
_REFUSALS = (PermissionDenied, Unauthenticated, InvalidRequest)
"""Errors of the first list that a retry does not cure."""
# While a watcher lags etcd sends it at most 1,000 revisions at a time, and reads all of its history
# for that: with more watchers it is read less often.
_REVISIONS_AT_A_TIME = 1000
_MOST_RANGES = 16

_log = structlog.get_logger(__name__)


class Reflector:
    """Lists and watches one prefix; see the module docstring for the guarantees.

    Args:
        etcd: The connection.
        keys: The range to watch, as a rule a prefix; or several that do not overlap. The
            first one, which should have most of the keys, is divided into ranges that are
            watched side by side; the others are not divided.
        sink: Receives the changes.
        known: The delivered revisions, if the sink keeps them; by default the reflector does. The
            states of the keys in it are delivered again, after a delete if a key was deleted.
        start_revision: The revision of the first list, so that later deletions are delivered;
            0 for the newest. It is never below a revision of ``known``. If history does not reach
            back to it, the oldest readable state is listed. A store that has not reached it is
            another one, and its newest state is listed. Both are logged, and counted as relists.
        merge: Returns the changes of a batch that the sink needs, if it does not need states that
            newer ones of the batch replace.
        on_replaced: Called when the store turns out to be another one, before its states
            are delivered.
        likely_prefix: The start of most keys; see :func:`~etcd_actions.watch.ranges.split`.
        settings: See :class:`ReflectorSettings`.
        containment: Where unexpected failures are counted; by default one of its own.

    Raises:
        ValueError: There are no ``keys``, or some overlap.
    """

    def __init__(
        self,
        etcd: Etcd,
        keys: KeyRange | Sequence[KeyRange],
        sink: Sink,
        *,
        known: DeliveredRevisions | None = None,
        start_revision: int = 0,
        merge: Merge | None = None,
        on_replaced: Callable[[], None] | None = None,
        likely_prefix: bytes = b"",
        settings: ReflectorSettings | None = None,
        containment: Containment | None = None,
    ) -> None:
        if known is None:
            known = sink = NotingSink(sink)
        known.redeliver_all()
        if start_revision:
            start_revision = max([start_revision, *(abs(known.revision_of(key)) for key in known)])
        self._etcd = etcd
        self._settings = settings or ReflectorSettings()
        self._containment = containment or Containment()
        keys = [keys] if isinstance(keys, KeyRange) else keys
        self._ranges = WatchedRanges(keys, known, likely_prefix)
        first_key = self._ranges.first_key
        self._identity = StoreIdentity(etcd, first_key)
        self._delivery = Delivery(sink, merge, self._identity)
        self._listings = Listings(
            etcd,
            self._ranges,
            known,
            self._identity,
            self._delivery,
            start_revision=start_revision,
            on_replaced=on_replaced,
        )
        self._idle = IdleCheck(etcd, known, self._identity, self._settings)
        self._stream: RangeStream | None = None
        self._failed = False
        self._failures = 0
        self._failure = ""
        self._reconnects: Counter[str] = Counter()

    def statistics(self) -> ReflectorStatistics:
        """The present counts; see :class:`ReflectorStatistics`."""
        return ReflectorStatistics(
            synced=self._listings.synced,
            streaming=self._stream is not None,
            revision=self.revision,
            reports_progress=self._identity.reports_progress,
            ranges=len(self._ranges.all),
            keys=sum(range_.keys for range_ in self._ranges.all),
            events=self._delivery.events,
            reconnects=dict(self._reconnects),
            relists=dict(self._listings.relists),
            failures=self._failures,
            failure=self._failure if self._failures else "",
            silence=trio.current_time() - self._delivery.last_received,
        )

    @property
    def revision(self) -> int:
        """Every change up to it was delivered: it can be saved as a checkpoint.

        It is the lowest revision of all ranges. A range advances with its own changes. While it is
        idle it advances with etcd's progress notifications, if these are reliable, or by
        :mod:`etcd_actions.watch.idle_check`.
        """
        return self._ranges.revision

    def revision_of(self, key: bytes) -> int:
        """Every change of a key up to it was delivered; 0 if the key is not watched."""
        return self._ranges.revision_of(key)

    def progress(self, keys: KeyRange) -> list[tuple[KeyRange, int]]:
        """Up to which revision each part of a range was delivered.

        Returns:
            Adjacent parts; none if a part of the range is not watched.
        """
        return self._ranges.parts_of(keys)

    @property
    def can_request_progress(self) -> bool:
        """Whether the progress of the stream can be requested, and the answer is reliable."""
        return self._stream is not None and self._stream.trusts_progress

    async def reach(self, keys: Sequence[KeyRange], revision: int) -> None:
        """Return once every change of these keys up to a revision was delivered.

        It requests a progress notification, and again each tenth of a second, because etcd sends
        none while a watcher of the stream lags. If :attr:`can_request_progress` is false, only
        changes of the keys advance the watch, and this may never return.
        """
        while any(at < revision for each in keys for _, at in self.progress(each)):
            if self._stream is not None:
                self._stream.request_progress()
            with trio.move_on_after(_REQUEST_EVERY):
                await self._ranges.waiters.park()

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """List, then watch until cancelled.

        ``nursery.start`` returns the list's revision once the list was delivered.

        Raises:
            PermissionDenied, Unauthenticated, InvalidRequest: etcd refused the first list. A later
                refusal is logged and retried, as an outage is, since it may be lifted.
        """
        await self._retry(self._list_first, unless=_REFUSALS)
        task_status.started(self.revision)
        while True:
            await self._retry(self._watch_once)
            self._failures = 0

    async def _retry(
        self,
        step: Callable[[Attempts], Awaitable[None]],
        unless: tuple[type[EtcdError], ...] = (),
    ) -> None:
        report = self._report_failure
        async for attempt in retrying(
            self._settings.backoff, on=EtcdError, unless=unless, report=report
        ):
            with attempt:
                await self._contained(step, attempt)

    async def _contained(
        self, step: Callable[[Attempts], Awaitable[None]], attempt: Attempts
    ) -> None:
        """Turn an unexpected failure into an error that is retried, after a list."""
        failure: EtcdError | None = None
        try:
            try:
                await step(attempt)
            except* EtcdError as group:
                failure = first_error(group)
        except BaseException as error:
            name = text_of(self._ranges.first_key)
            contained = self._containment.caught("watch", name, error, parks=True)
            self._failed = True
            self._identity.suspicion = self._identity.suspicion or "failed"
            failure = Unavailable(f"watch: {describe(contained)}")
        if failure is not None:
            raise failure

    async def _list_first(self, _attempt: Attempts) -> None:
        await self._listings.list_first()

    async def _watch_once(self, attempt: Attempts) -> None:
        """Verify the store, list if necessary, then watch one stream to its end."""
        newest = await self._identity.verify(self._ranges.highest)
        await self._listings.relist()
        count, catch_up_to = self._settings.ranges, 0
        behind = newest - self._ranges.highest
        if count > 1 and behind > count * _REVISIONS_AT_A_TIME:
            count = max(count, min(_MOST_RANGES, behind // _REVISIONS_AT_A_TIME))
            catch_up_to = newest
        self._ranges.divide(count)
        async with self._etcd.watch() as opened, trio.open_nursery() as nursery:
            stream = RangeStream(
                self._etcd,
                opened,
                self._ranges,
                self._delivery,
                self._listings,
                self._settings,
                trusts_progress=self._identity.reports_progress,
            )
            stream.open_all()
            self._stream = stream
            if self._failures:
                prefix = text_of(self._ranges.first_key)
                _log.info("watch_restored", prefix=prefix, failures=self._failures)
            nursery.start_soon(stream.probe)
            nursery.start_soon(self._idle.run, stream.watched)
            nursery.start_soon(self._note_recovery, attempt)
            try:
                with trio.move_on_after(self._settings.stream_life):
                    await stream.receive(nursery, catch_up_to=catch_up_to)
            finally:
                self._stream = None
            nursery.cancel_scope.cancel("another stream is due")

    async def _note_recovery(self, attempt: Attempts) -> None:
        """Count a stream that has lived for ``dead_after`` as a success, whatever ends it."""
        dead_after = self._settings.dead_after
        await trio.sleep(self._settings.probe_interval)
        if self._failed:
            self._failed = False
            self._containment.forget("watch", text_of(self._ranges.first_key))
        await trio.sleep(dead_after - self._settings.probe_interval)
        attempt.recovered()

    def _report_failure(self, failure: Exception, failures: int, delay: float) -> None:
        """Log the first, second, fourth ... failure in a row: an outage may last for hours."""
        self._failures, self._failure = failures, str(failure)
        self._reconnects[type(failure).__name__] += 1
        if failures & (failures - 1) == 0:
            log = _log.warning if failures < _MANY_FAILURES else _log.error
            log(
                "watch_lost",
                prefix=text_of(self._ranges.first_key),
                error=str(failure),
                failures=failures,
                retry_in=round(delay, 3),
            )
