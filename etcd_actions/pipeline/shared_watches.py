"""The watches of a client that does not watch itself: one for all subscriptions to a scope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from etcd_actions.pipeline.processor import Processor


class Scope(NamedTuple):
    """A namespace, or all (None), and a run in it, or all (None)."""

    namespace: str | None
    run: str | None


class SharedWatches:
    """Processors that serve subscriptions, each for as long as a subscription needs it.

    Args:
        make: Makes the processor of a scope, not started.
    """

    def __init__(self, make: Callable[[Scope], Processor]) -> None:
        self._make = make
        self._processors: dict[Scope, Processor] = {}
        self._users: dict[Scope, int] = {}

    def __len__(self) -> int:
        return len(self._processors)

    def end_subscriptions(self) -> None:
        """End all subscriptions; each reader gets the pending updates first."""
        for processor in self._processors.values():
            processor.close_subscriptions()

    @asynccontextmanager
    async def of(self, scope: Scope) -> AsyncIterator[Processor]:
        """The processor of a scope. The caller subscribes, and then starts it.

        When the last caller leaves the context the processor is stopped.
        """
        processor = self._processors.get(scope)
        if processor is None:
            processor = self._processors[scope] = self._make(scope)
        self._users[scope] = self._users.get(scope, 0) + 1
        try:
            yield processor
        finally:
            self._users[scope] -= 1
            if not self._users[scope]:
                # A caller that enters during the stop gets another processor.
                del self._users[scope], self._processors[scope]
                await processor.stop_watching(0)
