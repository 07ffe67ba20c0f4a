"""The reflector: keeps a consumer up to date with every key under a prefix.

What it promises, and what not
------------------------------

The reflector lists the prefix at one revision and then watches from there. To its sink it
gives, for every key, a sequence of changes that is a subsequence of the states the key had
in etcd, in the same order, and that, once etcd can be reached and the key is left alone,
ends in the key's true last state.

States are left out only where etcd no longer has them: those before the first list, and
those lost to a compaction while the reflector was cut off. Then the present state is read
from a list and delivered instead (``listed``). A key that vanished meanwhile gets a
*synthesised* delete, so no key that was ever delivered ends without one. A key that was
deleted and made again meanwhile gets the delete first, then its new state. Through
disconnects, leader changes and restarts of etcd within its history nothing is left out,
and nothing is delivered twice.

Changes of different keys have no promised order, since the prefix is watched as several key
ranges side by side. What one transaction changed can arrive in parts for the same reason.

Whoever kept :attr:`Reflector.revision` can have the first list made there, while etcd's
history reaches back to it: then every change since is delivered, deletes too, as if the
reflector had never been away.

The sink is called from the task that reads the stream: it is a plain function, so the
reader never waits for it, and others have their turn between some hundred changes. A sink that
queues what it takes may have the reader wait for room, before each page of a list, which costs
nothing, and before it reads on from the stream, which costs history: a reader that stalls for
long falls behind a compaction and gets synthesised deletes instead of real ones.

What was delivered of each key is in one index that the reflector shares with its sink
(:mod:`etcd_actions.watch.delivered`): a list is compared with that.

Silence is not trusted: when nothing was heard for half of ``dead_after``, a linearizable
read asks whether the cluster still answers; if it does not within the rest, the stream is
given up and opened again. So is a stream whose member lost its leader.

At every reconnect the store is verified (:mod:`etcd_actions.watch.store_identity`). Where it is
another one than before the whole prefix is listed again, every present state is delivered, new or
not, and revisions may be lower: the one case in which the ``mod_revision`` of a key goes back.

What is raised unexpectedly, by a response that cannot be used or by the sink, ends the stream
and not the reflector. Then the state is read from a list (reason ``failed``), compared with what
was surely delivered, and the rest is delivered, maybe for the second time. Until a stream has
lived for a while after that, the reflector is parked in its
:class:`~etcd_actions._internal.containment.Containment`.

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
_REQUEST_EVERY = 0.1
_REFUSALS = (PermissionDenied, Unauthenticated, InvalidRequest)
# While a watcher lags etcd sends it at most 1,000 revisions at a time, and reads all of its history
# for that: with more watchers it is read less often.
_REVISIONS_AT_A_TIME = 1000
_MOST_RANGES = 16

_log = structlog.get_logger(__name__)


class Reflector:
    """Lists and watches one prefix; see the module's text for what it promises.

    Args:
        etcd: The connection.
        keys: The range to watch, as a rule a prefix; or several that do not overlap. The
            first one, which is taken to have most of the keys, is cut into ranges that are
            watched side by side; each other one is watched as it is.
        sink: Who gets the changes.
        known: What the sink knows of the keys: it notes each change there when it takes it. By
            default the reflector keeps that. What is known at the start is delivered again,
            after its delete if it was deleted meanwhile.
        start_revision: Where to make the first list, so that deletions since then are seen;
            0 for the newest. It is never made below a revision of ``known``. Where history
            does not reach back to it the oldest state that can be read is listed; a store
            that is not there yet is another one, and is listed as it is. Both are logged,
            and counted as relists for ``position_compacted`` and ``position_ahead``.
        merge: Gives what the sink needs of a batch, where it can do without states that newer ones
            of the same batch replace.
        on_replaced: Called when the store turns out to be another one, before its states
            are delivered.
        likely_prefix: What most keys begin with; see :func:`~etcd_actions.watch.ranges.split`.
        settings: See :class:`ReflectorSettings`.
        containment: Where unexpected failures are counted; by default one of its own.
        names_known_bugs: Whether it logs what the version of etcd does wrong; of several in a
            process one does.

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
        names_known_bugs: bool = True,
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
        self._identity = StoreIdentity(etcd, first_key, names_known_bugs=names_known_bugs)
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
        self._idle = IdleCheck(etcd, known, self._identity, self._settings.dead_after)
        self._stream: RangeStream | None = None
        self._failed = False
        self._failures = 0
        self._reconnects: Counter[str] = Counter()

    def statistics(self) -> ReflectorStatistics:
        """See :class:`ReflectorStatistics`."""
        return ReflectorStatistics(
            synced=self._listings.synced,
            streaming=self._stream is not None,
            revision=self.revision,
            ranges=len(self._ranges.all),
            keys=sum(range_.keys for range_ in self._ranges.all),
            events=self._delivery.events,
            reconnects=dict(self._reconnects),
            relists=dict(self._listings.relists),
            silence=trio.current_time() - self._delivery.heard,
        )

    @property
    def revision(self) -> int:
        """Every change up to it was delivered: it can be saved as a checkpoint.

        A range advances with its own changes. While it is idle it advances with etcd's progress
        notifications, if these are reliable, or by :mod:`etcd_actions.watch.idle_check`.
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
        """Whether etcd can be asked for the progress of the stream, and its answer is reliable."""
        return self._stream is not None and self._stream.trusts_progress

    async def reach(self, keys: Sequence[KeyRange], revision: int) -> None:
        """Return once every change of these keys up to a revision was delivered.

        It requests a progress notification, and again each tenth of a second: etcd does not answer
        while a watcher of the stream lags. If no request is possible only changes of the keys
        advance the watch: it may never return.
        """
        while any(at < revision for each in keys for _, at in self.progress(each)):
            if self._stream is not None:
                self._stream.request_progress()
            with trio.move_on_after(_REQUEST_EVERY):
                await self._ranges.progress.park()

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """List, then watch until cancelled.

        With ``nursery.start`` returns the list's revision once the list was delivered.
        Until then a refusal (:class:`~etcd_actions.errors.PermissionDenied`,
        :class:`~etcd_actions.errors.Unauthenticated`,
        :class:`~etcd_actions.errors.InvalidRequest`) is raised; afterwards it is
        logged and retried, as an outage is, since it may be lifted.
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
        """A stream that has lived for a while is a success, whatever ends it."""
        dead_after = self._settings.dead_after
        await trio.sleep(dead_after / 6)
        if self._failed:
            self._failed = False
            self._containment.forget("watch", text_of(self._ranges.first_key))
        await trio.sleep(dead_after - dead_after / 6)
        attempt.recovered()

    def _report_failure(self, failure: Exception, failures: int, delay: float) -> None:
        """Log the first, the second, the fourth ... in a row: an outage may last for hours."""
        self._failures = failures
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
