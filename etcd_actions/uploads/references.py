"""Finds what the records, actions, deployed tasks and cached results of a deployment refer to.

All values below its prefixes are searched, of whatever kind they are, and the files of inputs and
outputs that they name. So a kind of record that is added later counts, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Final

import msgspec
import trio

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.blobs import BlobStore
from etcd_actions.blobs.files import Incomplete, SearchedFiles
from etcd_actions.blobs.uploads import ReferenceFinder, References
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import Keyspace, Phase
from etcd_actions.runs.run_record import decode_history, decode_record
from etcd_actions.storage.store import Store

# Others have their turn after so many values.
_TURN: Final = 20
_FAILED: Final = frozenset(
    phase
    for phase in Phase
    if phase.is_terminal and phase not in (Phase.SUCCEEDED, Phase.RECOVERED)
)
_GOOD: Final = frozenset((Phase.SUCCEEDED.value, Phase.RECOVERED.value))
_BAD: Final = frozenset(phase.value for phase in _FAILED)


class _Cached(msgspec.Struct):
    """What of a cached result names a file."""

    output_uri: str = ""


_decode_cached: Final = msgspec.json.Decoder(_Cached).decode


class Marker:
    """See the module's text.

    Args:
        store: Where everything is recorded.
        keys: Under which keys.
        blobs: Where files are.
        files: Reads them.
        finder: Finds references.
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
            inputs: The keys of inputs that may be another run's soon.
            is_enough: Whether no file has to be read, for what records say by themselves.

        Raises:
            EtcdError: etcd could not be read.
            BlobError: A file could not be read.
            Incomplete: A record, or what it names, cannot be read here.
        """
        references = References()
        files: dict[str, bool] = {self._blobs.native_url(key): True for key in inputs}
        # Records first: what is named by one at a time and by an action later is seen.
        await self._search(self._keys.side, references, files)
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
        """Add the inputs and outputs that a value names, and whether they may still change."""
        keys = self._keys
        if kv.key.startswith((keys.prefix, keys.traces)):
            self._of_action(StoredAction.of(kv), files)
        elif kv.key.startswith(keys.runs):
            _add(files, decode_record(kv.value).input_uri)
        elif kv.key.startswith(keys.histories):
            for attempt in decode_history(kv.value).attempts:
                if attempt.phase not in _BAD:
                    _add_outputs(files, attempt.output_uri, is_final=attempt.phase in _GOOD)
        elif kv.key.startswith(keys.catalog + b"entries/"):
            _add_outputs(files, _decode_cached(kv.value).output_uri)

    def _of_action(self, action: StoredAction, files: dict[str, bool]) -> None:
        _add(files, action.spec.input_uri)
        if action.spec.is_condition or action.phase in _FAILED:
            return
        _add_outputs(files, action.output_uri, is_final=action.is_terminal)


def _add(files: dict[str, bool], url: str, *, is_final: bool = True) -> None:
    if url:
        files[url] = is_final and files.get(url, True)


def _add_outputs(files: dict[str, bool], directory: str, *, is_final: bool = True) -> None:
    """The outputs in a directory; of a trace that may be the file itself."""
    name = "outputs.pb"
    if directory:
        is_file = directory.endswith(f"/{name}")
        _add(files, directory if is_file else f"{directory.rstrip('/')}/{name}", is_final=is_final)
