"""The reflector: keeps a consumer up to date with every key under a prefix.

What it promises, and what not
------------------------------

The reflector lists the prefix at one revision and then watches from there. To its sink it
gives, for every key, a sequence of changes that is a subsequence of the states the key had
in etcd, in the same order, and that, once etcd can be reached and the key is left alone,
ends in the key's true last state.

States are left out only where etcd no longer has them: those before the first list, and
those lost to a compaction while the reflector was cut off. Then the present state is read
from a list and given out instead (``listed``). A key that vanished meanwhile gets a
*synthesised* delete, so no key that was ever given out ends without one. A key that was
deleted and made again meanwhile gets the delete first, then its new state. Through
disconnects, leader changes and restarts of etcd within its history nothing is left out,
and nothing is given out twice.

Changes of different keys have no promised order, since the prefix is watched as several key
ranges side by side. What one transaction changed can arrive in parts for the same reason.

Whoever kept :attr:`Reflector.revision` can have the first list made there, while etcd's
history reaches back to it: then every change since is given out, deletes too, as if the
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

A store can be replaced behind the same address, by a restore or a wiped directory. At every
reconnect the cluster id, the revision and two witnesses (the newest put and the newest delete
that were given out, read at their own revisions) are compared. When they disagree the whole
prefix is listed again, every present state is given out, new or not, and revisions may be
lower than before: the one case in which the ``mod_revision`` of a key goes back.

What is raised unexpectedly, by a response that cannot be used or by the sink, ends the stream
and not the reflector. Then the state is read from a list (reason ``failed``), compared with what
was surely delivered, and the rest is delivered, maybe for the second time. Until a stream has
lived for a while after that, the reflector is parked in its
:class:`~etcd_actions.containment.Containment`.

Cancelling :meth:`Reflector.run` at any point leaves nothing behind.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import structlog
import trio

from etcd_actions.backoff import Backoff
from etcd_actions.containment import Containment, describe
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
from etcd_actions.etcd.api import (
    Etcd,
    KeyRange,
    KeyValue,
    WatchCreate,
    WatchResponse,
    WatchStream,
)
from etcd_actions.etcd.history import find_oldest_revision
from etcd_actions.etcd.paging import open_pages
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.etcd.versions import (
    EtcdVersion,
    free_of_known_bugs,
    has_reliable_progress,
    known_bugs,
)
from etcd_actions.watch.change import Change, ChangeKind
from etcd_actions.watch.known import Known, Noting, Sink
from etcd_actions.watch.ranges import split
from etcd_actions.watch.resume import Resume, repartition

_log = structlog.get_logger(__name__)

_BACKOFF = Backoff(initial=0.05, cap=2.0)
_FEW_KEYS = 256
_MANY_FAILURES = 8
_LISTS_BEHIND_COMPACTIONS = 5
_MOST_COMPARED = 1000
"""Keys of a range up to which it is cheap to read whether it is idle."""
_TURN = 128
"""Changes that the sink takes before others have their turn."""
_ASK_EVERY = 0.1
_REFUSALS = (PermissionDenied, Unauthenticated, InvalidRequest)


@dataclass(frozen=True, kw_only=True)
class ReflectorSettings:
    """How a prefix is watched. Times are in seconds.

    Attributes:
        ranges: How many key ranges to watch side by side. One watcher alone falls behind,
            and slows etcd down, from a few thousand changes a second on.
        prev_kv: Whether to ask for the previous value with each change. It costs etcd a read
            an event, and is not there after a compaction.
        dead_after: The longest silence, and unanswered question, before a stream counts
            as dead. etcd itself says nothing for ten minutes when nothing changes.
        stream_life: A stream is opened anew after this time: boundaries follow the keys,
            and etcd checks permissions only when a watch is opened.
        backoff: Delays between failed tries.
    """

    ranges: int = 4
    prev_kv: bool = False
    dead_after: float = 15.0
    stream_life: float = 1800.0
    backoff: Backoff = _BACKOFF


@dataclass(frozen=True, kw_only=True)
class ReflectorStatistics:
    """What a reflector has done so far.

    Attributes:
        synced: Whether the first list has been given out.
        streaming: Whether a stream is open and all its ranges are watched.
        revision: Every change up to it has been given out.
        ranges: Number of key ranges watched side by side.
        keys: Number of keys that exist, as far as is known.
        events: Number of changes given out.
        reconnects: Streams lost, by the name of the error.
        relists: Lists after the first, by reason.
        silence: Seconds since etcd was last heard; infinite before the first time.
    """

    synced: bool
    streaming: bool
    revision: int
    ranges: int
    keys: int
    events: int
    reconnects: dict[str, int]
    relists: dict[str, int]
    silence: float


@dataclass(eq=False)
class _Range:
    """One watched range.

    ``keys`` counts its known keys. ``handing_out`` is what was given out before the changes at
    hand; None where there are none. ``listed_at`` is the revision of the last list of it,
    finished or not; ``idle_until`` one up to which it was read to be as it is known,
    ``compared_at`` the newest such read and ``compared_done`` what was done then;
    ``confirmed_at`` when etcd confirmed its watcher.
    """

    resume: Resume
    keys: int = 0
    handing_out: int | None = None
    listed_at: int = 0
    idle_until: int = 0
    compared_at: int = 0
    compared_done: int = 0
    confirmed_at: float = math.inf

    @property
    def given_out(self) -> int:
        """Every change up to it has been given out."""
        if self.handing_out is not None:
            return self.handing_out
        return max(self.resume.done, self.idle_until)


class Reflector:
    """Lists and watches one prefix; see the module's text for what it promises.

    Args:
        etcd: The connection.
        keys: The range to watch, as a rule a prefix; or several that do not overlap. The
            first one, which is taken to have most of the keys, is cut into ranges that are
            watched side by side; each other one is watched as it is.
        sink: Who gets the changes.
        known: What the sink knows of the keys: it notes each change there when it takes it. By
            default the reflector keeps that. What is known at the start is given out again,
            after its delete if it was deleted meanwhile.
        start_revision: Where to make the first list, so that deletions since then are seen;
            0 for the newest. It is never made below a revision of ``known``. Where history
            does not reach back to it the oldest state that can be read is listed; a store
            that is not there yet is another one, and is listed as it is. Both are logged,
            and counted as relists for ``position_compacted`` and ``position_ahead``.
        merge: Gives what the sink needs of a batch, where it can do without states that newer ones
            of the same batch replace.
        on_replaced: Called when the store turns out to be another one, before its states
            are given out.
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
        merge: Callable[[Sequence[Change]], Sequence[Change]] | None = None,
        on_replaced: Callable[[], None] | None = None,
        likely_prefix: bytes = b"",
        settings: ReflectorSettings | None = None,
        containment: Containment | None = None,
        names_known_bugs: bool = True,
    ) -> None:
        self._containment = containment or Containment()
        self._names_known_bugs = names_known_bugs
        self._failed = False
        self._etcd = etcd
        self._keys, *self._more_keys = _disjoint([keys] if isinstance(keys, KeyRange) else keys)
        if known is None:
            known = sink = Noting(sink)
        self._sink = sink
        self._known = known
        known.deliver_all_again()
        if start_revision:
            start_revision = max(start_revision, *map(self._known_at, self._known), 0)
        self._start_revision = start_revision
        self._list_at = self._start_revision
        self._merge = merge
        self._on_replaced = on_replaced
        self._likely_prefix = likely_prefix or self._keys.start
        self._settings = settings or ReflectorSettings()
        self._ranges = self._unsplit()
        self._by_watch_id: dict[int, _Range] = {}
        self._last_watch_id = 0
        self._synced = False
        self._suspicion = ""
        self._last_put: KeyValue | None = None
        self._last_delete: Change | None = None
        self._cluster_id = 0
        self._versions: set[EtcdVersion] = set()
        self._trust_progress = False
        self._progress_counts = False
        self._compare_next = -math.inf
        self._streaming = False
        self._open_stream: WatchStream | None = None
        # Who waits for the watch to get further.
        self._behind = trio.lowlevel.ParkingLot()
        self._heard = -math.inf
        self._failures = 0
        self._events = 0
        # Changes that the sink has taken since others had their turn.
        self._turn = 0
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
            events=self._events,
            reconnects=dict(self._reconnects),
            relists=dict(self._relists),
            silence=trio.current_time() - self._heard,
        )

    @property
    def revision(self) -> int:
        """Every change up to it has been given out: what may be kept as a position.

        Each range has it from its own changes, and while it is idle from etcd's word, where
        that can be trusted (see :func:`~etcd_actions.etcd.versions.has_reliable_progress`).
        Where it cannot, or is not to be had, an idle range of few keys is read every
        ``dead_after`` seconds: what twice in a row was found to be just as it is known, with
        no change in between, counts as given out up to the first of the two reads. So a key
        that was made and deleted in between could be passed over, by a stream that lags by
        more than that time; it is given out late, but a start from here would not see it.
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

        With ``nursery.start`` returns the list's revision once the list was given out.
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
            await self._verify_store()
            if self._suspicion:
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
        self._suspicion = self._suspicion or "failed"
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
            log("watch_lost", error=str(failure), failures=failures, retry_in=round(delay, 3))

    async def _verify_store(self) -> None:
        """Is this still the store that was watched? Sets ``_suspicion`` if that is not sure."""
        done = max(range_.resume.highest for range_ in self._ranges)
        newest = await self._etcd.range(KeyRange.of_key(self._keys.start), keys_only=True)
        if self._cluster_id and newest.cluster_id != self._cluster_id:
            self._suspicion = "replaced"
        elif newest.revision < done:
            self._suspicion = "went_back"
        elif self._suspicion in ("", "unverifiable", "failed"):
            self._suspicion = await self._hear_witnesses() or self._suspicion
        self._cluster_id = newest.cluster_id
        try:
            version = EtcdVersion.parse((await self._etcd.status()).version)
        except (PermissionDenied, InvalidRequest, ValueError):
            # Only a known version is known to be reliable; proxies may not know the method.
            self._trust_progress = False
        else:
            self._trust_progress = has_reliable_progress(version)
            self._tell_known_bugs(version)

    def _tell_known_bugs(self, version: EtcdVersion) -> None:
        """Log what a version does wrong, once: it explains what nothing here can."""
        if version in self._versions or not self._names_known_bugs:
            return
        self._versions.add(version)
        if bugs := known_bugs(version):
            log = _log.info if all(bug.averted for bug in bugs) else _log.warning
            log(
                "etcd_has_known_bugs",
                version=str(version),
                bugs=[f"{bug.id}: {bug.consequence}" for bug in bugs],
                fixed_in=str(free_of_known_bugs(version)),
            )

    async def _hear_witnesses(self) -> str:
        """What the newest changes that were given out say against the store; empty if nothing."""
        put, delete = self._last_put, self._last_delete
        try:
            if delete is not None:
                key, revision = KeyRange.of_key(delete.key), delete.mod_revision
                after = await self._etcd.range(key, revision=revision, keys_only=True)
                before = await self._etcd.range(key, revision=revision - 1, keys_only=True)
                if after.kvs or not before.kvs:
                    return "replaced"
        except FutureRevision:
            return "went_back"
        except Compacted:
            # Without its history a delete proves nothing: the put decides.
            delete = None
        if put is None:
            return "" if delete is not None or self._last_delete is None else "unverifiable"
        key = KeyRange.of_key(put.key)
        try:
            return (
                ""
                if (await self._etcd.range(key, revision=put.mod_revision)).kvs == [put]
                else "replaced"
            )
        except FutureRevision:
            return "went_back"
        except Compacted:
            # Unchanged at the head it proves as much; changed since, only a list can tell.
            return "" if (await self._etcd.range(key)).kvs == [put] else "unverifiable"

    async def _relist(self) -> None:
        """List everything: the store may be another one."""
        if self._suspicion in ("unverifiable", "failed") and not await self._list_history():
            self._suspicion = "replaced"
        if not self._suspicion:
            return
        replaced = self._suspicion not in ("unverifiable", "failed")
        self._tell_relist(self._suspicion)
        self._ranges = self._unsplit()
        if self._suspicion != "failed":
            self._last_put = self._last_delete = None
        if replaced and self._on_replaced is not None:
            self._on_replaced()
        for range_ in self._ranges:
            await self._list(range_, 0, replaced=replaced)
        self._suspicion = ""

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
        reason = self._suspicion
        verify = reason == "unverifiable"
        delivered = max(range_.resume.highest for range_ in self._ranges)
        revision = max(delivered, *(range_.listed_at for range_ in self._ranges))
        if verify:
            revision = max(revision, await find_oldest_revision(self._etcd, self._keys))
        for _ in range(_LISTS_BEHIND_COMPACTIONS):
            try:
                for range_ in self._ranges:
                    if verify and not await self._agrees(range_, revision):
                        return False
                self._tell_relist(reason, revision)
                if verify:
                    self._last_put = self._last_delete = None
                for range_ in self._ranges:
                    await self._list(range_, revision)
            except* Compacted:
                oldest = await find_oldest_revision(self._etcd, self._keys)
                revision = max(revision, oldest)
                _log.warning("history_compacted", listing_at=revision)
            else:
                self._suspicion = ""
                return True
        return True

    async def _agrees(self, range_: _Range, revision: int) -> bool:
        """Whether what was delivered of a range can have led to its state at a revision."""
        done = range_.handing_out if range_.handing_out is not None else range_.resume.done
        async with open_pages(
            self._etcd, range_.resume.keys, revision=revision, keys_only=True
        ) as pages:
            async for page in pages:
                for kv in page.kvs:
                    seen = self._known.revision_of(kv.key)
                    # It is not sure which of these were delivered.
                    if seen >= 0 and not (kv.mod_revision == seen or kv.mod_revision > done):
                        return False
        return True

    def _known_at(self, key: bytes) -> int:
        """At which revision a key was delivered last, surely or not."""
        return abs(self._known.revision_of(key))

    def _unsplit(self) -> list[_Range]:
        """The ranges as they were asked for, the first one whole, to be listed."""
        ranges = [_Range(Resume(keys, 0)) for keys in (self._keys, *self._more_keys)]
        for key in self._known:
            for range_ in ranges:
                range_.keys += key in range_.resume.keys
        return ranges

    async def _list_first(self) -> None:
        """List what was not listed yet, all at one revision if etcd can still read it."""
        for range_ in self._ranges:
            while not range_.resume.done:
                await self._list_from_start(range_)

    async def _list_from_start(self, range_: _Range) -> None:
        """List a range, unless that must be done at another revision: then choose that."""
        failure: EtcdError | None = None
        try:
            self._list_at = await self._list(range_, self._list_at)
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
            # Whatever was given out so far is of another store.
            self._known.deliver_all_again()
            if self._on_replaced is not None:
                self._on_replaced()
        else:
            reason = "position_compacted"
            self._list_at = await find_oldest_revision(self._etcd, range_.resume.keys)
        self._relists[reason] += 1
        start = _text(range_.resume.keys.start)
        _log.warning(reason, start=start, position=wanted, listing_at=self._list_at)

    async def _list(self, range_: _Range, revision: int, *, replaced: bool = False) -> int:
        """List a range and give out what differs from what was given out before.

        Args:
            range_: It is watched from the list's revision afterwards.
            revision: Where to list, not below anything given out; 0 for the newest.
            replaced: The store is another one: equal revisions prove nothing, so every
                state is given out.
        """
        known, keys, listed = self._known, range_.resume.keys, 0
        missing = {key for key in known if key in keys} if range_.keys else set()
        async with open_pages(self._etcd, keys, revision=revision) as pages:
            async for page in pages:
                await self._sink.wait_list_room()
                self._heard = trio.current_time()
                revision = range_.listed_at = page.revision
                listed += len(page.kvs)
                range_.keys = max(range_.keys, listed)
                changes = []
                for kv in page.kvs:
                    seen = known.revision_of(kv.key)
                    if seen:
                        missing.discard(kv.key)
                        if kv.mod_revision == seen and not replaced:
                            continue
                        if kv.create_revision > abs(seen):
                            changes.append(_synthesised_delete(kv.key, kv.create_revision - 1))
                            seen = 0
                    changes.append(_listed(kv, ChangeKind.MODIFIED if seen else ChangeKind.ADDED))
                await self._give(changes)
        await self._give(
            [_synthesised_delete(key, max(self._known_at(key), revision)) for key in missing]
        )
        range_.keys = listed
        range_.resume.restart(revision)
        range_.handing_out = None
        return revision

    async def _stream(self) -> None:
        """Watch all ranges on one stream, until it fails or another one is due."""
        self._progress_counts = self._trust_progress
        self._repartition()
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
                _log.info("watch_restored", failures=self._failures)
            nursery.start_soon(self._probe, stream)
            nursery.start_soon(self._compare_idle)
            try:
                with trio.move_on_after(self._settings.stream_life):
                    while True:
                        await self._sink.wait_stream_room()
                        try:
                            responses = await stream.receive()
                        except trio.EndOfChannel:
                            break
                        self._turn = 0
                        await self._take(responses, stream, nursery)
                        if self._behind:
                            self._behind.unpark_all()
                        self._heard = trio.current_time()
            finally:
                self._open_stream = None
            nursery.cancel_scope.cancel("the stream has lived long enough, or been silent")

    def _repartition(self) -> None:
        """Move the range boundaries to where the keys are, when that is worth it."""
        more = len(self._more_keys)
        old, others = self._ranges[: len(self._ranges) - more], self._ranges[-more:] if more else []
        total = sum(range_.keys for range_ in old)
        count = self._settings.ranges
        largest = max(range_.keys for range_ in old)
        if len(old) == count and largest <= max(_FEW_KEYS, 2 * total // count):
            return
        known = [key for key in self._known if key in self._keys]
        bounds = split(self._keys, count, known, likely_prefix=self._likely_prefix)
        moved = repartition([range_.resume for range_ in old], bounds)
        listed_at = max(range_.listed_at for range_ in old)
        idle_until = min(range_.given_out for range_ in old)
        ranges = [_Range(resume, listed_at=listed_at, idle_until=idle_until) for resume in moved]
        starts = [resume.keys.start for resume in moved]
        for key in known:
            ranges[bisect_right(starts, key) - 1].keys += 1
        self._ranges = [*ranges, *others]

    def _open(self, stream: WatchStream, range_: _Range) -> None:
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
        """Take what has been received; its changes are given out as one batch."""
        changes: list[Change] = []
        ranges: list[_Range] = []
        for response in responses:
            if response.canceled and changes:
                # The range is listed then, behind its changes.
                await self._give_batch(changes, ranges)
                changes, ranges = [], []
            if (range_ := self._handle(response, stream, nursery)) is not None:
                ranges.append(range_)
                if range_.handing_out is None:
                    # Until all are taken, and after a failure until the next list.
                    range_.handing_out = range_.given_out
                changes += _changes_of(range_, response)
        await self._give_batch(changes, ranges)

    async def _give_batch(self, changes: list[Change], ranges: list[_Range]) -> None:
        await self._give(changes)
        for range_ in ranges:
            range_.handing_out = None

    def _handle(
        self, response: WatchResponse, stream: WatchStream, nursery: trio.Nursery
    ) -> _Range | None:
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

    async def _give(self, changes: Sequence[Change]) -> None:
        """Have the sink take changes; others have their turn in between.

        It is never left half-way but by a failure: where it is, is what counts as given out.
        """
        self._events += len(changes)
        self._remember_witnesses(changes)
        if self._merge is not None and len(changes) > 1:
            changes = self._merge(changes)
        for start in range(0, len(changes), _TURN):
            part = changes if len(changes) <= _TURN else changes[start : start + _TURN]
            if self._turn >= _TURN:
                self._turn = 0
                await trio.lowlevel.cancel_shielded_checkpoint()
            self._turn += len(part)
            self._sink.dispatch(part)

    def _remember_witnesses(self, changes: Sequence[Change]) -> None:
        """Keep the newest put and the newest delete, to tell a replaced store by."""
        newest_put = self._last_put.mod_revision if self._last_put else 0
        newest_delete = self._last_delete.mod_revision if self._last_delete else 0
        for change in reversed(changes):
            if change.version:
                if change.mod_revision > newest_put:
                    self._last_put = KeyValue(
                        change.key,
                        change.value or b"",
                        change.create_revision,
                        change.mod_revision,
                        change.version,
                        change.lease,
                    )
                    newest_put = change.mod_revision
                # The stream is in order, so this was its newest; a list is not.
                if not change.listed:
                    return
            elif not change.synthesised and change.mod_revision > newest_delete:
                self._last_delete = change
                newest_delete = change.mod_revision

    async def _recover(self, stream: WatchStream, range_: _Range, compacted: int) -> None:
        """List a range whose history was compacted away, and watch it again.

        The compaction revision itself is still readable. Never below what was given out
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
                await self._list(range_, revision)
            except* Compacted:
                # What the next compaction left is readable, too.
                revision = max(await find_oldest_revision(self._etcd, keys), revision)
            else:
                break
        else:
            await self._list(range_, 0)
        self._open(stream, range_)

    async def _compare_idle(self) -> None:
        """Move on the revision of idle ranges, where etcd cannot be asked for progress.

        The pause counts from one stream to the next: streams of the gateway do not last as long.
        """
        dead_after = self._settings.dead_after
        if self._compare_next < trio.current_time():
            self._compare_next = trio.current_time() + dead_after
        while True:
            await trio.sleep_until(self._compare_next)
            self._compare_next = trio.current_time() + dead_after
            if self._trust_progress:
                continue
            for range_ in tuple(self._by_watch_id.values()):
                if range_.keys > _MOST_COMPARED:
                    continue
                try:
                    await self._compare(range_)
                except EtcdError as error:
                    # The probe sees to a cluster that does not answer.
                    _log.debug("idle_range_unread", error=str(error))

    async def _compare(self, range_: _Range) -> None:
        """Read whether a range is as it is known; see :attr:`revision`."""
        done = range_.resume.done
        keys, limit = range_.resume.keys, range_.keys + 1
        found = await self._etcd.range(keys, limit=limit, keys_only=True)
        # A watcher that was opened just now may have yet to be sent what it missed.
        settled = trio.current_time() - range_.confirmed_at >= self._settings.dead_after / 6
        same = len(found.kvs) == range_.keys and all(
            kv.mod_revision == self._known.revision_of(kv.key) for kv in found.kvs
        )
        idle = settled and same and range_.resume.done == done
        if idle and range_.compared_at and range_.compared_done == done:
            range_.idle_until = max(range_.idle_until, range_.compared_at)
        range_.compared_at, range_.compared_done = (found.revision, done) if idle else (0, 0)

    async def _probe(self, stream: WatchStream) -> None:
        """Raise Unavailable when the cluster has gone silent."""
        dead_after = self._settings.dead_after
        while True:
            await trio.sleep(dead_after / 6)
            self._heal()
            if self._progress_counts:
                stream.request_progress()
            silence = trio.current_time() - self._heard
            if silence < dead_after / 2:
                continue
            # Less than nothing is left when this process itself was stopped for a while.
            with trio.move_on_after(max(dead_after - silence, dead_after / 6)) as scope:
                await self._etcd.range(KeyRange.of_key(self._keys.start), keys_only=True)
            if scope.cancelled_caught:
                raise Unavailable(f"watch: nothing heard for {dead_after:g} s")
            self._heard = trio.current_time()


def _changes_of(range_: _Range, response: WatchResponse) -> list[Change]:
    """What the events of a response are to a sink; they count as received."""
    changes = []
    for event in range_.resume.accept(response.events, fragment=response.fragment):
        version = event.version
        if version == 1:
            kind = ChangeKind.ADDED
            range_.keys += 1
        elif version:
            kind = ChangeKind.MODIFIED
        else:
            kind = ChangeKind.DELETED
            range_.keys -= 1
        changes.append(
            Change(
                kind,
                event.key,
                event.value,
                event.create_revision,
                event.mod_revision,
                version,
                event.lease,
                prev_value=None if event.prev_kv is None else event.prev_kv.value,
            )
        )
    return changes


def _disjoint(keys: Sequence[KeyRange]) -> Sequence[KeyRange]:
    """The same ranges, if no key is in two of them."""
    if not keys:
        raise ValueError("keys: there is nothing to watch: give at least one range")
    in_order = sorted(keys)
    for before, after in pairwise(in_order):
        if after.start < before.end:
            raise ValueError(f"keys: {before} and {after} overlap: give each key once")
    return keys


def _listed(kv: KeyValue, kind: ChangeKind) -> Change:
    return Change(
        kind,
        kv.key,
        kv.value,
        kv.create_revision,
        kv.mod_revision,
        kv.version,
        kv.lease,
        listed=True,
    )


def _synthesised_delete(key: bytes, revision: int) -> Change:
    return Change(ChangeKind.DELETED, key, b"", 0, revision, 0, listed=True, synthesised=True)


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
