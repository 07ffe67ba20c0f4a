"""Splits large shards and merges small ones, by the numbers of their keys.

The owner does it. It finishes the calls in flight, saves the checkpoint, resigns, and replaces the
shard in one transaction, which compares that the shard has no owner. Then the targets of the new
shards list them. Subscriptions stay on the watch of the old shard.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Final

import structlog
import trio

from etcd_actions.errors import EtcdActionsError
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.pipeline.shard_watch import ShardWatch
from etcd_actions.shards import Membership, ShardKeys, replace_shards
from etcd_actions.shards.shard_range import split_boundary

EVERY: Final = 60.0
"""Seconds between two looks at the sizes, each followed by one change at most."""
MOST_SHARDS: Final = 256
"""The number of shards from which on none is split: each has a cost in every process."""
_MOST_KNOWN: Final = 20_000
"""About the most keys by which a boundary is chosen."""
_TOO_LARGE: Final = 2.0
"""The multiple of the mean from which on a shard is split."""
_TOO_SMALL: Final = 0.5
"""The part of the mean below which two neighbours together are merged."""

_log: Final = structlog.get_logger(__name__)


class Reshaper:
    """See the module's text.

    Args:
        etcd: The connection.
        keys: The keyspace.
        shard_keys: The keys of the shards.
        membership: The membership of this process.
        watches: Returns the shards that this process watches.
        split_from: The least number of keys of a shard that is split.
        least: The number of shards from which on shards are merged.
    """

    def __init__(
        self,
        etcd: Etcd,
        keys: Keyspace,
        shard_keys: ShardKeys,
        membership: Membership,
        watches: Callable[[], Collection[ShardWatch]],
        *,
        split_from: int,
        least: int,
    ) -> None:
        self._etcd = etcd
        self._keys = keys
        self._shard_keys = shard_keys
        self._membership = membership
        self._watches = watches
        self._split_from = split_from
        self._least = least

    async def run(self) -> None:
        """Call :meth:`reshape_once` about once in :data:`EVERY` seconds, until cancelled."""
        while True:
            # Jitter, so that the processes do not reshape at the same time.
            await trio.sleep(EVERY * random.uniform(0.75, 1.25))
            try:
                await self.reshape_once()
            except EtcdActionsError as error:
                _log.info("shards_not_changed", reason=str(error))

    async def reshape_once(self) -> bool:
        """Split or merge shards of this process, if some are too large or too small.

        After an error or a cancellation the shards may have been replaced.

        Returns:
            Whether shards were replaced.

        Raises:
            EtcdError: A request failed.
            FailedPrecondition: Another process changed the shards, or owns one by now.
        """
        view = self._membership.view
        if view is None or view.table.problem:
            return False
        count = len(view.table.shards)
        owned = [each for each in self._watches() if each.leads and each.is_to_stay]
        if not owned:
            return False
        largest = max(owned, key=lambda each: each.processor.key_count)
        size = largest.processor.key_count
        if size < self._split_from and count <= self._least:
            return False
        mean = await self._count() / count
        if size > _TOO_LARGE * mean and size >= self._split_from and count < MOST_SHARDS:
            known = largest.processor.known_keys()
            step = 1 + len(known) // _MOST_KNOWN
            boundary = split_boundary(largest.shard.range, map(self._suffix, known[::step]))
            if boundary is not None:
                await self._replace([largest], [boundary])
                return True
        if count <= self._least:
            return False
        owned.sort(key=lambda each: each.shard.range)
        for one, other in pairwise(owned):
            small = one.processor.key_count + other.processor.key_count < _TOO_SMALL * mean
            if small and one.shard.range.end == other.shard.range.start:
                await self._replace([one, other], [])
                return True
        return False

    async def _replace(self, watches: Sequence[ShardWatch], boundaries: Sequence[bytes]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for watch in watches:
                    watch.hold_back()
                    nursery.start_soon(watch.resign)
            shards = [watch.shard for watch in watches]
            await replace_shards(self._etcd, self._shard_keys, shards, boundaries)
        finally:
            for watch in watches:
                watch.stand_again()

    async def _count(self) -> int:
        """The number of keys of all shards."""
        count = 0
        for prefix in (self._keys.prefix, self._keys.traces):
            keys = self._shard_keys.scope.keys(prefix)
            count += (await self._etcd.range(keys, limit=1, keys_only=True)).total
        return count

    def _suffix(self, key: bytes) -> bytes:
        """The part ``<namespace>/<name>`` of a key."""
        for prefix in (self._keys.prefix, self._keys.traces):
            if key.startswith(prefix):
                return key[len(prefix) :]
        return key
