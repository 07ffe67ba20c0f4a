"""Collects runs that ended long ago, and the oldest terminal ones when etcd becomes full.

`etcd_actions.runs.removal` has the order within a run. A running action is never deleted, nor its
parents; dead letters stay, since each waits for an operator.

Each deletion compares the revision that was read, so any process may collect at any time; one is
enough.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import msgspec
import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.blobs import BlobStore
from etcd_actions.errors import EtcdError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import TERMINAL, Keyspace
from etcd_actions.runs.references import RunReferences, end_of, usable_record
from etcd_actions.runs.removal import PAUSE, Needed, Removed, RunRemover
from etcd_actions.runs.run_record import RunRecord
from etcd_actions.runs.space import Space
from etcd_actions.storage.store import Store

_MOST_EVERY: Final = 6 * 3600.0
_LEAST_EVERY: Final = 60.0
_CHECK_SPACE_EVERY: Final = 300.0
_LEADS_EVERY: Final = 1.0
LEAST_KEPT: Final = timedelta(hours=1)
"""A run that ended later than this is kept, even if etcd is full: a client may be reading it."""
_CHUNK: Final = 500
"""Runs between two reads of the references to runs."""

_log = structlog.get_logger(__name__)


class RunCollector:
    """Removes runs that ended long ago, and the oldest terminal ones when etcd becomes full.

    Args:
        store: Reads and writes.
        keys: The keys of runs.
        keep: The time for which a run is kept after its end.
        namespace: The only namespace; None for all.
        objects: Whether to remove objects and free space; False if an API server owns the objects.
        blobs: The store of the runs' data; None keeps the data.
        space: The limit of etcd's space; None for no limit.
        clock: The time, aware.
        containment: The boundaries of the process.

    Attributes:
        collected: The sum of all removed parts.
    """

    def __init__(
        self,
        store: Store,
        keys: Keyspace,
        keep: timedelta,
        *,
        namespace: str | None = None,
        objects: bool = True,
        blobs: BlobStore | None = None,
        space: Space | None = None,
        clock: Callable[[], datetime] = utc_now,
        containment: Containment | None = None,
    ) -> None:
        self.collected = Removed()
        self._store = store
        self._keys = keys
        self._keep = keep
        self._records = keys.runs + (b"" if namespace is None else f"{namespace}/".encode())
        self._space = space if objects else None
        self._blobs = blobs if objects else None
        self._remover = RunRemover(store, keys, objects=objects, blobs=self._blobs)
        self._references = RunReferences(store, keys, self._blobs)
        self._clock = clock
        self._containment = containment or Containment()

    async def run(self, leads: Callable[[], bool]) -> None:
        """Sweep periodically while ``leads`` returns True; does not return.

        An error of etcd is logged, and ends one sweep only.
        """
        every = max(_LEAST_EVERY, min(_MOST_EVERY, self._keep.total_seconds() / 100))
        pause = every if self._space is None else min(every, _CHECK_SPACE_EVERY)
        due = trio.current_time()
        while True:
            while not leads():  # noqa: ASYNC110 - only the leader is notified of an election
                await trio.sleep(_LEADS_EVERY)
            by_age = trio.current_time() >= due
            try:
                collected = await self.sweep(by_age=by_age)
                if by_age:
                    due = trio.current_time() + every
            except EtcdError as error:
                _log.warning("runs_not_collected", error=str(error))
            else:
                if collected != Removed():
                    _log.info("runs_collected", **msgspec.structs.asdict(collected))
            await trio.sleep(pause)

    async def sweep(self, *, by_age: bool = True) -> Removed:
        """Remove the runs that are old enough, and if etcd is too full the oldest of the rest.

        If it is cancelled, some runs may already be removed.

        Args:
            by_age: Whether to remove runs by their age.

        Raises:
            EtcdError: etcd failed; some may be removed.
        """
        removed = Removed()
        tried: set[bytes] = set()
        now = self._clock()
        excess = 0 if self._space is None else await self._space.excess()
        if by_age:
            removed += await self._remove(now - self._keep, tried)
        if self._space is not None and removed.bytes < excess:
            removed += await self._remove(
                now - LEAST_KEPT, tried, ended=True, enough=excess - removed.bytes
            )
        if self._space is not None and excess:
            await self._space.freed()
        return removed

    async def _remove(
        self, before: datetime, tried: set[bytes], *, ended: bool = False, enough: int | None = None
    ) -> Removed:
        """Remove runs that ended before a time, until enough bytes are free."""
        removed = Removed()
        while True:
            due, needed = await self._survey(before, tried, ended=ended)
            for _, key in due[:_CHUNK]:
                if enough is not None and removed.bytes >= enough:
                    return removed
                tried.add(key)
                await trio.sleep(PAUSE)
                one = await self._remove_one(key, before, needed)
                removed += one
                self.collected += one
            if len(due) <= _CHUNK:
                return removed

    async def _remove_one(self, key: bytes, before: datetime, needed: Needed) -> Removed:
        # Read again: the survey may be old.
        seen = await self._store.get(key)
        record = None if seen is None else usable_record(seen)
        if seen is None or record is None or end_of(record) >= before:
            return Removed()
        name = key.decode(errors="backslashreplace")
        failure: EtcdError | None = None
        with self._containment.unit("collected_run", name):
            try:
                now = self._clock().timestamp()
                return (await self._remover.remove(seen, record, needed, now)).removed
            except EtcdError as error:
                failure = error
        if failure is not None:
            raise failure
        return Removed()

    async def _survey(
        self, before: datetime, tried: set[bytes], *, ended: bool
    ) -> tuple[list[tuple[datetime, bytes]], Needed]:
        """The records of runs to remove with their ends, the oldest first, and the references."""
        due: list[tuple[datetime, bytes]] = []

        def note(kv: KeyValue, record: RunRecord) -> None:
            if not kv.key.startswith(self._records) or kv.key in tried:
                return
            if end_of(record) < before and (not ended or _has_ended(record)):
                due.append((end_of(record), kv.key))

        needed = await self._references.read(note, lambda: bool(due))
        return sorted(due), needed


def _has_ended(record: RunRecord) -> bool:
    status = record.status
    return status is not None and status.phase in TERMINAL and status.ended is not None
