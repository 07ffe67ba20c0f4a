"""Reads that many streams request at once: one of them reads for all that wait.

A read serves the requests that arrived before its start. So a result is never older than its
request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

_T = TypeVar("_T")


class _Shared(Generic[_T]):
    """The requests with one key."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.requests = 0
        self.value: _T | None = None
        self.started_at = -1


class SharedReads(Generic[_T]):
    """Shares reads that have the same key.

    Attributes:
        reads: The number of reads.
    """

    def __init__(self) -> None:
        self._shared: dict[Hashable, _Shared[_T]] = {}
        self._requests = 0
        self.reads = 0

    async def get(self, key: Hashable, read: Callable[[], Awaitable[_T]]) -> _T:
        """The result of a read that started after this call.

        A cancellation affects this request only.

        Args:
            key: Reads with the same key have the same result.
            read: Makes the read. Its error is raised for its own request; the next request reads
                again.
        """
        self._requests += 1
        requested_at = self._requests
        shared = self._shared.setdefault(key, _Shared())
        shared.requests += 1
        try:
            async with shared.lock:
                if shared.value is not None and shared.started_at >= requested_at:
                    return shared.value
                self.reads += 1
                started_at = self._requests
                value = await read()
                shared.value, shared.started_at = value, started_at
                return value
        finally:
            shared.requests -= 1
            if not shared.requests:
                del self._shared[key]
