"""Reads that many streams want at once: one of them reads, the others get what it got.

A read serves those who asked before it began, so what each gets is never older than its question.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

_T = TypeVar("_T")


class _Read(Generic[_T]):
    """One that has yet to begin, or goes on."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.value: _T | None = None
        self.waiting = 0


class Joined(Generic[_T]):
    """Joins reads that have the same key.

    Attributes:
        reads: How many reads there were.
    """

    def __init__(self) -> None:
        self._going: dict[Hashable, _Read[_T]] = {}
        self._next: dict[Hashable, _Read[_T]] = {}
        self.reads = 0

    async def get(self, key: Hashable, read: Callable[[], Awaitable[_T]]) -> _T:
        """What a read gives that began after this call. A cancelled call leaves the others theirs.

        Args:
            key: Reads with the same key give the same.
            read: Reads; what it raises is for its own caller, and the others read themselves.
        """
        while (going := self._going.get(key)) is not None:
            following = self._next.setdefault(key, _Read())
            following.waiting += 1
            try:
                await going.over.wait()
            finally:
                following.waiting -= 1
                is_first = self._next.get(key) is following
                if is_first and not following.waiting:
                    del self._next[key]
            if is_first:
                # It reads for all that wait.
                self._next.pop(key, None)
                return await self._read(key, following, read)
            await following.over.wait()
            if following.value is not None:
                return following.value
        return await self._read(key, _Read(), read)

    async def _read(self, key: Hashable, mine: _Read[_T], read: Callable[[], Awaitable[_T]]) -> _T:
        self._going[key] = mine
        self.reads += 1
        try:
            value = mine.value = await read()
        finally:
            if self._going.get(key) is mine:
                del self._going[key]
            mine.over.set()
        return value
