"""Reads whether idle ranges are unchanged, if etcd's progress notifications are not reliable.

Such a range, if it has few keys, is read every ``dead_after`` seconds. If two reads in a row
agree with the index, and no change arrived between them, the range counts as delivered up to the
revision of the first read.

There is one gap. A key can be created and deleted before the first read, and its events can arrive
more than ``dead_after`` later. The running watch delivers them late. A process that starts from the
saved revision omits them.
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
from etcd_actions.watch.watch_settings import ReflectorSettings
from etcd_actions.watch.watched_range import WatchedRange

_MOST_COMPARED = 1000
"""The most keys of a range that is read: a larger one costs too much."""

_log = structlog.get_logger(__name__)


class IdleCheck:
    """Advances the revision of idle ranges.

    Args:
        etcd: The connection.
        known: The delivered revisions.
        identity: Its ``reports_progress`` makes the reads unnecessary.
        settings: ``dead_after`` is the time between two reads of a range.
    """

    def __init__(
        self,
        etcd: Etcd,
        known: DeliveredRevisions,
        identity: StoreIdentity,
        settings: ReflectorSettings,
    ) -> None:
        self._etcd = etcd
        self._known = known
        self._identity = identity
        self._settings = settings
        self._next = -math.inf

    async def run(self, ranges: Callable[[], Sequence[WatchedRange]]) -> None:
        """Advance the revision of idle ranges, until cancelled.

        The time of the next read is kept from one stream to the next, because a stream of the
        gateway lasts less than ``dead_after``.
        """
        dead_after = self._settings.dead_after
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
                    # RangeStream.probe ends the stream of a cluster that does not answer.
                    _log.debug("idle_range_unread", error=str(error))

    async def _compare(self, range_: WatchedRange) -> None:
        """Read a range; after two equal reads advance its revision; see the module docstring."""
        done = range_.resume.done
        keys, limit = range_.resume.keys, range_.keys + 1
        found = await self._etcd.range(keys, limit=limit, keys_only=True)
        # etcd may not yet have sent the missed events to a watcher that it just confirmed.
        settled = trio.current_time() - range_.confirmed_at >= self._settings.probe_interval
        same = len(found.kvs) == range_.keys and all(
            kv.mod_revision == self._known.revision_of(kv.key) for kv in found.kvs
        )
        idle = settled and same and range_.resume.done == done
        if idle and range_.compared_revision and range_.compared_done == done:
            range_.idle_revision = max(range_.idle_revision, range_.compared_revision)
        range_.compared_revision, range_.compared_done = (found.revision, done) if idle else (0, 0)
