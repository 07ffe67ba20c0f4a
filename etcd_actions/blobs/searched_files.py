"""References in files of inputs and outputs; a file that never changes is read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import trio

from etcd_actions._internal.quoting import quoted
from etcd_actions.blobs.protocol import Blob, BlobError, BlobStore, BlobUnusable
from etcd_actions.errors import EtcdActionsError

_AT_ONCE: Final = 8
_MOST_KNOWN: Final = 100_000
"""Files whose references are cached."""
_PART: Final = 8 << 20
_OVERLAP: Final = 4096
"""Bytes: longer than any reference."""
_IN_THREAD: Final = 64 << 10


class Incomplete(EtcdActionsError):
    """The references are not all known, so nothing may be removed."""


class LocalFiles(Protocol):
    """Reads files of runs that are outside the store."""

    def path_of(self, url: str) -> str | None:
        """The path of such a file; None for another URL."""

    def read(self, path: str) -> AbstractAsyncContextManager[Blob | None]:
        """Open it; None if it does not exist."""


class SearchedFiles:
    """The references in files, with a cache of those that never change.

    Args:
        blobs: The store of the files.
        find: Returns the references in bytes; each has fewer than 4096 bytes.
        local: Reads files outside the store; None if they are on another machine.
    """

    def __init__(
        self,
        blobs: BlobStore,
        find: Callable[[bytes], Collection[str]],
        local: LocalFiles | None = None,
    ) -> None:
        self._blobs = blobs
        self._find_in_bytes = find
        self._local = local
        self._known: dict[str, frozenset[str]] = {}

    async def read(self, files: Mapping[str, bool]) -> Collection[str]:
        """The references in all of some files; a missing file has none.

        Args:
            files: The URL of each, and whether it never changes.

        Raises:
            BlobError: One could not be read.
            Incomplete: One cannot be read from this machine.
        """
        found: set[str] = set()
        failures: list[EtcdActionsError] = []
        # Files that are not in this call leave the cache.
        known, self._known = self._known, {}
        for url in files.keys() & known.keys():
            found |= known[url]
            self._known[url] = known[url]
        waiting = iter([url for url in files if url not in known])
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(self._work, waiting, files, found, failures)
        if failures:
            raise failures[0]
        return found

    async def _work(
        self,
        waiting: Iterator[str],
        files: Mapping[str, bool],
        found: set[str],
        failures: list[EtcdActionsError],
    ) -> None:
        for url in waiting:
            if failures:
                return
            try:
                references = await self._read(url)
            except (BlobError, Incomplete) as error:
                failures.append(error)
                return
            if references is None:
                continue
            found |= references
            if files[url] and len(self._known) < _MOST_KNOWN:
                self._known[url] = references

    async def _read(self, url: str) -> frozenset[str] | None:
        """The references in a file; None if it does not exist, or is not a regular file."""
        key = self._blobs.key_of(url)
        if key is not None:
            opened = self._blobs.read(key)
        elif self._local is not None and (path := self._local.path_of(url)) is not None:
            opened = self._local.read(path)
        else:
            raise Incomplete(f"{quoted(url, 300)} is outside the store, and cannot be read here")
        try:
            async with opened as blob:
                return None if blob is None else await self._find(blob)
        except BlobUnusable:
            return None

    async def _find(self, blob: Blob) -> frozenset[str]:
        found: set[str] = set()
        part = bytearray()
        async for each in blob.parts:
            part += each
            if len(part) >= _PART:
                found.update(await self._find_in(bytes(part)))
                del part[:-_OVERLAP]
        found.update(await self._find_in(bytes(part)))
        return frozenset(found)

    async def _find_in(self, data: bytes) -> Collection[str]:
        if len(data) < _IN_THREAD:
            return self._find_in_bytes(data)
        return await trio.to_thread.run_sync(self._find_in_bytes, data)
