"""Reads whether idle ranges are unchanged, if etcd's progress notifications are not reliable.

Such a range, if it has few keys, is read every ``dead_after`` seconds. If two reads in a row
agree with the index, without a change in between, the range counts as delivered up to the first
of them. So a key that was created and deleted before that, and that a stream delivers later than
that time, is delivered late, but a start from this revision would omit it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import structlog
import trio

from etcd_actions.errors import EtcdError
from etcd_actions.etcd.api import Etcd
from etcd_actions.watch.delivered import DeliveredRevisions
from etcd_actions.watch.store_identity import StoreIdentity
from etcd_actions.watch.watched_range import WatchedRange

_MOST_COMPARED = 1000
"""Keys of a range up to which it is cheap to read whether it is idle."""

_log = structlog.get_logger(__name__)


class IdleCheck:
    """Advances the revision of idle ranges.

    Args:
        etcd: The connection.
        known: The delivered revisions.
        identity: Has whether progress notifications are reliable.
        dead_after: Seconds between two reads of a range.
    """

    def __init__(
        self, etcd: Etcd, known: DeliveredRevisions, identity: StoreIdentity, dead_after: float
    ) -> None:
        self._etcd = etcd
        self._known = known
        self._identity = identity
        self._dead_after = dead_after
        self._next = -math.inf

    async def run(self, ranges: Callable[[], Sequence[WatchedRange]]) -> None:
        """Advance the revision of idle ranges, until cancelled.

        The pause counts from one stream to the next: streams of the gateway do not last as long.
        """
        dead_after = self._dead_after
        if self._next < trio.current_time():
            self._next = trio.current_time() + dead_after
        while True:
            await trio.sleep_until(self._next)
            self._next = trio.current_time() + dead_after
            if self._identity.reports_progress:
                continue
            for range_ in ranges():
                if range_.keys > _MOST_COMPARED:
                    continue
                try:
                    await self._compare(range_)
                except EtcdError as error:
                    # The probe sees to a cluster that does not answer.
                    _log.debug("idle_range_unread", error=str(error))

    async def _compare(self, range_: WatchedRange) -> None:
        """Read whether a range is unchanged; see :attr:`Reflector.revision`."""
        done = range_.resume.done
        keys, limit = range_.resume.keys, range_.keys + 1
        found = await self._etcd.range(keys, limit=limit, keys_only=True)
        # A watcher that was opened just now may have yet to be sent what it missed.
        settled = trio.current_time() - range_.confirmed_at >= self._dead_after / 6
        same = len(found.kvs) == range_.keys and all(
            kv.mod_revision == self._known.revision_of(kv.key) for kv in found.kvs
        )
        idle = settled and same and range_.resume.done == done
        if idle and range_.compared_at and range_.compared_done == done:
            range_.idle_until = max(range_.idle_until, range_.compared_at)
        range_.compared_at, range_.compared_done = (found.revision, done) if idle else (0, 0)
