"""Finds the data of runs that other runs and cached results refer to, which stay with a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import aclosing
from datetime import datetime

import structlog

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.blobs import BlobError, BlobStore
from etcd_actions.blobs.references import runs_in
from etcd_actions.blobs.searched_files import SearchedFiles
from etcd_actions.catalog import source_of
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import ROOT_ACTION, TERMINAL, Keyspace
from etcd_actions.runs.removal import Needed, RunName
from etcd_actions.runs.run_record import RunRecord, decode_record
from etcd_actions.storage.store import Store

_log = structlog.get_logger(__name__)


class RunReferences:
    """Reads all records and roots of runs and all cached results, and the inputs that they name.

    Args:
        store: Reads.
        keys: The keys of runs.
        blobs: The store of the runs' data; None if no data is removed.
    """

    def __init__(self, store: Store, keys: Keyspace, blobs: BlobStore | None) -> None:
        self._store = store
        self._keys = keys
        self._blobs = blobs
        self._inputs = None if blobs is None else SearchedFiles(blobs, runs_in)

    async def read(
        self,
        note: Callable[[KeyValue, RunRecord], object] = lambda _kv, _record: None,
        is_used: Callable[[], bool] = lambda: True,
    ) -> Needed:
        """The references; outputs of all runs count as needed where they are unknown.

        Args:
            note: Called with each record that can be decoded.
            is_used: Called after the last one: with False only the records are read.

        Raises:
            EtcdError: etcd could not be read.
        """
        inputs: Counter[str] = Counter()
        found: set[RunName] = set()
        recorded: set[bytes] = set()
        async with aclosing(self._store.each(KeyRange.of_prefix(self._keys.runs))) as kvs:
            async for kv in kvs:
                record = usable_record(kv)
                if record is None:
                    continue
                inputs[record.input_uri] += 1
                if record.recovered_from:
                    found.add((record.project, record.domain, record.recovered_from))
                note(kv, record)
                recorded.add(kv.key)
        if not is_used():
            return Needed(found, inputs)
        await self._add_unrecorded(inputs, recorded)
        entries = KeyRange.of_prefix(self._keys.catalog + b"entries/")
        async with aclosing(self._store.each(entries)) as kvs:
            async for kv in kvs:
                try:
                    found.add(source_of(kv.value))
                except DecodeError:
                    continue  # No task can use such an entry.
        outputs: Collection[RunName] = found
        try:
            found |= await self._passed_on(inputs)
        except BlobError as error:
            _log.warning("blobs_not_collected", error=str(error))
            outputs = _All()
        return Needed(outputs, inputs)

    async def _add_unrecorded(self, inputs: Counter[str], recorded: Collection[bytes]) -> None:
        """Add the inputs of runs without a record: the leader has yet to write it, or writes none.

        Args:
            inputs: The number of runs that have each URI.
            recorded: The keys of the records.
        """
        if self._blobs is None:
            return
        prefix, end = self._keys.prefix, f"-{ROOT_ACTION}".encode()
        objects = KeyRange.of_prefix(prefix)
        async with aclosing(self._store.pages(objects, keys_only=True)) as pages:
            async for page in pages:
                for key in (kv.key for kv in page.kvs if kv.key.endswith(end)):
                    if self._keys.runs + key[len(prefix) : -len(end)] in recorded:
                        continue
                    root = await self._store.get(key)
                    if root is None:
                        continue
                    try:
                        inputs[StoredAction.of(root).spec.input_uri] += 1
                    except DecodeError as error:
                        _log.warning("inputs_of_run_unknown", key=key, error=str(error))

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


def usable_record(kv: KeyValue) -> RunRecord | None:
    """The record of a run; None if it cannot be decoded."""
    try:
        record = decode_record(kv.value)
    except DecodeError:
        return None
    # A time without a zone cannot be compared; this package writes no such time.
    return None if end_of(record).tzinfo is None else record


def end_of(record: RunRecord) -> datetime:
    """The end of a run; if unknown, its creation, since the removal reads the root anyway."""
    status = record.status
    if status is None or status.ended is None or status.phase not in TERMINAL:
        return record.created
    return status.ended
