"""Finds all references of a deployment's records, actions, deployed tasks and cached results.

All values below its prefixes are searched, of any kind, and the files of inputs and outputs that
they name. So a kind of record that is added later counts, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Final

import msgspec
import trio

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.blobs import BlobStore
from etcd_actions.blobs.references import ReferenceFinder, References
from etcd_actions.blobs.searched_files import Incomplete, SearchedFiles
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import FAILURES, SUCCESSES, Keyspace
from etcd_actions.runs.run_record import decode_history, decode_record
from etcd_actions.storage.store import Store

# Other tasks run after so many values.
_TURN: Final = 20


class _Cached(msgspec.Struct):
    """The field of a cached result that names a file."""

    output_uri: str = ""


_decode_cached: Final = msgspec.json.Decoder(_Cached).decode


class Marker:
    """Marks the uploads that are needed: the mark of a mark and sweep.

    Args:
        store: Reads the values.
        keys: The keys of the deployment.
        blobs: The store of files.
        files: Reads the files.
        finder: Finds references in bytes.
    """

    def __init__(
        self,
        store: Store,
        keys: Keyspace,
        blobs: BlobStore,
        files: SearchedFiles,
        finder: ReferenceFinder,
    ) -> None:
        self._store = store
        self._keys = keys
        self._blobs = blobs
        self._files = files
        self._finder = finder

    async def mark(
        self, inputs: Iterable[str], is_enough: Callable[[References], bool]
    ) -> References:
        """Find all references.

        Args:
            inputs: The keys of young inputs, to which a new run may refer at any time.
            is_enough: Called with the references in values; returns whether these suffice, so
                that no file has to be read.

        Raises:
            EtcdError: etcd could not be read.
            BlobError: A file could not be read.
            Incomplete: A record, or a file that it names, cannot be read here.
        """
        references = References()
        files: dict[str, bool] = {self._blobs.native_url(key): True for key in inputs}
        # Records before actions: a reference that moves from a record to an action is found.
        await self._search(self._keys.own, references, files)
        await self._search(self._keys.prefix, references, files)
        if not is_enough(references):
            references.add(await self._files.read(files))
        return references

    async def _search(self, prefix: bytes, references: References, files: dict[str, bool]) -> None:
        count = 0
        async with aclosing(self._store.each(KeyRange.of_prefix(prefix))) as kvs:
            async for kv in kvs:
                if kv.key == self._keys.deployment:
                    continue
                references.add(self._finder.find(kv.value))
                try:
                    self._name_files(kv, files)
                except (DecodeError, msgspec.MsgspecError, ValueError) as error:
                    key = kv.key.decode(errors="backslashreplace")
                    raise Incomplete(f"{key} cannot be read: {error}") from None
                count += 1
                if not count % _TURN:
                    await trio.lowlevel.checkpoint()

    def _name_files(self, kv: KeyValue, files: dict[str, bool]) -> None:
        """Add the files of inputs and outputs that a value names, and whether each is final."""
        keys = self._keys
        if kv.key.startswith((keys.prefix, keys.traces)):
            self._of_action(StoredAction.of(kv), files)
        elif kv.key.startswith(keys.runs):
            _add(files, decode_record(kv.value).input_uri)
        elif kv.key.startswith(keys.histories):
            for attempt in decode_history(kv.value).attempts:
                if attempt.phase not in FAILURES:
                    _add_outputs(files, attempt.output_uri, is_final=attempt.phase in SUCCESSES)
        elif kv.key.startswith(keys.catalog + b"entries/"):
            _add_outputs(files, _decode_cached(kv.value).output_uri)

    def _of_action(self, action: StoredAction, files: dict[str, bool]) -> None:
        _add(files, action.spec.input_uri)
        if action.spec.is_condition or action.phase in FAILURES:
            return
        _add_outputs(files, action.output_uri, is_final=action.is_terminal)


def _add(files: dict[str, bool], url: str, *, is_final: bool = True) -> None:
    if url:
        files[url] = is_final and files.get(url, True)


def _add_outputs(files: dict[str, bool], directory: str, *, is_final: bool = True) -> None:
    """Add the outputs in a directory; of a trace the URL may be that of the file itself."""
    name = "outputs.pb"
    if directory:
        is_file = directory.endswith(f"/{name}")
        _add(files, directory if is_file else f"{directory.rstrip('/')}/{name}", is_final=is_final)
