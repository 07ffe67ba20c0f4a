"""Collects runs that ended long ago, and the oldest ones where etcd becomes full.

What is collected of a run, and in which order, says `etcd_actions.runs.removal`. Nothing is that
goes on, or is below one that is over; dead letters are left alone: each says of an action what
somebody has yet to accept.

Each deletion compares the revision of what was read. So any process may collect, at any time; one
is enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.blobs import BlobError, BlobStore
from etcd_actions.blobs.files import SearchedFiles
from etcd_actions.blobs.uploads import runs_in
from etcd_actions.catalog import source_of
from etcd_actions.errors import DecodeError, EtcdError
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import Keyspace, Phase
from etcd_actions.runs.removal import PAUSE, Needed, Removed, RunName, RunRemover
from etcd_actions.runs.run_record import RunRecord, decode_record
from etcd_actions.runs.space import Space
from etcd_actions.storage.store import Store

_ENDS: Final = frozenset(phase.value for phase in Phase if phase.is_terminal)
_MOST_EVERY: Final = 6 * 3600.0
_LEAST_EVERY: Final = 60.0
_LOOK_EVERY: Final = 300.0
_LEADS_EVERY: Final = 1.0
LEAST_KEPT: Final = timedelta(hours=1)
"""What ended less than that ago is kept however full etcd is: somebody may be reading it."""
# Between two looks at what others need of runs.
_CHUNK: Final = 500

_log = structlog.get_logger(__name__)


class _Look(NamedTuple):
    """What there is.

    Attributes:
        due: The records of runs that are to go, the oldest end first.
        needed: What others need of them.
    """

    due: list[tuple[datetime, bytes]]
    needed: Needed


class RunCollector:
    """See the module's text.

    Args:
        store: Where the records are.
        keys: Under which keys.
        keep: For how long a run is kept after its end.
        namespace: The only namespace that is looked at; None for all.
        objects: Whether the objects of runs are removed, too, and space is freed; False where
            others do it.
        blobs: Where data of runs is; None leaves it.
        space: How full etcd may be; None for any.
        clock: The time.
        containment: The boundaries of the process.

    Attributes:
        collected: What was removed so far.
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
        """Sweep again and again while ``leads`` says so; does not return.

        While etcd refuses it waits for the next time.
        """
        every = max(_LEAST_EVERY, min(_MOST_EVERY, self._keep.total_seconds() / 100))
        look = every if self._space is None else min(every, _LOOK_EVERY)
        due = trio.current_time()
        while True:
            while not leads():  # noqa: ASYNC110 - an election is told to those alone who record
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
                    _log.info(
                        "runs_collected",
                        records=collected.records,
                        histories=collected.histories,
                        objects=collected.objects,
                        blobs=collected.blobs,
                        bytes=collected.bytes,
                    )
            await trio.sleep(look)

    async def sweep(self, *, by_age: bool = True) -> Removed:
        """Remove what is old enough now, and where etcd is too full the oldest of the rest.

        Cancelled, it did a part of it.

        Args:
            by_age: Whether to look at the age at all.

        Raises:
            EtcdError: etcd did not do it; a part may be done.
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
        """Remove what ended before a time, until enough bytes are free."""
        removed = Removed()
        while True:
            look = await self._look(before, tried, ended=ended)
            for _, key in look.due[:_CHUNK]:
                if enough is not None and removed.bytes >= enough:
                    return removed
                tried.add(key)
                await trio.sleep(PAUSE)
                one = await self._remove_one(key, before, look.needed)
                removed += one
                self.collected += one
            if len(look.due) <= _CHUNK:
                return removed

    async def _remove_one(self, key: bytes, before: datetime, needed: Needed) -> Removed:
        # Read again: a look may be long ago.
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

    async def _look(self, before: datetime, tried: set[bytes], *, ended: bool) -> _Look:
        """Read all records, and where there is something to be done what it may hit."""
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
                        # Nobody can use it.
                        continue
            try:
                found |= await self._passed_on(inputs)
            except BlobError as error:
                _log.warning("blobs_not_collected", error=str(error))
                outputs = _All()
        return _Look(sorted(due), Needed(outputs, inputs))

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
    """Every run, where nobody knows which ones."""

    __slots__ = ()

    def __contains__(self, run: object) -> bool:
        return True


def _decoded(kv: KeyValue) -> RunRecord | None:
    try:
        record = decode_record(kv.value)
    except DecodeError:
        return None
    # A time without a zone is none of ours, and cannot be compared.
    return None if _end(record).tzinfo is None else record


def _has_ended(record: RunRecord) -> bool:
    status = record.status
    return status is not None and status.phase in _ENDS and status.ended is not None


def _end(record: RunRecord) -> datetime:
    """When a run ended; of one whose end nobody knows, when it was created.

    Of one that goes on the root is asked later.
    """
    status = record.status
    if status is None or status.ended is None or status.phase not in _ENDS:
        return record.created
    return status.ended
