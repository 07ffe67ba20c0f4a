"""Decides which ranges a reflector lists, and at which revision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import structlog

from etcd_actions.errors import Compacted, EtcdError, FutureRevision, first_error
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.etcd.oldest_revision import find_oldest_revision
from etcd_actions.watch.delivered import DeliveredRevisions
from etcd_actions.watch.delivery import Delivery
from etcd_actions.watch.lister import Lister
from etcd_actions.watch.store_identity import StoreIdentity
from etcd_actions.watch.watched_range import WatchedRange, WatchedRanges

_LISTS_BEHIND_COMPACTIONS = 5
"""Tries to list a revision, each of which was compacted before the list had ended."""

_log = structlog.get_logger(__name__)


class Listings:
    """Lists the ranges of a reflector at the start, after a compaction, and after a replacement.

    Args:
        etcd: The connection.
        ranges: The ranges to list.
        known: The delivered revisions.
        identity: Its ``suspicion`` makes a relist necessary.
        delivery: Receives the differences.
        start_revision: The revision of the first list; 0 for the newest.
        on_replaced: Called before the states of another store are delivered.

    Attributes:
        synced: Whether the first list was delivered.
        relists: The number of later lists, by reason.
    """

    def __init__(
        self,
        etcd: Etcd,
        ranges: WatchedRanges,
        known: DeliveredRevisions,
        identity: StoreIdentity,
        delivery: Delivery,
        *,
        start_revision: int,
        on_replaced: Callable[[], None] | None,
    ) -> None:
        self._etcd = etcd
        self._ranges = ranges
        self._known = known
        self._identity = identity
        self._lister = Lister(etcd, known, delivery)
        self._start_revision = self._list_at = start_revision
        self._on_replaced = on_replaced
        self.synced = False
        self.relists: Counter[str] = Counter()

    async def list_first(self) -> None:
        """List the ranges that were not listed yet, at one revision if etcd can still read it."""
        for range_ in self._ranges.all:
            while not range_.resume.done:
                await self._list_from_start(range_)
        self.synced = True

    async def _list_from_start(self, range_: WatchedRange) -> None:
        """List a range; if etcd cannot read the revision, choose another one."""
        failure: EtcdError | None = None
        try:
            self._list_at = await self._lister.list(range_, self._list_at)
        except* (Compacted, FutureRevision) as group:
            failure = first_error(group)
        if failure is None:
            return
        requested, self._list_at = self._list_at, 0
        if not self._start_revision:
            raise failure
        if isinstance(failure, FutureRevision):
            reason = "start_ahead"
            first_key = KeyRange.of_key(range_.resume.keys.start)
            self._list_at = (await self._etcd.range(first_key, keys_only=True)).revision
            # All that was delivered so far is of another store.
            self._known.redeliver_all()
            self._report_replaced()
        else:
            reason = "start_compacted"
            self._list_at = await find_oldest_revision(self._etcd, range_.resume.keys)
        self.relists[reason] += 1
        start = text_of(range_.resume.keys.start)
        _log.warning(reason, start=start, requested=requested, listing_at=self._list_at)

    async def list_compacted(self, range_: WatchedRange, compacted: int) -> None:
        """List a range whose history was compacted up to a revision, which is still readable.

        The list is never at a revision below the delivered changes. These can be above
        ``compacted`` after the range was divided, or after a list that did not end.
        """
        revision = max(compacted, range_.resume.highest, range_.listed_revision)
        self.relists["compacted"] += 1
        keys = range_.resume.keys
        _log.warning("history_compacted", start=text_of(keys.start), listing_at=revision)
        for _ in range(_LISTS_BEHIND_COMPACTIONS):
            try:
                await self._lister.list(range_, revision)
            except* Compacted:
                revision = max(await find_oldest_revision(self._etcd, keys), revision)
            else:
                return
        await self._lister.list(range_, 0)

    async def relist(self) -> None:
        """List everything if the store may be another one, or if the delivery failed."""
        identity = self._identity
        if identity.suspicion in ("unverifiable", "failed") and not await self._list_history():
            identity.suspicion = "replaced"
        if not identity.suspicion:
            return
        replaced = identity.suspicion not in ("unverifiable", "failed")
        self._log_relist(identity.suspicion)
        self._ranges.restart()
        if identity.suspicion != "failed":
            identity.forget_references()
        if replaced:
            self._report_replaced()
        for range_ in self._ranges.all:
            await self._lister.list(range_, 0, replaced=replaced)
        identity.suspicion = ""

    async def _list_history(self) -> bool:
        """List at the oldest useful revision; returns whether that shows the same store.

        Only history still has the terminal state of an object that was deleted afterwards. If the
        store is unverifiable, a list that contradicts the delivered changes shows another store.
        The list clears the suspicion. If each try is compacted before it ends, only the newest
        states can be read, and the suspicion stays.
        """
        ranges, reason = self._ranges, self._identity.suspicion
        verify = reason == "unverifiable"
        # A delivery that failed has counted all keys of its batch, and delivered only some.
        ranges.count_keys()
        revision = max(ranges.highest, *(range_.listed_revision for range_ in ranges.all))
        keys = ranges.all[0].resume.keys
        if verify:
            revision = max(revision, await find_oldest_revision(self._etcd, keys))
        for _ in range(_LISTS_BEHIND_COMPACTIONS):
            try:
                for range_ in ranges.all:
                    if verify and not await self._lister.agrees(range_, revision):
                        return False
                self._log_relist(reason, revision)
                if verify:
                    self._identity.forget_references()
                for range_ in ranges.all:
                    await self._lister.list(range_, revision)
            except* Compacted:
                revision = max(revision, await find_oldest_revision(self._etcd, keys))
                _log.warning("history_compacted", listing_at=revision)
            else:
                self._identity.suspicion = ""
                return True
        return True

    def _report_replaced(self) -> None:
        if self._on_replaced is not None:
            self._on_replaced()

    def _log_relist(self, reason: str, revision: int = 0) -> None:
        log = _log.warning if reason in ("unverifiable", "failed") else _log.error
        prefix = text_of(self._ranges.first_key)
        log("listing_again", reason=reason, prefix=prefix, listing_at=revision)
        self.relists[reason] += 1


def text_of(key: bytes) -> str:
    """A key as text for a log line."""
    return key.decode(errors="backslashreplace")
