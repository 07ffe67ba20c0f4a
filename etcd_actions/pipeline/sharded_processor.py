"""A processor of a process that shares the work with others: one processor for each of its shards.

The process is a member (:mod:`etcd_actions.shards.membership`), and follows the plan that each
member computes by itself (:mod:`etcd_actions.shards.plan`). The election of a shard alone decides
its owner, with the same fences and checkpoints as those of one leader. So a process with an old
view, or one that was stopped for a while, delays a hand-over and breaks nothing.

Each shard is a unit: if its watch fails, the others continue.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeAlias

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.api import Etcd
from etcd_actions.follow.subscriptions import RunActions, Subject
from etcd_actions.model import DEFAULT_NAMESPACE, ActionId, Keyspace
from etcd_actions.pipeline.processor import Processor, open_processor
from etcd_actions.pipeline.shard_statistics import Totals, shard_statistics
from etcd_actions.pipeline.shards_run import ShardParts, ShardsRun
from etcd_actions.pipeline.watching_settings import WatchingSettings, WatchingStatistics
from etcd_actions.run_service import RunService
from etcd_actions.shards import EVERYTHING, Shard, ShardKeys, ShardRange, member_name
from etcd_actions.shards.shard_range import MOST_INITIAL
from etcd_actions.storage.retention import Retention
from etcd_actions.storage.store import Store


@asynccontextmanager
async def open_any_processor(
    etcd: Etcd,
    store: Store,
    *,
    keys: Keyspace,
    namespace: str | None,
    run_service: RunService,
    settings: WatchingSettings,
    containment: Containment,
    on_replaced: Callable[[], None],
) -> AsyncIterator[AnyProcessor]:
    """Make the processor that the settings request, with shards or without.

    See :func:`~etcd_actions.pipeline.processor.open_processor` and :class:`ShardedProcessor`. A
    process that does not record needs no shards: it watches all keys.
    """
    if not settings.shards or not settings.record:
        async with open_processor(
            etcd,
            prefix=keys.prefix,
            namespace=namespace,
            run_service=run_service,
            settings=settings,
            store=store,
            containment=containment,
            on_replaced=on_replaced,
        ) as one:
            yield one
        return
    keep = settings.retain_terminal
    async with owned_tasks("the processor") as nursery:
        processor = ShardedProcessor(
            nursery,
            etcd,
            store,
            None if keep is None else Retention(etcd, keep),
            keys=keys,
            namespace=namespace,
            run_service=run_service,
            settings=settings,
            containment=containment,
            on_replaced=on_replaced,
        )
        try:
            yield processor
            await processor.stop_watching()
        finally:
            processor.close_subscriptions()
        nursery.cancel_scope.cancel("the processor is closed")


class ShardedProcessor:
    """See the module's text. Its methods are those of :class:`Processor`, for all of its shards.

    Args:
        nursery: Runs its tasks.
        etcd: The connection.
        store: Reads and writes keys.
        leases: The leases of recorded actions; None if they do not expire.
        keys: The keyspace of the subjects of subscriptions.
        namespace: The namespace that is divided into shards; None for all.
        run_service: Receives the reports.
        settings: See :class:`WatchingSettings`; ``shards`` is at least 1.
        containment: Counts unexpected failures.
        on_replaced: Called when the store turns out to be another one.

    Raises:
        ConfigError: The settings are without an election, or have too many shards.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        etcd: Etcd,
        store: Store,
        leases: Retention | None,
        *,
        keys: Keyspace,
        namespace: str | None,
        run_service: RunService,
        settings: WatchingSettings,
        containment: Containment,
        on_replaced: Callable[[], None] | None = None,
    ) -> None:
        if not settings.elect:
            raise ConfigError("shards: each has an election: remove elect=False")
        if settings.shards > MOST_INITIAL:
            raise ConfigError(
                f"shards: {settings.shards} are too many: give at most {MOST_INITIAL}"
            )
        self._nursery = nursery
        self._keys = keys
        watched = Keyspace(keys.prefix, namespace or DEFAULT_NAMESPACE)
        self._parts = ShardParts(
            nursery=nursery,
            etcd=etcd,
            store=store,
            leases=leases,
            keys=watched,
            shard_keys=ShardKeys(watched, namespace),
            member=member_name(),
            run_service=run_service,
            settings=settings,
            containment=containment,
            on_replaced=on_replaced,
        )
        self._starting = trio.Lock()
        self._run: ShardsRun | None = None
        self._totals = Totals()
        self._work = frozenset[ShardRange]()
        self._changed = trio.Event()
        # Processors whose run has ended and that still have subscriptions.
        self._kept: dict[Shard, Processor] = {}

    def statistics(self) -> WatchingStatistics:
        """The present counts, of all shards together; see :class:`WatchingStatistics`."""
        run, ttl = self._run, self._parts.settings.election_ttl
        total = self._totals.with_present(each.statistics() for each in self._processors())
        total = replace(total, watching=run is not None and run.is_watching)
        if run is None or run.membership is None:
            return total
        membership, view = run.membership, run.membership.view
        shards = shard_statistics(view, run.watches.values(), ttl=ttl)
        return replace(
            total,
            collects=bool(shards) and shards[0].owned,
            refused=run.refused,
            member=membership.name,
            members=() if view is None else tuple(sorted(view.members.items())),
            shards=shards,
        )

    @property
    def watching(self) -> bool:
        """Whether the first shards were listed, and it is not stopping."""
        return self._run is not None and self._run.is_watching and not self._run.is_stopping

    def serving(self, subject: Subject) -> Processor | None:
        """The processor that can serve subscriptions to a subject now.

        Returns:
            The processor of the subject's shard. None if this process does not watch the shard, or
            if the subject is all actions.

        Raises:
            InvalidArgument: The subject has no namespace.
        """
        if subject is None or self._run is None or not self.watching:
            return None
        run = subject.run if isinstance(subject, RunActions) else subject
        name = run.run
        prefix = self._keys.of(run).run_prefixes(name)[0]
        suffix = prefix[len(self._keys.prefix) :]
        for watch in self._run.watches.values():
            if watch.serves and suffix in watch.shard.range:
                return watch.processor
        return None

    @property
    def work(self) -> frozenset[ShardRange]:
        """The ranges whose actions this process is to run, if it runs actions.

        They are those of the shards that it serves, if each member runs actions, and otherwise
        all. Two members may have the same range for a moment: the claim of an action decides.
        """
        run = self._run
        view = None if run is None or run.membership is None else run.membership.view
        if run is not None and view is not None:
            if view.table.exists and view.executors >= view.members.keys():
                served = (watch.shard.range for watch in run.watches.values() if watch.serves)
                self._work = frozenset(served)
            else:
                self._work = frozenset({EVERYTHING})
        return self._work

    async def wait_work_changed(self, seen: frozenset[ShardRange]) -> None:
        """Return once :attr:`work` is another set than ``seen``."""
        await trio.lowlevel.checkpoint()
        while self.work == seen:
            await self._changed.wait()

    def watching_range(self, range_: ShardRange) -> Processor | None:
        """The processor that watches a range of :attr:`work`; None if there is none now."""
        for watch in () if self._run is None else self._run.watches.values():
            if watch.serves and watch.shard.range == range_:
                return watch.processor
        return None

    def waiting_conditions(self) -> list[ActionId]:
        """The conditions that wait for a signal, of the shards that this process watches."""
        return [each for one in self._processors() for each in one.waiting_conditions()]

    def close_subscriptions(self) -> None:
        """End all subscriptions, each after its pending updates."""
        for processor in self._processors():
            processor.close_subscriptions()

    async def start_watching(self) -> None:
        """Take part in the shards; returns once the first shards of this process were listed.

        While etcd is unavailable it waits without limit. If the actions are recorded without
        shards it returns, too, and creates the shards later. See
        :meth:`Processor.start_watching`.

        Raises:
            PermissionDenied, Unauthenticated, InvalidRequest: etcd refused to read the shards.
        """
        async with self._starting:
            before = self._run
            if before is not None and not before.ended.is_set():
                if not before.is_stopping:
                    return
                await before.ended.wait()
            self._run = ShardsRun(self._parts, self._kept, self._end, self._signal)
            await self._nursery.start(self._run.run)

    async def stop_watching(self, grace: float | None = None) -> None:
        """Hand the shards over to others that are ready, or finish the accepted changes; then end.

        See :meth:`Processor.stop_watching`.

        Args:
            grace: Seconds for both; by default the settings'.
        """
        if (run := self._run) is not None:
            run.stop(self._parts.settings.grace if grace is None else grace)
            await run.ended.wait()

    def _processors(self) -> list[Processor]:
        watches = () if self._run is None else self._run.watches.values()
        return [*(watch.processor for watch in watches), *self._kept.values()]

    def _signal(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _end(self, processor: Processor) -> None:
        self._totals.add(processor.statistics())


AnyProcessor: TypeAlias = Processor | ShardedProcessor
"""The processor of a client, with shards or without."""
