"""A priority queue with keys: each key has one entry, which can be moved or removed.

Each operation takes O(log n). An entry that was moved or removed leaves a stale tuple in the heap,
which is skipped later. The heap is rebuilt when most of it is stale, so its size is at most a
multiple of the number of entries.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
# Any type whose values can be compared.
P = TypeVar("P")

_SLACK = 64
"""Stale tuples that are accepted also in a small heap."""


class KeyedHeap(Generic[K, P]):
    """Entries of a key and a priority. The smallest priority is first; of equal ones the oldest."""

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, K]] = []
        self._entries: dict[K, tuple[Any, int]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def put(self, key: K, priority: P) -> None:
        """Add an entry, or give it another priority."""
        known = self._entries.get(key)
        if known is not None and known[0] == priority:
            return
        self._number += 1
        self._entries[key] = (priority, self._number)
        heapq.heappush(self._heap, (priority, self._number, key))
        if len(self._heap) > 2 * len(self._entries) + _SLACK:
            self._heap = [(first, number, each) for each, (first, number) in self._entries.items()]
            heapq.heapify(self._heap)

    def remove(self, key: K) -> bool:
        """Remove an entry; returns whether there was one."""
        return self._entries.pop(key, None) is not None

    def first(self) -> tuple[K, P] | None:
        """The entry with the smallest priority; None if the heap is empty."""
        while self._heap:
            priority, number, key = self._heap[0]
            entry = self._entries.get(key)
            if entry is not None and entry[1] == number:
                return key, priority
            heapq.heappop(self._heap)
        return None
