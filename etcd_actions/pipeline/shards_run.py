"""Runs the shards of one process, from a start to its stop.

The process joins the members, creates the shards if there are none, and follows the plan: each duty
is a :class:`~etcd_actions.pipeline.shard_watch.ShardWatch`. At the stop it first leaves the
members, so that others become the targets of its shards. Then it hands each shard over when the
shard's target has listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Final

import structlog
import trio

from etcd_actions._internal.backoff import Backoff, Restarts
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.pipeline.processor import Processor
from etcd_actions.pipeline.reshaping import Reshaper
from etcd_actions.pipeline.shard_watch import ShardWatch
from etcd_actions.pipeline.watched_scope import WatchedScope
from etcd_actions.pipeline.watching_settings import WatchingSettings
from etcd_actions.run_service import RunService
from etcd_actions.shards import (
    Membership,
    Plan,
    Shard,
    ShardKeys,
    create_table,
    make_plan,
    open_membership,
)
from etcd_actions.shards.shard_range import initial_ranges
from etcd_actions.storage.retention import Retention
from etcd_actions.storage.store import Store

LEAVING: Final = 3.0
"""The most seconds for which a process that stops waits until others are ready for its shards."""
_LISTS: Final = 4
"""Shards that are listed at a time."""
_MOST_KNOWN: Final = 20_000
"""About the most keys by which the first shards are chosen."""
_PATIENCE: Final = 10.0
"""Seconds after which the wait for the view is logged."""
_LOOK_AGAIN: Final = 0.05
"""Seconds between two checks whether all shards are handed over."""
_STOPPED_WITHIN: Final = 5.0
"""The most seconds for the end of a watch that is not needed any more."""
_BACKOFF: Final = Backoff(initial=0.2, cap=5.0)
_RESTARTS: Final = Backoff(initial=0.2, cap=30.0)
_TASK: Final = "the shards"

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardParts:
    """The parts that the processors of all shards share.

    Attributes:
        nursery: Runs the tasks.
        etcd: The connection.
        store: Reads and writes keys.
        leases: The leases of recorded actions; None if they do not expire.
        keys: The keyspace.
        shard_keys: The keys of the shards.
        member: The name of this process among the members.
        run_service: Receives the reports.
        settings: See :class:`WatchingSettings`.
        containment: Counts unexpected failures.
        on_replaced: Called when the store turns out to be another one.
    """

    nursery: trio.Nursery
    etcd: Etcd
    store: Store
    leases: Retention | None
    keys: Keyspace
    shard_keys: ShardKeys
    member: str
    run_service: RunService
    settings: WatchingSettings
    containment: Containment
    on_replaced: Callable[[], None] | None

    def scope(self, shard: Shard) -> WatchedScope:
        """The scope of a shard."""
        keys, range_ = self.keys, shard.range
        return WatchedScope(
            keyspace=keys,
            objects=range_.keys(keys.prefix),
            traces=range_.keys(keys.traces),
            markers=range_.keys(keys.aborts),
            dead_letters=tuple(
                range_.keys(keys.dead_letters + kind) for kind in (b"actions/", b"traces/")
            ),
            likely_prefix=range_.keys(keys.prefix).start,
            election=self.shard_keys.owner(shard.id),
            checkpoint=self.shard_keys.checkpoint(shard.id),
            guard=(self.shard_keys.shard_unchanged(shard.id, shard.revision),),
            part=f"shard {shard}",
            member=self.member,
        )

    def processor(self, shard: Shard, count: int) -> Processor:
        """Make the processor of one of ``count`` shards."""
        settings = self.settings
        settings = replace(
            settings,
            # All shards together have about as many ranges, and dead letters, as one leader.
            reflector=replace(
                settings.reflector, ranges=max(1, round(settings.reflector.ranges / count))
            ),
            most_dead_letters=max(1, settings.most_dead_letters // count),
        )
        return Processor(
            self.nursery,
            self.etcd,
            self.store,
            self.leases,
            scope=self.scope(shard),
            run_service=self.run_service,
            settings=settings,
            containment=self.containment,
            on_replaced=self.on_replaced,
        )


class ShardsRun:
    """See the module's text.

    Args:
        parts: The parts of all shards.
        kept: Processors with subscriptions, of an earlier run.
        on_end: Called with each processor that is not needed any more.
        on_change: Called when the members, or the shards that this process serves, have changed.

    Attributes:
        membership: The membership; None before and after it.
        watches: The shards that this process watches.
        refused: Why no shard can be recorded; empty if that is possible.
        is_watching: Whether the first shards were listed, and the run has not ended.
        ended: Set when :meth:`run` ends.
    """

    def __init__(
        self,
        parts: ShardParts,
        kept: dict[Shard, Processor],
        on_end: Callable[[Processor], None],
        on_change: Callable[[], None],
    ) -> None:
        self.membership: Membership | None = None
        self.watches: dict[Shard, ShardWatch] = {}
        self.refused = ""
        self.is_watching = False
        self.ended = trio.Event()
        self._parts = parts
        self._kept = kept
        self._on_end = on_end
        self._on_change = on_change
        self._grace = parts.settings.grace
        self._stop = trio.Event()
        self._waiting: trio.CancelScope | None = None
        self._watching: trio.Nursery
        self._listing = trio.CapacityLimiter(_LISTS)
        # Set by the first plan in which this process is a member, or when there can be none.
        self._planned = trio.Event()

    @property
    def is_stopping(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stop.is_set()

    def stop(self, grace: float) -> None:
        """Leave, hand over, and end within ``grace`` seconds."""
        self._grace = grace
        self._stop.set()
        if self._waiting is not None:
            self._waiting.cancel("stop_watching")

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Take part until stopped; after an unexpected failure start again, with a delay.

        ``nursery.start`` returns once the first shards were listed, or the run was stopped.

        Raises:
            PermissionDenied, Unauthenticated, InvalidRequest: etcd refused to read the shards.
        """
        containment, refusal = self._parts.containment, None
        restarts = Restarts(_RESTARTS)
        started = False

        def on_start() -> None:
            nonlocal started
            if not started:
                started = True
                task_status.started()

        try:
            while True:
                restarts.begin()
                with containment.unit("task", _TASK, parks=True) as unit:
                    refusal = await self._take_part(on_start)
                if not unit.failed or self.is_stopping:
                    break
                with trio.move_on_after(restarts.delay()):
                    await self._stop.wait()
            if refusal is None:
                on_start()
        finally:
            containment.forget("task", _TASK)
            self.is_watching = False
            self.ended.set()
        if refusal is not None:
            raise refusal

    async def _take_part(self, on_start: Callable[[], None]) -> EtcdError | None:
        """Take part until stopped; returns why etcd refused to read the shards, if it did."""
        parts = self._parts
        settings, keep = parts.settings, parts.containment.keep
        async with open_membership(
            parts.etcd,
            parts.shard_keys,
            name=parts.member,
            ttl=settings.election_ttl,
            executes=settings.executes,
            settings=settings.reflector,
            containment=parts.containment,
        ) as self.membership:
            if (refusal := await self._read_view(self.membership)) is not None:
                return refusal
            async with trio.open_nursery() as nursery:
                self._watching = nursery
                for shard in list(self._kept):
                    self._begin_watch(shard, 1)
                nursery.start_soon(keep, "task", "creating the shards", self._keep_table)
                nursery.start_soon(keep, "task", "the plan", self._follow_plan)
                if settings.split_from is not None:
                    reshaper = Reshaper(
                        parts.etcd,
                        parts.keys,
                        parts.shard_keys,
                        self.membership,
                        self.watches.values,
                        split_from=settings.split_from,
                        least=settings.shards,
                    )
                    nursery.start_soon(keep, "task", "the sizes of the shards", reshaper.run)
                await self._until_listed()
                self.is_watching = not self.is_stopping
                on_start()
                await self._stop.wait()
                await self._leave()
                nursery.cancel_scope.cancel("stopped")
        return None

    async def _read_view(self, membership: Membership) -> EtcdError | None:
        """Wait for the view; returns why etcd refused to read it, if it did."""
        report = seldom(_log, "shards_unread")
        with self._until_stopped():
            async for attempt in retrying(_BACKOFF, on=Unavailable, report=report):
                with attempt:
                    try:
                        await membership.ready(_PATIENCE)
                    except Unavailable:
                        raise
                    except EtcdError as error:
                        return error
        return None

    @contextmanager
    def _until_stopped(self) -> Iterator[None]:
        with trio.CancelScope() as self._waiting:
            if self.is_stopping:
                self._waiting.cancel("stop_watching")
            yield

    async def _keep_table(self) -> None:
        """Create the shards, whenever there are none; note why that is not possible."""
        membership, parts = self._joined_membership, self._parts
        while True:
            view = membership.view
            if view is None or view.table.exists:
                self.refused = "" if view is None else view.table.problem
            else:
                report = seldom(_log, "shards_not_created")
                async for attempt in retrying(_BACKOFF, on=EtcdError, report=report):
                    with attempt:
                        await self._create_table(parts.settings.shards)
                self.refused = ""
            if self.refused:
                self._planned.set()
            await membership.wait_changed(view)

    async def _create_table(self, count: int) -> None:
        parts = self._parts
        known = await self._known_suffixes()
        ranges = initial_ranges(parts.shard_keys.scope, count, known)
        try:
            await create_table(parts.etcd, parts.shard_keys, ranges)
        except EtcdError as error:
            self.refused = str(error)
            self._planned.set()
            raise

    async def _known_suffixes(self) -> list[bytes]:
        """A sample of the keys of objects, without their prefix."""
        parts = self._parts
        prefix = parts.keys.prefix
        found: list[bytes] = []
        step = 1
        number = 0
        keys = parts.shard_keys.scope.keys(prefix)
        async with aclosing(parts.store.pages(keys, keys_only=True)) as pages:
            async for page in pages:
                for kv in page.kvs:
                    if number % step == 0:
                        found.append(kv.key[len(prefix) :])
                    number += 1
                while len(found) > _MOST_KNOWN:
                    found, step = found[::2], step * 2
        return found

    @property
    def _joined_membership(self) -> Membership:
        assert self.membership is not None
        return self.membership

    async def _follow_plan(self) -> None:
        """Compute the plan at each change of the view, and apply it."""
        membership = self._joined_membership
        ttl = self._parts.settings.election_ttl
        while True:
            view, now = membership.view, trio.current_time()
            replan_at = now + ttl
            plan: Plan | None = None
            if view is not None:
                leading = {watch.shard.id for watch in self.watches.values() if watch.leads}
                plan = make_plan(view, membership.name, leading=leading, now=now, ttl=ttl)
            if plan is not None and view is not None:
                self._apply(plan, len(view.table.shards))
                replan_at = min(replan_at, plan.replan_at)
                if membership.name in view.members:
                    self._planned.set()
            self._on_change()
            with trio.move_on_at(replan_at):
                await membership.wait_changed(view)

    def _apply(self, plan: Plan, count: int) -> None:
        for duty in plan.duties.values():
            watch = self.watches.get(duty.shard)
            if watch is None:
                watch = self._begin_watch(duty.shard, count)
            watch.assign(duty)
        for shard, watch in self.watches.items():
            duty_now = plan.duties.get(shard.id)
            if duty_now is None or duty_now.shard != shard:
                watch.assign(None)

    def _begin_watch(self, shard: Shard, count: int) -> ShardWatch:
        processor = self._kept.pop(shard, None) or self._parts.processor(shard, count)
        joined = self._joined_membership
        watch = ShardWatch(shard, processor, joined, self._listing, self._on_change)
        self.watches[shard] = watch
        self._watching.start_soon(self._watch_shard, watch)
        return watch

    async def _watch_shard(self, watch: ShardWatch) -> None:
        """Watch a shard until it is not needed; a failure concerns this shard alone."""
        keep = self._parts.containment.of(f"shard {watch.shard}").keep
        try:
            while True:
                await keep("task", "the watch of a shard", watch.run)
                if watch.duty is None:
                    break
        finally:
            if self.watches.get(watch.shard) is watch:
                del self.watches[watch.shard]
            await self._keep_or_drop(watch.shard, watch.processor)

    async def _keep_or_drop(self, shard: Shard, processor: Processor) -> None:
        """Keep a processor with subscriptions for the next run, and stop and drop any other one."""
        if processor.subscription_count:
            self._kept[shard] = processor
            return
        with trio.move_on_after(_STOPPED_WITHIN, shield=True):
            # After a failure of the run it still watches, and may lead.
            await processor.stop_watching(0)
        self._on_end(processor)

    async def _until_listed(self) -> None:
        """Return once the first shards were listed, or refused, or cannot be planned."""
        with self._until_stopped():
            await self._planned.wait()
            for watch in list(self.watches.values()):
                await watch.decided.wait()

    async def _leave(self) -> None:
        """Leave the members, hand over what others are ready for, and stop all watches."""
        membership, deadline = self._joined_membership, trio.current_time() + self._grace
        with trio.move_on_after(min(LEAVING, self._grace / 2)):
            await membership.leave()
            while any(watch.leads for watch in self.watches.values()):
                view = membership.view
                if view is None or not set(view.members) - {membership.name}:
                    break
                with trio.move_on_after(_LOOK_AGAIN):
                    await membership.wait_changed(view)
        remaining = max(0.0, deadline - trio.current_time())
        async with trio.open_nursery() as nursery:
            for watch in self.watches.values():
                nursery.start_soon(watch.processor.stop_watching, remaining)
