"""Collects runs that ended long ago, and the oldest terminal ones when etcd becomes full.

`etcd_actions.runs.removal` has the order within a run. A running action is never deleted, nor its
parents; dead letters stay, since each waits for an operator.

Each deletion compares the revision that was read, so any process may collect at any time; one is
enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec
import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.blobs import BlobError, BlobStore
from etcd_actions.blobs.references import runs_in
from etcd_actions.blobs.searched_files import SearchedFiles
from etcd_actions.catalog import source_of
from etcd_actions.errors import DecodeError, EtcdError
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import Keyspace
from etcd_actions.runs.progress import ENDS
from etcd_actions.runs.removal import PAUSE, Needed, Removed, RunName, RunRemover
from etcd_actions.runs.run_record import RunRecord, decode_record
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


class _Survey(NamedTuple):
    """The runs to remove, and the references that keep data.

    Attributes:
        due: The records of runs to remove, with their ends, the oldest first.
        needed: References to data of runs.
    """

    due: list[tuple[datetime, bytes]]
    needed: Needed


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
        self._inputs = None if self._blobs is None else SearchedFiles(self._blobs, runs_in)
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
            survey = await self._survey(before, tried, ended=ended)
            for _, key in survey.due[:_CHUNK]:
                if enough is not None and removed.bytes >= enough:
                    return removed
                tried.add(key)
                await trio.sleep(PAUSE)
                one = await self._remove_one(key, before, survey.needed)
                removed += one
                self.collected += one
            if len(survey.due) <= _CHUNK:
                return removed

    async def _remove_one(self, key: bytes, before: datetime, needed: Needed) -> Removed:
        # Read again: the survey may be old.
        seen = await self._store.get(key)
        record = None if seen is None else _decoded(seen)
        if seen is None or record is None or _end(record) >= before:
            return Removed()
        name = key.decode(errors="backslashreplace")
        failure: EtcdError | None = None
        with self._containment.unit("collected_run", name):
            try:
                return await self._remover.remove(seen, record, needed, self._clock().timestamp())
            except EtcdError as error:
                failure = error
        if failure is not None:
            raise failure
        return Removed()

    async def _survey(self, before: datetime, tried: set[bytes], *, ended: bool) -> _Survey:
        """Read all records; if runs are due, also the references to data of runs."""
        due: list[tuple[datetime, bytes]] = []
        inputs: Counter[str] = Counter()
        outputs: Collection[RunName]
        outputs = found = set()
        async with aclosing(self._store.each(KeyRange.of_prefix(self._keys.runs))) as kvs:
            async for kv in kvs:
                record = _decoded(kv)
                if record is None:
                    continue
                inputs[record.input_uri] += 1
                if record.recovered_from:
                    found.add((record.project, record.domain, record.recovered_from))
                if not kv.key.startswith(self._records) or kv.key in tried:
                    continue
                if _end(record) < before and (not ended or _has_ended(record)):
                    due.append((_end(record), kv.key))
        if due:
            entries = KeyRange.of_prefix(self._keys.catalog + b"entries/")
            async with aclosing(self._store.each(entries)) as kvs:
                async for kv in kvs:
                    try:
                        found.add(source_of(kv.value))
                    except DecodeError:
                        continue  # No task can use such an entry.
            try:
                found |= await self._passed_on(inputs)
            except BlobError as error:
                _log.warning("blobs_not_collected", error=str(error))
                outputs = _All()
        return _Survey(sorted(due), Needed(outputs, inputs))

    async def _passed_on(self, inputs: Iterable[str]) -> set[RunName]:
        """The runs whose outputs are among the inputs of runs.

        Raises:
            BlobError: Not all inputs could be read.
        """
        if self._inputs is None or self._blobs is None:
            return set()
        blobs = self._blobs
        files = {url: True for url in inputs if url and blobs.key_of(url) is not None}
        found: set[RunName] = set()
        for each in await self._inputs.read(files):
            project, domain, name = each.split("/", 2)
            found.add((project, domain, name))
        return found


class _All(tuple[RunName, ...]):
    """Every run: the needed ones are unknown."""

    __slots__ = ()

    def __contains__(self, run: object) -> bool:
        return True


def _decoded(kv: KeyValue) -> RunRecord | None:
    try:
        record = decode_record(kv.value)
    except DecodeError:
        return None
    # A time without a zone cannot be compared; this package writes no such time.
    return None if _end(record).tzinfo is None else record


def _has_ended(record: RunRecord) -> bool:
    status = record.status
    return status is not None and status.phase in ENDS and status.ended is not None


def _end(record: RunRecord) -> datetime:
    """The end of a run; if unknown, its creation, since the removal reads the root anyway."""
    status = record.status
    if status is None or status.ended is None or status.phase not in ENDS:
        return record.created
    return status.ended
