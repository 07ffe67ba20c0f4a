"""A prefix that a process keeps in memory, for as long as a context lasts.

A :class:`Reflector` delivers the changes to the replica's state. A list that etcd refuses is
retried without limit. Readers wait until the prefix was read. If etcd refuses that, they get its
error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.watch.change import Change
from etcd_actions.watch.demand import Demand
from etcd_actions.watch.reflector import Reflector
from etcd_actions.watch.watch_settings import ReflectorSettings

_BACKOFF = Backoff(initial=0.1, cap=10.0)

_log = structlog.get_logger(__name__)


class ReplicaState(Protocol):
    """The state of the keys below a prefix."""

    def take(self, change: Change, /) -> None:
        """Apply a change. An exception is contained, and concerns its key alone."""

    def forget_all(self) -> None:
        """Forget all keys: those that exist are read again, without deletions of the others."""


class Replica:
    """How far a replica is; made by :func:`open_replica`."""

    def __init__(
        self,
        state: ReplicaState,
        name: str,
        prefix: bytes,
        containment: Containment,
        demand: Demand | None = None,
    ) -> None:
        self._state = state
        self._name = name
        self._prefix = prefix
        self._containment = containment
        self._demand = demand
        self._open: trio.CancelScope | None = None
        self._reflector: Reflector | None = None
        # Set once the prefix was read, or once etcd refused that; then the refusal is not None.
        self._loaded = trio.Event()
        self._refusal: EtcdError | None = None
        self._newest = 0
        self._more = trio.Event()

    @property
    def is_loaded(self) -> bool:
        """Whether all keys have been read."""
        return self._loaded.is_set() and self._refusal is None

    def use(self) -> None:
        """Note a use, if the prefix is watched on demand."""
        if self._demand is not None:
            self._demand.use()

    @property
    def advanced(self) -> trio.Event:
        """Set after the next changes, and once all keys have been read."""
        return self._more

    async def ready(self, patience: float) -> None:
        """Return once all keys have been read.

        Raises:
            EtcdError: etcd refused the read, or it was not done within ``patience`` seconds.
        """
        self.use()
        with trio.move_on_after(patience):
            await self._loaded.wait()
        if not self._loaded.is_set():
            raise Unavailable(f"{self._name}: they are still being read from etcd: try again")
        if self._refusal is not None:
            raise self._refusal

    async def wait_for(self, revision: int, patience: float) -> bool:
        """Return once a write below the prefix was applied; False if that takes too long.

        Args:
            revision: The write's revision.
            patience: Seconds.
        """
        with trio.move_on_after(patience):
            while self._newest < revision:
                await self._more.wait()
        return self._newest >= revision

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Apply changes."""
        newest = self._newest
        for change in changes:
            try:
                self._state.take(change)
            except BaseException as error:
                key = change.key.decode(errors="backslashreplace")
                self._containment.caught("stored_record", key, error)
            # A list is sorted by key: the revision of one of its keys proves nothing.
            if not change.listed:
                newest = max(newest, change.mod_revision)
        self._advance(newest)
        demand, scope = self._demand, self._open
        if demand is None or scope is None or not self.is_loaded:
            return
        if demand.has_ended(len(changes), self._count):
            self._loaded = trio.Event()
            self._clear()
            scope.cancel("no reader needs it")

    async def wait_list_capacity(self) -> None:
        """There is capacity: other tasks run between two pages."""
        await trio.lowlevel.checkpoint()

    async def wait_stream_capacity(self) -> None:
        """There is capacity."""

    def _count(self) -> int:
        reflector = self._reflector
        return 0 if reflector is None else reflector.statistics().keys

    async def _run(self, etcd: Etcd, settings: ReflectorSettings) -> None:
        """Follow the prefix, without end or whenever that is needed."""
        if self._demand is None:
            await self._follow(etcd, settings)
            return
        while True:
            await self._demand.needed.wait()
            with trio.CancelScope() as self._open:
                await self._follow(etcd, settings)

    async def _follow(self, etcd: Etcd, settings: ReflectorSettings) -> None:
        async for attempt in retrying(_BACKOFF, on=EtcdError, report=self._report_refusal):
            with attempt:
                self._restart()
                reflector = self._reflector = Reflector(
                    etcd,
                    KeyRange.of_prefix(self._prefix),
                    self,
                    on_replaced=self._clear,
                    settings=settings,
                    containment=self._containment,
                )
                async with trio.open_nursery() as nursery:
                    revision = await nursery.start(reflector.run)
                    self._refusal = None
                    self._advance(revision)
                    self._loaded.set()
                    attempt.recovered()

    def _report_refusal(self, error: Exception, failures: int, delay: float) -> None:
        assert isinstance(error, EtcdError)
        self._refusal = error
        self._loaded.set()
        seldom(_log, "prefix_unreadable", what=self._name)(error, failures, delay)

    def _restart(self) -> None:
        if self.is_loaded:
            self._loaded = trio.Event()
        self._clear()

    def _clear(self) -> None:
        self._newest = 0
        self._state.forget_all()

    def _advance(self, revision: int) -> None:
        self._newest = max(self._newest, revision)
        self._more.set()
        self._more = trio.Event()


@asynccontextmanager
async def open_replica(
    etcd: Etcd,
    prefix: bytes,
    state: ReplicaState,
    *,
    name: str,
    settings: ReflectorSettings,
    containment: Containment,
    demand: Demand | None = None,
) -> AsyncIterator[Replica]:
    """Keep the replica of a prefix up to date; leaving the context ends that.

    Args:
        etcd: The connection.
        prefix: The prefix of the keys.
        state: Applies the changes.
        name: The kind of the keys, for messages.
        settings: How they are watched. There is always one range, so that changes come in the
            order of their revisions.
        containment: Counts unexpected failures.
        demand: Decides when the prefix is watched; by default always.
    """
    settings = replace(settings, ranges=1, prev_kv=False)
    replica = Replica(state, name, prefix, containment, demand)
    async with owned_tasks(f"the index of {name}") as nursery:

        async def run() -> None:
            await replica._run(etcd, settings)

        nursery.start_soon(containment.keep, "task", f"following {name}", run)
        yield replica
        nursery.cancel_scope.cancel("the replica is closed")
