"""The metrics of a process, read from its statistics at each request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import trio
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from etcd_actions import __version__
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.histogram import BOUNDS, TASK_BOUNDS, Distribution
from etcd_actions.client import ActionsClient
from etcd_actions.etcd.group_commit import GroupCommitStatistics
from etcd_actions.etcd.member_states import MemberState
from etcd_actions.follow.workqueue import WorkQueueStatistics
from etcd_actions.monitoring.health import Health
from etcd_actions.pipeline.watching_settings import WatchingStatistics
from etcd_actions.web import ListenerStatistics

if TYPE_CHECKING:
    from etcd_actions.executor import ExecutorStatistics
    from etcd_actions.runs.removal import Removed
    from etcd_actions.server import ServerStatistics
    from etcd_actions.uploads import SweepResult

_T = TypeVar("_T")

_DEFAULT_POOL: Final = "default"
_MOST_POOLS: Final = 100
_LONGEST_POOL: Final = 100


class Metrics(Collector):
    """All metrics of a process.

    Args:
        client: The client whose statistics are exported.
        health: The health of the process.

    Attributes:
        server: Returns the statistics of the server; None without a server. Equally `executor`,
            `collected` (of the collector of runs) and `swept` (of the collector of uploads).
        listeners: Return the statistics of each HTTP listener, by its name.
        lines_dropped: Returns how many log lines were lost; None if they are not counted.
        members: Reads the states of etcd's members; None if they are not read.
    """

    def __init__(self, client: ActionsClient, health: Health) -> None:
        self._client = client
        self._health = health
        self.server: Callable[[], ServerStatistics] | None = None
        self.executor: Callable[[], ExecutorStatistics] | None = None
        self.collected: Callable[[], Removed] | None = None
        self.swept: Callable[[], SweepResult] | None = None
        self.listeners: dict[str, Callable[[], ListenerStatistics]] = {}
        self.lines_dropped: Callable[[], int] | None = None
        self.members: Callable[[], Awaitable[Sequence[MemberState]]] | None = None
        self._member_states: Sequence[MemberState] = ()

    async def text(self) -> bytes:
        """All metrics in Prometheus' text format; runs the checks of /readyz, which call etcd."""
        await self._health.ready()
        if self.members is not None:
            self._member_states = await self.members()
        # Separately: a metric that cannot be written does not remove another.
        return b"".join(self._written(metric) for metric in self.collect())

    def _written(self, metric: Metric) -> bytes:
        with self._client.containment.unit("metric", metric.name):
            return generate_latest(_Alone(metric))
        return b""

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        # One call for all parts; an error is not cached.
        statistics = cache(self._client.statistics)
        for name, metrics in (
            ("build", _of_build),
            ("members", lambda: _of_members(self._member_states)),
            ("watch", lambda: _of_watch(statistics(), self._health)),
            ("queues", lambda: _of_queues(statistics())),
            ("recording", lambda: _of_recording(statistics())),
            ("writes", lambda: _of_writes(self._client.group_commit_statistics())),
            ("containment", lambda: _of_containment(self._client.containment)),
            ("server", lambda: _of_optional(self.server, _of_server)),
            ("executor", lambda: _of_optional(self.executor, _of_executor)),
            ("collected", lambda: _of_optional(self.collected, _of_collected)),
            ("swept", lambda: _of_optional(self.swept, _of_swept)),
            ("listeners", lambda: _of_listeners({n: read() for n, read in self.listeners.items()})),
            ("log", lambda: _of_optional(self.lines_dropped, _of_log)),
            ("process", PROCESS_COLLECTOR.collect),
            ("platform", PLATFORM_COLLECTOR.collect),
            ("gc", GC_COLLECTOR.collect),
        ):
            # A part that fails loses only the rest of its own metrics.
            with self._client.containment.unit("metric", name):
                yield from metrics()


class _Alone(Collector):
    """A registry of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        yield self._metric


def _of_optional(
    read: Callable[[], _T] | None, metrics: Callable[[_T], Iterator[Metric]]
) -> Iterator[Metric]:
    return iter(()) if read is None else metrics(read())


def _of_build() -> Iterator[Metric]:
    yield _gauge("etcd_actions_build_info", "The version.", {__version__: 1}, "version")
    tasks = trio.lowlevel.current_statistics().tasks_living
    yield _gauge("etcd_actions_trio_tasks", "Trio's tasks of the process.", tasks)


def _of_members(states: Sequence[MemberState]) -> Iterator[Metric]:
    text = "Whether a member of etcd answers, has a leader, a vote and no alarm."
    healthy = {each.member.name or f"{each.member.id:x}": each.is_healthy for each in states}
    yield _gauge("etcd_actions_etcd_member_healthy", text, healthy, "member")


def _of_log(lines_dropped: int) -> Iterator[Metric]:
    text = "Log writes that standard error did not accept."
    yield _counter("etcd_actions_log_lines_dropped", text, lines_dropped)


def _of_collected(collected: Removed) -> Iterator[Metric]:
    yield _counter(
        "etcd_actions_collected",
        "Deleted parts of runs that ended long ago.",
        {
            "run": collected.records,
            "history": collected.histories,
            "object": collected.objects,
            "blob": collected.blobs,
        },
        "kind",
    )
    text = "Bytes of the keys and values in etcd that were deleted with these runs."
    yield _counter("etcd_actions_collected_bytes", text, collected.bytes)


def _of_swept(swept: SweepResult) -> Iterator[Metric]:
    yield _counter(
        "etcd_actions_swept",
        "Uploads and definitions of images: deleted; moved to the trash; restored from it.",
        {
            "upload": swept.uploads,
            "image": swept.images,
            "moved": swept.moved,
            "restored": swept.restored,
        },
        "kind",
    )
    yield _counter("etcd_actions_swept_bytes", "Bytes of uploads that were deleted.", swept.bytes)


def _of_watch(statistics: WatchingStatistics, health: Health) -> Iterator[Metric]:
    reflector = statistics.reflector
    yield _gauge("etcd_actions_ready", "Whether /readyz responds with 200.", health.is_ready)
    text = "Whether etcd lost its quorum."
    yield _gauge("etcd_actions_quorum_lost", text, bool(health.quorum_loss()))
    if reflector is None:
        return
    lag = health.lag(reflector)
    yield _gauge(
        "etcd_actions_watch_synced", "Whether the first list was delivered.", reflector.synced
    )
    yield _gauge("etcd_actions_watch_streaming", "Whether a stream is open.", reflector.streaming)
    yield _gauge("etcd_actions_watch_revision", "The delivered revision.", reflector.revision)
    text = "Revisions from it to the store's newest one, if it lags for more than a moment."
    yield _gauge("etcd_actions_watch_lag_revisions", text, lag.revisions)
    yield _gauge("etcd_actions_watch_lag_seconds", "For how long it has been behind.", lag.seconds)
    text = "Seconds since etcd last sent a message."
    yield _gauge("etcd_actions_watch_silence_seconds", text, reflector.silence)
    yield _gauge("etcd_actions_watch_keys", "Number of keys that exist.", reflector.keys)
    yield _counter("etcd_actions_watch_events", "Changes that were delivered.", reflector.events)
    text = "Streams lost, by error."
    yield _counter("etcd_actions_watch_reconnects", text, reflector.reconnects, "cause")
    text = "Lists after the first, by reason."
    yield _counter("etcd_actions_watch_relists", text, reflector.relists, "reason")
    text = "Values that could not be decoded."
    yield _counter("etcd_actions_decode_errors", text, statistics.decode_errors)
    text = "Keys whose present value cannot be decoded."
    yield _gauge("etcd_actions_undecodable_keys", text, len(statistics.undecodable))


def _of_writes(writes: GroupCommitStatistics) -> Iterator[Metric]:
    yield _counter("etcd_actions_group_commit_members", "Transactions answered.", writes.members)
    yield _counter("etcd_actions_group_commit_groups", "Requests with transactions.", writes.groups)
    yield _counter("etcd_actions_group_commit_halved", "Groups that were refused.", writes.halved)
    bounds = (*(f"{2**power}.0" for power in range(len(writes.sizes))), "+Inf")
    totals = list(accumulate(writes.sizes))
    yield HistogramMetricFamily(
        "etcd_actions_group_commit_size",
        "Transactions in one request.",
        buckets=list(zip(bounds, [*totals, totals[-1]], strict=True)),
        sum_value=writes.members,
    )
    text = "How long requests took."
    yield _histogram("etcd_actions_group_commit_seconds", text, writes.times)
    yield _gauge("etcd_actions_group_commit_largest", "Most in one request.", writes.largest)
    yield _gauge("etcd_actions_group_commit_waiting", "Transactions that wait.", writes.waiting)


def _of_queues(statistics: WatchingStatistics) -> Iterator[Metric]:
    both = {"handlers": statistics.handlers, "outbox": statistics.outbox}
    queues = {name: queue for name, queue in both.items() if queue is not None}
    for make, name, text, value in _QUEUE_METRICS:
        values = {each: value(queue) for each, queue in queues.items()}
        yield make(f"etcd_actions_queue_{name}", text, values, "queue")
    yield _histogram(
        "etcd_actions_handler_seconds",
        "How long a handler took: for one change in the outbox, for one batch in the handlers.",
        {name: queue.turn_times for name, queue in queues.items()},
        "queue",
    )
    yield _histogram(
        "etcd_actions_queue_wait_seconds",
        "How long a key with work waited for a worker.",
        {name: queue.wait_times for name, queue in queues.items()},
        "queue",
    )


def _of_shards(statistics: WatchingStatistics) -> Iterator[Metric]:
    if not statistics.member:
        return
    shards = statistics.shards
    states = {
        "owned": sum(each.owned for each in shards),
        "standby": sum(bool(each.duty) and not each.owned for each in shards),
        "elsewhere": sum(not each.duty for each in shards),
    }
    yield _gauge("etcd_actions_shards", "Shards, by what this process does.", states, "state")
    text = "Shards without an owner, as this process knows them."
    yield _gauge("etcd_actions_shards_unowned", text, sum(not each.owner for each in shards))
    text = "The longest time that a shard is without an owner."
    ownerless = max((each.ownerless for each in shards), default=0.0)
    yield _gauge("etcd_actions_shard_ownerless_seconds", text, ownerless)
    text = "Members that share the shards, as this process knows them."
    yield _gauge("etcd_actions_shard_members", text, len(statistics.members))


def _of_recording(statistics: WatchingStatistics) -> Iterator[Metric]:
    yield _gauge("etcd_actions_leader", "Whether this process is the leader.", statistics.elected)
    yield from _of_shards(statistics)
    text = "Actions that wait for a worker, by pool; of the leader, the others say 0."
    queued = {_DEFAULT_POOL: 0, **_largest(statistics.queued)}
    yield _gauge("etcd_actions_queued_actions", text, queued, "pool")
    yield _gauge("etcd_actions_checkpoint", "The saved checkpoint.", statistics.checkpoint)
    yield _gauge("etcd_actions_subscriptions", "Open subscriptions.", statistics.subscriptions)
    text = "Updates that subscribers have yet to receive."
    yield _gauge("etcd_actions_subscriber_lag_updates", text, statistics.undelivered)
    results = {
        # Without a run service each call is a step of the outbox, and no service accepts it.
        "accepted" if statistics.has_run_service else "no_run_service": statistics.reported,
        "rejected": statistics.rejected,
        "failed": statistics.failed,
        "interrupted": statistics.interrupted,
    }
    yield _counter(
        "etcd_actions_run_service_calls",
        "Calls to the run service; failed and interrupted calls are repeated.",
        {(call, result): n for result, calls in results.items() for call, n in calls.items()},
        "call",
        "result",
    )
    yield _histogram(
        "etcd_actions_run_service_call_seconds",
        "How long these calls took, including the wait for the lease.",
        statistics.call_times,
        "call",
    )
    text = "From the arrival of a state or deletion to its report, of a terminal state to its mark."
    yield _histogram("etcd_actions_report_lag_seconds", text, statistics.report_lag)
    text = "Accepted terminal phases that are reported again before the mark, as after a takeover."
    yield _gauge("etcd_actions_deferred_reports", text, statistics.deferred)
    text = "Calls that the run service refused for good and has not accepted since; leader only."
    yield _gauge("etcd_actions_dead_letters", text, len(statistics.dead_letters))
    text = "Dead letters that were deleted in favour of newer ones."
    yield _counter("etcd_actions_dead_letters_dropped", text, statistics.dropped_dead_letters)
    yield _counter("etcd_actions_marks", "Marks, by result.", statistics.marks, "result")


def _of_containment(containment: Containment) -> Iterator[Metric]:
    text = "Units of work that failed unexpectedly, by kind."
    yield _counter("etcd_actions_contained_failures", text, containment.failures, "unit")
    parked = Counter(unit.kind for unit in containment.parked)
    yield _gauge("etcd_actions_parked_units", "Failed units that wait for a retry.", parked, "unit")


def _of_listeners(listeners: Mapping[str, ListenerStatistics]) -> Iterator[Metric]:
    connections: dict[tuple[str, str], int] = {}
    for name, listener in listeners.items():
        connections[name, "busy"] = listener.busy_connections
        connections[name, "idle"] = listener.open_connections - listener.busy_connections
    text = "Open connections, by listener; busy ones have a request."
    yield _gauge("etcd_actions_http_connections", text, connections, "listener", "state")
    for name, text, value in _LISTENER_COUNTS:
        counts = {each: value(listener) for each, listener in listeners.items()}
        yield _counter(f"etcd_actions_http_{name}", text, counts, "listener")
    for name, text, reasons in _LISTENER_REASONS:
        by_reason = {
            (each, reason): count
            for each, listener in listeners.items()
            for reason, count in reasons(listener).items()
        }
        yield _counter(f"etcd_actions_http_{name}", text, by_reason, "listener", "reason")


def _of_server(server: ServerStatistics) -> Iterator[Metric]:
    text = "Calls, by method and code."
    yield _counter("etcd_actions_requests", text, server.calls, "method", "code")
    text = "How long each call took; of streams, how long it was open."
    yield _histogram("etcd_actions_request_seconds", text, server.times, "method")
    yield _gauge("etcd_actions_open_streams", "Open streams.", server.open_streams)
    yield _counter("etcd_actions_stream_updates", "Updates that were sent.", server.updates)
    text = "States that a newer one replaced."
    yield _counter("etcd_actions_stream_conflated", text, server.conflated)


def _of_executor(executor: ExecutorStatistics) -> Iterator[Metric]:
    yield _gauge("etcd_actions_executor_running", "Attempts in progress.", executor.running)
    text = "Attempts in progress that wait for children."
    yield _gauge("etcd_actions_executor_waiting", text, executor.waiting)
    text = "Actions that are not terminal."
    yield _gauge("etcd_actions_executor_open_actions", text, executor.open_actions)
    text = "Actions that wait here for a slot or another resource."
    yield _gauge("etcd_actions_executor_queued", text, executor.queued)
    text = "Actions that fit no live worker."
    yield _gauge("etcd_actions_executor_unplaced", text, executor.unplaced)
    text = "Claims that another executor was faster to create."
    yield _counter("etcd_actions_executor_lost_claims", text, executor.lost_claims)
    yield _counter("etcd_actions_executor_started", "Attempts started.", executor.started)
    yield _counter("etcd_actions_executor_adopted", "Attempts found running.", executor.adopted)
    yield _counter("etcd_actions_executor_retries", "Attempts retried.", executor.retries)
    yield _counter("etcd_actions_executor_ended", "Actions ended.", executor.ended, "phase")
    text = "How long this process followed an attempt, by outcome."
    yield _histogram(
        "etcd_actions_executor_attempt_seconds",
        text,
        executor.attempt_times,
        "outcome",
        bounds=TASK_BOUNDS,
    )
    text = "Lookups and writes of cached results, by status."
    yield _counter("etcd_actions_executor_cache", text, executor.cache, "status")


def _largest(queued: Mapping[str, int]) -> dict[str, int]:
    """The pools with the most actions by their names; clients may request any pool."""
    found: Counter[str] = Counter()
    for pool, count in Counter(queued).most_common(_MOST_POOLS):
        found[pool[:_LONGEST_POOL] or _DEFAULT_POOL] += count
    return found


_Values: TypeAlias = _T | Mapping[str, _T] | Mapping[tuple[str, str], _T]
"""One value without labels, or the values by one label or by two."""


def _gauge(name: str, text: str, values: _Values[float], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for each, value in _by_labels(values):
        family.add_metric(each, float(value))
    return family


def _counter(name: str, text: str, values: _Values[float], *labels: str) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for each, value in _by_labels(values):
        family.add_metric(each, value)
    return family


def _histogram(
    name: str,
    text: str,
    values: _Values[Distribution],
    *labels: str,
    bounds: Sequence[float] = BOUNDS,
) -> Metric:
    ends = (*map(str, bounds), "+Inf")
    family = HistogramMetricFamily(name, text, labels=labels)
    for each, (counts, seconds) in _by_labels(values):
        buckets = list(zip(ends, accumulate(counts), strict=True))
        family.add_metric(each, buckets, seconds)
    return family


def _by_labels(values: _Values[_T]) -> Iterator[tuple[Sequence[str], _T]]:
    if not isinstance(values, Mapping):
        yield (), values
        return
    for each, value in values.items():
        yield (each,) if isinstance(each, str) else each, value


_Make = Callable[[str, str, Mapping[str, float], str], Metric]
_QUEUE_METRICS: Final[
    tuple[tuple[_Make, str, str, Callable[[WorkQueueStatistics], float]], ...]
] = (
    (_gauge, "keys", "Keys with work.", lambda each: each.keys),
    (_gauge, "pending_changes", "Changes not taken yet.", lambda each: each.pending_changes),
    (_gauge, "pending_bytes", "Bytes of their values.", lambda each: each.pending_bytes),
    (_gauge, "failing_keys", "Keys that wait for a retry.", lambda each: len(each.failing)),
    (_counter, "adds", "Changes that came in.", lambda each: each.dispatched),
    (_counter, "handled", "Changes handled.", lambda each: each.handled),
    (_counter, "conflated", "Changes that a newer one replaced.", lambda each: each.conflated),
    (_counter, "dropped_values", "Values to be read again.", lambda each: each.dropped_values),
    (_counter, "retries", "Handlers that failed.", lambda each: each.failures),
)
_LISTENER_COUNTS: Final[tuple[tuple[str, str, Callable[[ListenerStatistics], int]], ...]] = (
    ("connections_accepted", "Connections that were accepted.", lambda each: each.accepted),
    (
        "protocol_errors",
        "Clients that left during a request, or sent invalid HTTP.",
        lambda each: each.protocol_errors,
    ),
)
_LISTENER_REASONS: Final[
    tuple[tuple[str, str, Callable[[ListenerStatistics], Mapping[str, int]]], ...]
] = (
    ("connections_refused", "Connections that were refused.", lambda each: each.refused),
    ("connections_closed", "Connections that the server closed.", lambda each: each.closed),
    (
        "requests_refused",
        "Requests with a Host or an Origin that is not allowed.",
        lambda each: each.refused_requests,
    ),
)
