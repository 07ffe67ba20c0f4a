"""What is found in files of inputs and outputs; each is read once, as long as there is room."""

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
"""Files whose references are kept in memory."""
_PART: Final = 8 << 20
_OVERLAP: Final = 4096
"""Bytes: longer than any reference."""
_IN_THREAD: Final = 64 << 10


class Incomplete(EtcdActionsError):
    """What is needed cannot be told, so nothing may be removed; the message says why."""


class LocalFiles(Protocol):
    """Reads files of runs that are outside the store."""

    def path_of(self, url: str) -> str | None:
        """The path of such a file; None for anything else."""
        ...

    def read(self, path: str) -> AbstractAsyncContextManager[Blob | None]:
        """Open it; None where there is none."""
        ...


class SearchedFiles:
    """See the module's text.

    Args:
        blobs: Where files are.
        find: Says what is in bytes: texts of fewer than 4096 bytes, or what they mean.
        local: Reads files outside the store; None where they are another machine's.
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
        """What is in files, all together. In what is not there is nothing.

        Args:
            files: Where each is, and whether it never changes.

        Raises:
            BlobError: One could not be read.
            Incomplete: One is where it cannot be read from here.
        """
        found: set[str] = set()
        failures: list[EtcdActionsError] = []
        # What is no longer asked for is forgotten.
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
        """What is in a file; None where there is none now, though there may be one later."""
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
            # Nobody who reads data of runs follows a link, or opens a directory.
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
