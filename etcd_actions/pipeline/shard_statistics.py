"""The counts of several processors as those of one, and the states of shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Final

import trio

from etcd_actions._internal.histogram import Distribution
from etcd_actions.follow.workqueue import WorkQueueStatistics
from etcd_actions.pipeline.shard_watch import ShardWatch
from etcd_actions.pipeline.watching_settings import ShardStatistics, WatchingStatistics
from etcd_actions.shards import ShardView, shard_states
from etcd_actions.watch import ReflectorStatistics

_NONE: Final = WatchingStatistics(
    watching=False,
    reflector=None,
    handlers=None,
    outbox=None,
    reported={},
    rejected={},
    failed={},
    interrupted={},
    call_times={},
    has_run_service=False,
    report_lag=Distribution(),
    deferred=0,
    dead_letters=(),
    dropped_dead_letters=0,
    marks={},
    elected=False,
    collects=False,
    refused="",
    queued={},
    checkpoint=0,
    subscriptions=0,
    undelivered=0,
    decode_errors=0,
    undecodable={},
    undecodable_since=None,
)


class Totals:
    """The counts of the processors that ended, so that the sums never decrease."""

    def __init__(self) -> None:
        self._past = _NONE

    def add(self, ended: WatchingStatistics) -> None:
        """Keep the counts of a processor that ended."""
        self._past = _sum(self._past, _counts_of(ended))

    def with_present(self, present: Iterable[WatchingStatistics]) -> WatchingStatistics:
        """The sum of all processors, of which these still work."""
        working = reduce(_sum, present, _NONE)
        past = self._past
        if working.reflector is None:
            # Without a watch there is no revision and no silence.
            past = replace(past, reflector=None)
        return _sum(working, past)


def _counts_of(ended: WatchingStatistics) -> WatchingStatistics:
    """The counts of a processor without its contents."""
    reflector, handlers = ended.reflector, ended.handlers
    if reflector is not None:
        reflector = replace(reflector, keys=0, ranges=0, failures=0, failure="", silence=0.0)
        # The sum takes the lowest revision, which must not be that of an ended watch.
        reflector = replace(reflector, synced=True, streaming=True, revision=2**63 - 1)
    if handlers is not None:
        handlers = replace(handlers, keys=0, pending_changes=0, pending_bytes=0, failing=())
    return replace(
        _NONE,
        reflector=reflector,
        handlers=handlers,
        reported=ended.reported,
        rejected=ended.rejected,
        failed=ended.failed,
        interrupted=ended.interrupted,
        call_times=ended.call_times,
        report_lag=ended.report_lag,
        dropped_dead_letters=ended.dropped_dead_letters,
        marks=ended.marks,
        decode_errors=ended.decode_errors,
    )


def _sum(one: WatchingStatistics, other: WatchingStatistics) -> WatchingStatistics:
    checkpoints = [each.checkpoint for each in (one, other) if each.elected]
    since = [each for each in (one.undecodable_since, other.undecodable_since) if each is not None]
    return WatchingStatistics(
        watching=one.watching or other.watching,
        reflector=_reflectors(one.reflector, other.reflector),
        handlers=_queues(one.handlers, other.handlers),
        outbox=_queues(one.outbox, other.outbox),
        reported=_counts(one.reported, other.reported),
        rejected=_counts(one.rejected, other.rejected),
        failed=_counts(one.failed, other.failed),
        interrupted=_counts(one.interrupted, other.interrupted),
        call_times=_times(one.call_times, other.call_times),
        has_run_service=one.has_run_service or other.has_run_service,
        report_lag=one.report_lag.plus(other.report_lag),
        deferred=one.deferred + other.deferred,
        dead_letters=one.dead_letters + other.dead_letters,
        dropped_dead_letters=one.dropped_dead_letters + other.dropped_dead_letters,
        marks=_counts(one.marks, other.marks),
        elected=one.elected or other.elected,
        collects=one.collects or other.collects,
        refused=one.refused or other.refused,
        # Only the owner of a shard counts the shard's queued actions.
        queued=_counts(one.queued if one.elected else {}, other.queued if other.elected else {}),
        checkpoint=min(checkpoints, default=0),
        subscriptions=one.subscriptions + other.subscriptions,
        undelivered=one.undelivered + other.undelivered,
        decode_errors=one.decode_errors + other.decode_errors,
        undecodable=one.undecodable | other.undecodable,
        undecodable_since=min(since, default=None),
    )


def _reflectors(
    one: ReflectorStatistics | None, other: ReflectorStatistics | None
) -> ReflectorStatistics | None:
    if one is None or other is None:
        return one or other
    return ReflectorStatistics(
        synced=one.synced and other.synced,
        streaming=one.streaming and other.streaming,
        revision=min(one.revision, other.revision),
        reports_progress=one.reports_progress and other.reports_progress,
        ranges=one.ranges + other.ranges,
        keys=one.keys + other.keys,
        events=one.events + other.events,
        reconnects=_counts(one.reconnects, other.reconnects),
        relists=_counts(one.relists, other.relists),
        failures=max(one.failures, other.failures),
        failure=one.failure or other.failure,
        silence=max(one.silence, other.silence),
    )


def _queues(
    one: WorkQueueStatistics | None, other: WorkQueueStatistics | None
) -> WorkQueueStatistics | None:
    if one is None or other is None:
        return one or other
    return WorkQueueStatistics(
        keys=one.keys + other.keys,
        pending_changes=one.pending_changes + other.pending_changes,
        pending_bytes=one.pending_bytes + other.pending_bytes,
        dispatched=one.dispatched + other.dispatched,
        handled=one.handled + other.handled,
        conflated=one.conflated + other.conflated,
        dropped_values=one.dropped_values + other.dropped_values,
        failures=one.failures + other.failures,
        failing=one.failing + other.failing,
        turn_times=one.turn_times.plus(other.turn_times),
        wait_times=one.wait_times.plus(other.wait_times),
    )


def _counts(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(one) + Counter(other))


def _times(
    one: Mapping[str, Distribution], other: Mapping[str, Distribution]
) -> dict[str, Distribution]:
    none = Distribution()
    return {
        name: one.get(name, none).plus(other.get(name, none)) for name in sorted({*one, *other})
    }


def shard_statistics(
    view: ShardView | None, watches: Iterable[ShardWatch], *, ttl: int
) -> tuple[ShardStatistics, ...]:
    """The states of all shards, with the contents of those that this process watches.

    Args:
        view: The view of the shards; None before it was read.
        watches: The watches of this process.
        ttl: Seconds; the time to live of the elections' leases.
    """
    now = trio.current_time()
    by_shard = {each.shard: each for each in watches}
    found: list[ShardStatistics] = []
    for state in () if view is None else shard_states(view, now=now, ttl=ttl):
        shard = state.shard
        one = ShardStatistics(
            id=shard.id,
            start=shard.range.start.decode(errors="backslashreplace"),
            end=shard.range.end.decode(errors="backslashreplace"),
            owner=state.owner,
            target=state.target,
            ready=state.ready,
            ownerless=state.ownerless,
            problem=state.problem,
        )
        watch = by_shard.get(shard)
        found.append(one if watch is None else _watched(one, watch, now))
    return tuple(found)


def _watched(one: ShardStatistics, watch: ShardWatch, now: float) -> ShardStatistics:
    statistics, duty = watch.processor.statistics(), watch.duty
    reflector, outbox = statistics.reflector, statistics.outbox
    problem = one.problem
    if watch.failure:
        problem = f"it cannot be read: {watch.failure}"
    return replace(
        one,
        problem=problem,
        duty="subscriptions" if duty is None else duty.role.value,
        owned=watch.leads,
        since=now - watch.since,
        keys=watch.processor.key_count,
        revision=0 if reflector is None else reflector.revision,
        silence=None if reflector is None else reflector.silence,
        pending=0 if outbox is None else outbox.pending_changes,
        subscriptions=statistics.subscriptions,
    )
