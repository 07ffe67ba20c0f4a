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
(:mod:`etcd_actions.watch.known`): a list is compared with that.

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

import math
from collections import Counter
from collections.abc import Callable, Sequence

import structlog
import trio

from etcd_actions._internal.containment import Containment, describe
from etcd_actions.errors import (
    Compacted,
    EtcdError,
    FutureRevision,
    InvalidRequest,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    first_error,
)
from etcd_actions.etcd.api import Etcd, KeyRange, WatchCreate, WatchResponse, WatchStream
from etcd_actions.etcd.oldest_revision import find_oldest_revision
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.watch.change import Change
from etcd_actions.watch.delivery import Delivery, Lister, Merge
from etcd_actions.watch.idle import IdleRanges
from etcd_actions.watch.known import Known, Noting, Sink
from etcd_actions.watch.store_identity import StoreIdentity
from etcd_actions.watch.watch_settings import ReflectorSettings, ReflectorStatistics
from etcd_actions.watch.watched_range import (
    WatchedRange,
    count_keys,
    disjoint,
    divided,
    whole_ranges,
)

_log = structlog.get_logger(__name__)

_MANY_FAILURES = 8
_LISTS_BEHIND_COMPACTIONS = 5
_ASK_EVERY = 0.1
_REFUSALS = (PermissionDenied, Unauthenticated, InvalidRequest)


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
        known: Known | None = None,
        start_revision: int = 0,
        merge: Merge | None = None,
        on_replaced: Callable[[], None] | None = None,
        likely_prefix: bytes = b"",
        settings: ReflectorSettings | None = None,
        containment: Containment | None = None,
        names_known_bugs: bool = True,
    ) -> None:
        self._containment = containment or Containment()
        self._etcd = etcd
        self._keys, *self._more_keys = disjoint([keys] if isinstance(keys, KeyRange) else keys)
        self._settings = settings or ReflectorSettings()
        if known is None:
            known = sink = Noting(sink)
        known.deliver_all_again()
        if start_revision:
            start_revision = max([start_revision, *(abs(known.revision_of(key)) for key in known)])
        self._known = known
        self._identity = StoreIdentity(etcd, self._keys.start, names_known_bugs=names_known_bugs)
        self._delivery = Delivery(sink, merge, self._identity)
        self._lister = Lister(etcd, known, self._delivery)
        self._idle = IdleRanges(etcd, known, self._identity, self._settings.dead_after)
        self._start_revision = self._list_at = start_revision
        self._on_replaced = on_replaced
        self._likely_prefix = likely_prefix or self._keys.start
        self._ranges = whole_ranges((self._keys, *self._more_keys), known)
        self._by_watch_id: dict[int, WatchedRange] = {}
        self._last_watch_id = 0
        self._progress_counts = False
        self._synced = False
        self._failed = False
        self._streaming = False
        self._open_stream: WatchStream | None = None
        # Who waits for the watch to get further.
        self._behind = trio.lowlevel.ParkingLot()
        self._failures = 0
        self._reconnects: Counter[str] = Counter()
        self._relists: Counter[str] = Counter()

    def statistics(self) -> ReflectorStatistics:
        """See :class:`ReflectorStatistics`."""
        return ReflectorStatistics(
            synced=self._synced,
            streaming=self._streaming,
            revision=self.revision,
            ranges=len(self._ranges),
            keys=sum(range_.keys for range_ in self._ranges),
            events=self._delivery.events,
            reconnects=dict(self._reconnects),
            relists=dict(self._relists),
            silence=trio.current_time() - self._delivery.heard,
        )

    @property
    def revision(self) -> int:
        """Every change up to it has been delivered: what may be kept as a position.

        Each range has it from its own changes, and while it is idle from etcd's word, where that
        can be trusted, or from :mod:`etcd_actions.watch.idle`.
        """
        return min(range_.given_out for range_ in self._ranges)

    def revision_of(self, key: bytes) -> int:
        """Every change of a key up to it was delivered; 0 where it is not watched."""
        found = (range_.given_out for range_ in self._ranges if key in range_.resume.keys)
        return min(found, default=0)

    def progress(self, keys: KeyRange) -> list[tuple[KeyRange, int]]:
        """How far the watch is with each part of a range: every change up to that was delivered.

        Returns:
            Adjacent parts; none where not all of the range is watched.
        """
        parts = [
            (KeyRange(max(keys.start, each.start), min(keys.end, each.end)), range_.given_out)
            for range_ in self._ranges
            if (each := range_.resume.keys).start < keys.end and keys.start < each.end
        ]
        parts.sort()
        ends = [keys.start, *(part.end for part, _ in parts)]
        starts = [*(part.start for part, _ in parts), keys.end]
        return parts if starts == ends else []

    @property
    def can_ask(self) -> bool:
        """Whether etcd can be asked how far the stream is, and its answer be trusted."""
        return self._open_stream is not None and self._progress_counts

    async def reach(self, keys: Sequence[KeyRange], revision: int) -> None:
        """Return once every change of these keys up to a revision was delivered.

        etcd is asked how far the stream is, and again each tenth of a second: it does not answer
        while one of the stream's watchers has to catch up. Where it cannot be asked, changes of
        the keys alone get the watch there: it may never return.
        """
        while any(at < revision for each in keys for _, at in self.progress(each)):
            if self._open_stream is not None and self._progress_counts:
                self._open_stream.request_progress()
            with trio.move_on_after(_ASK_EVERY):
                await self._behind.park()

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """List, then watch until cancelled.

        With ``nursery.start`` returns the list's revision once the list was delivered.
        Until then a refusal (:class:`~etcd_actions.errors.PermissionDenied`,
        :class:`~etcd_actions.errors.Unauthenticated`,
        :class:`~etcd_actions.errors.InvalidRequest`) is raised; afterwards it is
        logged and tried again, as an outage is, since it may be lifted.
        """
        while True:
            began = trio.current_time()
            failure: EtcdError | None = None
            try:
                failure = await self._follow(task_status)
            except BaseException as error:
                failure = self._contain(error)
            self._streaming = False
            if failure is None:
                self._failures = 0
                continue
            if isinstance(failure, _REFUSALS) and not self._synced:
                raise failure
            # A stream that lived for a while is a success, whatever ended it.
            lived = trio.current_time() - began > self._settings.dead_after
            self._failures = 1 if lived else self._failures + 1
            self._reconnects[type(failure).__name__] += 1
            delay = self._settings.backoff.delay(self._failures)
            self._tell_failure(failure, delay)
            await trio.sleep(delay)

    async def _follow(self, task_status: trio.TaskStatus[int]) -> EtcdError | None:
        """List where that is needed, then watch one stream to its end; why it failed, if so."""
        try:
            if not self._synced:
                await self._list_first()
                self._synced = True
                task_status.started(self.revision)
            done = max(range_.resume.highest for range_ in self._ranges)
            await self._identity.verify(done)
            if self._identity.suspicion:
                await self._relist()
            await self._stream()
        except* EtcdError as group:
            failure = first_error(group)
        else:
            return None
        return failure

    def _contain(self, error: BaseException) -> EtcdError:
        """Survive what nobody foresaw: list again, as if the last responses had not come."""
        name = _text(self._keys.start)
        contained = self._containment.caught("watch", name, error, parks=True)
        self._failed = True
        self._identity.suspicion = self._identity.suspicion or "failed"
        return Unavailable(f"watch: {describe(contained)}")

    def _heal(self) -> None:
        """A stream has lived for a while: the failure is over."""
        if self._failed:
            self._failed = False
            self._containment.forget("watch", _text(self._keys.start))

    def _tell_failure(self, failure: EtcdError, delay: float) -> None:
        """Log the first, the second, the fourth ... in a row: an outage may last for hours."""
        failures = self._failures
        if failures & (failures - 1) == 0:
            log = _log.warning if failures < _MANY_FAILURES else _log.error
            log(
                "watch_lost",
                prefix=_text(self._keys.start),
                error=str(failure),
                failures=failures,
                retry_in=round(delay, 3),
            )

    async def _relist(self) -> None:
        """List everything: the store may be another one."""
        if (
            self._identity.suspicion in ("unverifiable", "failed")
            and not await self._list_history()
        ):
            self._identity.suspicion = "replaced"
        if not self._identity.suspicion:
            return
        replaced = self._identity.suspicion not in ("unverifiable", "failed")
        self._tell_relist(self._identity.suspicion)
        self._ranges = whole_ranges((self._keys, *self._more_keys), self._known)
        if self._identity.suspicion != "failed":
            self._identity.forget_witnesses()
        if replaced and self._on_replaced is not None:
            self._on_replaced()
        for range_ in self._ranges:
            await self._lister.list(range_, 0, replaced=replaced)
        self._identity.suspicion = ""

    def _tell_relist(self, reason: str, revision: int = 0) -> None:
        log = _log.warning if reason in ("unverifiable", "failed") else _log.error
        log("listing_again", reason=reason, prefix=_text(self._keys.start), listing_at=revision)
        self._relists[reason] += 1

    async def _list_history(self) -> bool:
        """List at the oldest revision that is of use; whether that shows the same store.

        A state that only history still has, such as the ending of an object that was deleted
        after it, is seen there and nowhere else. What contradicts what was delivered is of
        another store. Clears ``_suspicion`` when it is done. While compactions are faster than
        the list, the newest states are all that can be had, and it stays as it is.
        """
        reason = self._identity.suspicion
        verify = reason == "unverifiable"
        # Of a batch that failed all was counted, and not all was taken.
        count_keys(self._ranges, self._known)
        delivered = max(range_.resume.highest for range_ in self._ranges)
        revision = max(delivered, *(range_.listed_at for range_ in self._ranges))
        if verify:
            revision = max(revision, await find_oldest_revision(self._etcd, self._keys))
        for _ in range(_LISTS_BEHIND_COMPACTIONS):
            try:
                for range_ in self._ranges:
                    if verify and not await self._lister.agrees(range_, revision):
                        return False
                self._tell_relist(reason, revision)
                if verify:
                    self._identity.forget_witnesses()
                for range_ in self._ranges:
                    await self._lister.list(range_, revision)
            except* Compacted:
                oldest = await find_oldest_revision(self._etcd, self._keys)
                revision = max(revision, oldest)
                _log.warning("history_compacted", listing_at=revision)
            else:
                self._identity.suspicion = ""
                return True
        return True

    async def _list_first(self) -> None:
        """List what was not listed yet, all at one revision if etcd can still read it."""
        for range_ in self._ranges:
            while not range_.resume.done:
                await self._list_from_start(range_)

    async def _list_from_start(self, range_: WatchedRange) -> None:
        """List a range, unless that must be done at another revision: then choose that."""
        failure: EtcdError | None = None
        try:
            self._list_at = await self._lister.list(range_, self._list_at)
        except* (Compacted, FutureRevision) as group:
            failure = first_error(group)
        if failure is None:
            return
        wanted, self._list_at = self._list_at, 0
        if not self._start_revision:
            raise failure
        if isinstance(failure, FutureRevision):
            reason = "position_ahead"
            first_key = KeyRange.of_key(range_.resume.keys.start)
            self._list_at = (await self._etcd.range(first_key, keys_only=True)).revision
            # Whatever was delivered so far is of another store.
            self._known.deliver_all_again()
            if self._on_replaced is not None:
                self._on_replaced()
        else:
            reason = "position_compacted"
            self._list_at = await find_oldest_revision(self._etcd, range_.resume.keys)
        self._relists[reason] += 1
        start = _text(range_.resume.keys.start)
        _log.warning(reason, start=start, position=wanted, listing_at=self._list_at)

    async def _stream(self) -> None:
        """Watch all ranges on one stream, until it fails or another one is due."""
        self._progress_counts = self._identity.tells_progress
        first = len(self._ranges) - len(self._more_keys)
        divisible, count = self._ranges[:first], self._settings.ranges
        divisible = divided(divisible, count, self._known, likely_prefix=self._likely_prefix)
        self._ranges[:first] = divisible
        self._by_watch_id.clear()
        for range_ in self._ranges:
            range_.resume.stream_lost()
        async with self._etcd.watch() as stream, trio.open_nursery() as nursery:
            for range_ in self._ranges:
                self._open(stream, range_)
            if self._progress_counts:
                # Where nothing can be asked on an open stream it is asked with these requests.
                stream.request_progress()
            self._streaming = True
            self._open_stream = stream
            if self._failures:
                _log.info("watch_restored", prefix=_text(self._keys.start), failures=self._failures)
            nursery.start_soon(self._probe, stream)
            nursery.start_soon(self._idle.run, lambda: tuple(self._by_watch_id.values()))
            try:
                with trio.move_on_after(self._settings.stream_life):
                    while True:
                        await self._delivery.wait_stream_room()
                        try:
                            responses = await stream.receive()
                        except trio.EndOfChannel:
                            break
                        self._delivery.turn = 0
                        await self._take(responses, stream, nursery)
                        if self._behind:
                            self._behind.unpark_all()
                        self._delivery.heard = trio.current_time()
            finally:
                self._open_stream = None
            nursery.cancel_scope.cancel("the stream has lived long enough, or been silent")

    def _open(self, stream: WatchStream, range_: WatchedRange) -> None:
        """Watch ``range_`` under an id that this stream has not seen."""
        self._last_watch_id += 1
        self._by_watch_id[self._last_watch_id] = range_
        range_.confirmed_at = math.inf
        resume = range_.resume
        stream.create(
            WatchCreate(
                self._last_watch_id,
                resume.keys,
                resume.start_revision,
                prev_kv=self._settings.prev_kv,
                progress_notify=True,
            )
        )

    async def _take(
        self, responses: Sequence[WatchResponse], stream: WatchStream, nursery: trio.Nursery
    ) -> None:
        """Take what has been received; its changes are delivered as one batch.

        What comes before a response that cannot be used is delivered, too: it counts as received,
        and no list has all of it.
        """
        changes: list[Change] = []
        ranges: list[WatchedRange] = []
        try:
            for response in responses:
                if response.canceled and ranges:
                    # The range is listed then, behind its changes.
                    before, changes = changes, []
                    await self._give_batch(before, ranges)
                    ranges = []
                if (range_ := self._handle(response, stream, nursery)) is not None:
                    ranges.append(range_)
                    if range_.handing_out is None:
                        # Until all are taken, and after a failure until the next list.
                        range_.handing_out = range_.given_out
                    changes += range_.take(response)
        except BaseException:
            await self._give_batch(changes, ())
            raise
        await self._give_batch(changes, ranges)

    async def _give_batch(self, changes: list[Change], ranges: Sequence[WatchedRange]) -> None:
        await self._delivery.give(changes)
        for range_ in ranges:
            range_.handing_out = None

    def _handle(
        self, response: WatchResponse, stream: WatchStream, nursery: trio.Nursery
    ) -> WatchedRange | None:
        """Take a response; the range that it has events of, if it has any."""
        range_ = self._by_watch_id.get(response.watch_id)
        if response.canceled:
            if response.watch_id >= 0 and range_ is None:
                return None
            if not response.compact_revision or range_ is None:
                reason = response.cancel_reason or "etcd cancelled the watch"
                raise (error_kind(reason) or Unavailable)(f"watch: {reason}")
            del self._by_watch_id[response.watch_id]
            # etcd 3.5.30 answers no progress request while a dead watcher is registered.
            stream.cancel(response.watch_id)
            nursery.start_soon(self._recover, stream, range_, response.compact_revision)
        elif response.events:
            return range_
        elif response.created:
            if range_ is not None:
                range_.confirmed_at = trio.current_time()
        elif range_ is not None:
            # It comes behind the watcher's events, in every version.
            range_.resume.progress(response.revision)
        elif self._progress_counts:
            for each in self._by_watch_id.values():
                each.resume.progress(response.revision)
        return None

    async def _recover(self, stream: WatchStream, range_: WatchedRange, compacted: int) -> None:
        """List a range whose history was compacted away, and watch it again.

        The compaction revision itself is still readable. Never below what was delivered
        already: with moved boundaries or after a broken-off list that can be above it.
        """
        revision = max(compacted, range_.resume.highest, range_.listed_at)
        self._relists["compacted"] += 1
        # Progress may have been asked for before the range is opened again, and then says
        # nothing of it: until the next stream none is believed.
        self._progress_counts = False
        keys = range_.resume.keys
        _log.warning("history_compacted", start=_text(keys.start), listing_at=revision)
        for _ in range(_LISTS_BEHIND_COMPACTIONS):
            try:
                await self._lister.list(range_, revision)
            except* Compacted:
                # What the next compaction left is readable, too.
                revision = max(await find_oldest_revision(self._etcd, keys), revision)
            else:
                break
        else:
            await self._lister.list(range_, 0)
        self._open(stream, range_)

    async def _probe(self, stream: WatchStream) -> None:
        """Raise Unavailable when the cluster has gone silent."""
        dead_after = self._settings.dead_after
        while True:
            await trio.sleep(dead_after / 6)
            self._heal()
            if self._progress_counts:
                stream.request_progress()
            silence = trio.current_time() - self._delivery.heard
            if silence < dead_after / 2:
                continue
            # Less than nothing is left when this process itself was stopped for a while.
            with trio.move_on_after(max(dead_after - silence, dead_after / 6)) as scope:
                await self._etcd.range(KeyRange.of_key(self._keys.start), keys_only=True)
            if scope.cancelled_caught:
                raise Unavailable(f"watch: nothing heard for {dead_after:g} s")
            self._delivery.heard = trio.current_time()


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
