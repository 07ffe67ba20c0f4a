"""The metrics of a process, made of its statistics when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Protocol

import trio
from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from etcd_actions import __version__
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.histogram import BOUNDS, Distribution
from etcd_actions.client import ActionsClient
from etcd_actions.follow.workqueue import WorkQueueStatistics
from etcd_actions.monitoring.health import Health
from etcd_actions.pipeline.watching_settings import WatchingStatistics
from etcd_actions.web import ListenerStatistics

if TYPE_CHECKING:
    from etcd_actions.runs.removal import Removed
    from etcd_actions.uploads import SweepResult


_BOUNDS: Final = (*map(str, BOUNDS), "+Inf")


class ServerNumbers(Protocol):
    """What a server tells of itself, see ``etcd_actions.server``."""

    @property
    def calls(self) -> Mapping[tuple[str, str], int]:
        """Number of calls by method and code."""
        ...

    @property
    def seconds(self) -> Mapping[str, float]:
        """What they took in all, by method."""
        ...

    @property
    def times(self) -> Mapping[str, Distribution]:
        """How long each took, by method."""
        ...

    @property
    def open_streams(self) -> int:
        """Number of open streams."""
        ...

    @property
    def updates(self) -> int:
        """Number of updates given out."""
        ...

    @property
    def conflated(self) -> int:
        """Number of states that were not given out, since a newer one was."""
        ...

    @property
    def protocol_errors(self) -> int:
        """How often a client left in the middle."""
        ...


class ExecutorNumbers(Protocol):
    """What an executor tells of itself, see ``etcd_actions.executor``."""

    @property
    def running(self) -> int:
        """Number of attempts under way."""
        ...

    @property
    def waiting(self) -> int:
        """How many of them wait for children."""
        ...

    @property
    def open_actions(self) -> int:
        """Number of actions that are not over."""
        ...

    @property
    def started(self) -> int:
        """Number of attempts started."""
        ...

    @property
    def adopted(self) -> int:
        """Number of attempts found running."""
        ...

    @property
    def ended(self) -> Mapping[str, int]:
        """Number of actions ended, by phase."""
        ...

    @property
    def retries(self) -> int:
        """Number of attempts followed by another."""
        ...

    @property
    def cache(self) -> Mapping[str, int]:
        """What looking up and keeping cached results came to, by status."""
        ...


class Metrics(Collector):
    """All metrics of a process.

    Args:
        client: Whose.
        health: How it is.
        server: The statistics of its server; None without one.
        executor: Those of its executor; None without one.
        lines_dropped: How many lines of the log could not be written; None where nobody counts.
    """

    def __init__(
        self,
        client: ActionsClient,
        health: Health,
        *,
        server: Callable[[], ServerNumbers] | None = None,
        executor: Callable[[], ExecutorNumbers] | None = None,
        lines_dropped: Callable[[], int] | None = None,
    ) -> None:
        self._client = client
        self._health = health
        self.server = server
        self.executor = executor
        self.collected: Callable[[], Removed] | None = None
        self.swept: Callable[[], SweepResult] | None = None
        self.listeners: dict[str, Callable[[], ListenerStatistics]] = {}
        self.lines_dropped = lines_dropped

    async def text(self) -> bytes:
        """All of them, in Prometheus' text format; etcd is asked, as for /readyz."""
        await self._health.ready()
        # One by one: a metric that cannot be written hides no other.
        return b"".join(self._written(metric) for metric in self.collect())

    def _written(self, metric: Metric) -> bytes:
        with self._client.containment.unit("metric", metric.name):
            return generate_latest(_Alone(metric))
        return b""

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        # Once for all parts; what raises is asked again by the next.
        statistics = cache(self._client.statistics)
        for name, metrics in (
            ("build", self._of_build),
            ("watch", lambda: self._of_watch(statistics())),
            ("queues", lambda: _of_queues(statistics())),
            ("recording", lambda: _of_recording(statistics())),
            ("writes", self._of_writes),
            ("containment", lambda: _of_containment(self._client.containment)),
            ("server", self._of_server),
            ("executor", self._of_executor),
            ("collected", self._of_collected),
            ("swept", self._of_swept),
            ("listeners", self._of_listeners),
            ("log", self._of_log),
        ):
            yield from self._contained(name, metrics)

    def _contained(self, name: str, metrics: Callable[[], Iterator[Metric]]) -> Iterator[Metric]:
        """The metrics of one part; those before the one that failed, where one does."""
        with self._client.containment.unit("metric", name):
            yield from metrics()

    def _of_build(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("etcd_actions_build_info", "The version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        tasks = trio.lowlevel.current_statistics().tasks_living
        yield _gauge("etcd_actions_tasks", "Trio's tasks, all that are open.", tasks)

    def _of_listeners(self) -> Iterator[Metric]:
        yield from _of_listeners({name: read() for name, read in self.listeners.items()})

    def _of_log(self) -> Iterator[Metric]:
        if self.lines_dropped is not None:
            yield _counter(
                "etcd_actions_log_lines_dropped",
                "Writes to standard error that it did not take.",
                self.lines_dropped(),
            )

    def _of_server(self) -> Iterator[Metric]:
        if self.server is not None:
            yield from _of_server(self.server())

    def _of_executor(self) -> Iterator[Metric]:
        if self.executor is not None:
            yield from _of_executor(self.executor())

    def _of_collected(self) -> Iterator[Metric]:
        if self.collected is None:
            return
        collected = self.collected()
        numbers = {
            "run": collected.records,
            "history": collected.histories,
            "object": collected.objects,
            "blob": collected.blobs,
        }
        text = "What was deleted of runs that ended long ago."
        yield _counters("etcd_actions_collected", text, "kind", numbers)
        text = "Keys and values in etcd that were deleted with these."
        yield _counter("etcd_actions_collected_bytes", text, collected.bytes)

    def _of_swept(self) -> Iterator[Metric]:
        if self.swept is None:
            return
        swept = self.swept()
        numbers = {
            "upload": swept.uploads,
            "image": swept.images,
            "moved": swept.moved,
            "restored": swept.restored,
        }
        text = "Uploads and definitions of images: deleted; moved to the trash; restored from it."
        yield _counters("etcd_actions_swept", text, "kind", numbers)
        text = "Bytes of uploads that were deleted."
        yield _counter("etcd_actions_swept_bytes", text, swept.bytes)

    def _of_watch(self, statistics: WatchingStatistics) -> Iterator[Metric]:
        reflector = statistics.reflector
        yield _gauge("etcd_watch_ready", "Whether /readyz says so.", self._health.is_ready)
        if reflector is None:
            return
        yield _gauge("etcd_watch_synced", "Whether the first list was given out.", reflector.synced)
        yield _gauge("etcd_watch_streaming", "Whether a stream is open.", reflector.streaming)
        yield _gauge("etcd_watch_revision", "All up to it was given out.", reflector.revision)
        lag = self._health.lag(reflector.revision)
        yield _gauge(
            "etcd_watch_lag_revisions",
            "How far behind the store's newest revision that is; what others write counts.",
            lag.revisions,
        )
        yield _gauge("etcd_watch_lag_seconds", "For how long it has been behind.", lag.seconds)
        yield _gauge("etcd_watch_silence_seconds", "Since etcd was last heard.", reflector.silence)
        yield _gauge("etcd_watch_keys", "Number of keys that exist.", reflector.keys)
        yield _counter("etcd_watch_events", "Changes given out.", reflector.events)
        yield _counters(
            "etcd_watch_reconnects", "Streams lost, by error.", "cause", reflector.reconnects
        )
        yield _counters(
            "etcd_watch_relists", "Lists after the first, by reason.", "reason", reflector.relists
        )
        yield _counter(
            "storage_decode_errors",
            "Values that could not be decoded.",
            statistics.decode_errors,
        )
        yield _gauge(
            "storage_undecodable_keys",
            "Keys that hold such a value now.",
            len(statistics.undecodable),
        )

    def _of_writes(self) -> Iterator[Metric]:
        writes = self._client.group_commit_statistics()
        yield _counter("etcd_group_commit_members", "Transactions answered.", writes.members)
        yield _counter("etcd_group_commit_groups", "Requests that they went in.", writes.groups)
        yield _counter("etcd_group_commit_halved", "Groups that were refused.", writes.halved)
        yield HistogramMetricFamily(
            "etcd_group_commit_size",
            "Transactions in one request.",
            buckets=_buckets(writes.sizes),
            sum_value=writes.members,
        )
        yield _histograms(
            "etcd_group_commit_seconds", "How long requests took.", {(): writes.times}
        )
        yield _gauge("etcd_group_commit_largest", "Most in one request.", writes.largest)
        yield _gauge("etcd_group_commit_waiting", "Transactions that wait.", writes.waiting)


class _Alone(Collector):
    """A registry of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        yield self._metric


def _of_queues(statistics: WatchingStatistics) -> Iterator[Metric]:
    queues = [("handlers", statistics.handlers), ("outbox", statistics.outbox)]
    present = [(name, queue) for name, queue in queues if queue is not None]

    def gauge(name: str, text: str, value: Callable[[WorkQueueStatistics], float]) -> Metric:
        family = GaugeMetricFamily(f"workqueue_{name}", text, labels=["name"])
        for name_of, queue in present:
            family.add_metric([name_of], value(queue))
        return family

    def counter(name: str, text: str, value: Callable[[WorkQueueStatistics], float]) -> Metric:
        family = CounterMetricFamily(f"workqueue_{name}", text, labels=["name"])
        for name_of, queue in present:
            family.add_metric([name_of], value(queue))
        return family

    yield gauge("depth", "Keys with work.", lambda each: each.keys)
    yield gauge("pending_changes", "Changes not taken yet.", lambda each: each.pending_changes)
    yield gauge("pending_bytes", "Bytes of their values.", lambda each: each.pending_bytes)
    yield gauge("failing_keys", "Keys to be tried again.", lambda each: len(each.failing))
    yield counter("adds", "Changes that came in.", lambda each: each.dispatched)
    yield counter("handled", "Changes handled.", lambda each: each.handled)
    yield counter("conflated", "Changes that a newer one replaced.", lambda each: each.conflated)
    yield counter("dropped_values", "Values to be read again.", lambda each: each.dropped_values)
    yield counter("retries", "Handlers that failed.", lambda each: each.failures)
    yield counter(
        "work_duration_seconds", "Time spent in handlers.", lambda each: each.handler_seconds
    )
    yield _histograms(
        "workqueue_turn_seconds",
        "How long a handler took: of the outbox for one change, of the handlers for what arrived "
        "together.",
        {(name,): queue.turn_times for name, queue in present},
        "name",
    )
    yield _histograms(
        "workqueue_wait_seconds",
        "How long a key with work waited for a worker.",
        {(name,): queue.wait_times for name, queue in present},
        "name",
    )
    yield counter("turns", "Keys taken by a worker.", lambda each: each.turns)
    yield counter(
        "queue_duration_seconds", "Time that keys waited for that.", lambda each: each.wait_seconds
    )


def _of_recording(statistics: WatchingStatistics) -> Iterator[Metric]:
    yield _gauge("etcd_actions_elected", "Whether it records and marks.", statistics.elected)
    yield _gauge("etcd_actions_position", "The durable position.", statistics.checkpoint)
    yield _gauge("etcd_actions_subscriptions", "Open subscriptions.", statistics.subscriptions)
    yield _gauge(
        "etcd_actions_subscriber_lag_updates",
        "Updates that subscribers have yet to receive.",
        statistics.undelivered,
    )
    calls = CounterMetricFamily(
        "etcd_actions_run_service_calls",
        "Calls to the run service; those that failed, or were cut off, are made again.",
        labels=["call", "result"],
    )
    for result, counts in (
        ("accepted", statistics.reported),
        ("rejected", statistics.rejected),
        ("failed", statistics.failed),
        ("cut", statistics.interrupted),
    ):
        for call, count in counts.items():
            calls.add_metric([call, result], count)
    yield calls
    yield _histograms(
        "etcd_actions_run_service_call_seconds",
        "How long these calls took, with what they waited for the lease.",
        {(call,): times for call, times in statistics.call_times.items()},
        "call",
    )
    yield _gauge(
        "etcd_actions_held_endings",
        "Accepted, and told again before they are marked: after a takeover, say.",
        statistics.deferred,
    )
    yield _gauge(
        "etcd_actions_dead_letters",
        "Calls that the run service refused for good and did not accept since; of the elected "
        "process.",
        len(statistics.dead_letters),
    )
    yield _counter(
        "etcd_actions_dead_letters_dropped",
        "Dead letters that were deleted to make room for newer ones.",
        statistics.dropped_dead_letters,
    )
    yield _counters("etcd_actions_marks", "Marks, by result.", "result", statistics.marks)


def _of_containment(containment: Containment) -> Iterator[Metric]:
    yield _counters(
        "etcd_actions_contained_failures",
        "Units of work that failed unexpectedly, by kind.",
        "unit",
        containment.failures,
    )
    parked = GaugeMetricFamily(
        "etcd_actions_parked_units", "Of these, what waits for another try.", labels=["unit"]
    )
    for kind, count in Counter(unit.kind for unit in containment.parked).items():
        parked.add_metric([kind], count)
    yield parked


def _of_listeners(listeners: Mapping[str, ListenerStatistics]) -> Iterator[Metric]:
    connections = GaugeMetricFamily(
        "etcd_actions_http_connections",
        "Open connections, by listener; busy ones have a request.",
        labels=["listener", "state"],
    )
    accepted = CounterMetricFamily(
        "etcd_actions_http_connections_accepted",
        "Connections that were let in, by listener.",
        labels=["listener"],
    )
    for name, listener in listeners.items():
        busy = listener.busy_connections
        connections.add_metric([name, "busy"], busy)
        connections.add_metric([name, "idle"], listener.open_connections - busy)
        accepted.add_metric([name], listener.accepted)
    yield connections
    yield accepted

    def by_reason(
        name: str, text: str, counts: Callable[[ListenerStatistics], Mapping[str, int]]
    ) -> Metric:
        family = CounterMetricFamily(name, text, labels=["listener", "reason"])
        for each, listener in listeners.items():
            for reason, count in counts(listener).items():
                family.add_metric([each, reason], count)
        return family

    yield by_reason(
        "etcd_actions_http_connections_refused",
        "Connections that were not let in, by reason.",
        lambda each: each.refused,
    )
    yield by_reason(
        "etcd_actions_http_connections_closed",
        "Connections that were closed from here, by reason.",
        lambda each: each.closed,
    )
    yield by_reason(
        "etcd_actions_http_requests_refused",
        "Requests with a Host or an Origin that is not allowed.",
        lambda each: each.refused_requests,
    )
    errors = CounterMetricFamily(
        "etcd_actions_http_protocol_errors",
        "Clients that left in the middle, or sent what is no HTTP, by listener.",
        labels=["listener"],
    )
    for name, listener in listeners.items():
        errors.add_metric([name], listener.protocol_errors)
    yield errors


def _of_server(server: ServerNumbers) -> Iterator[Metric]:
    calls = CounterMetricFamily(
        "etcd_actions_server_handled", "Calls, by method and code.", labels=["method", "code"]
    )
    for (method, code), count in server.calls.items():
        calls.add_metric([method, code], count)
    yield calls
    yield _counters(
        "etcd_actions_server_handling_seconds",
        "Time that calls took; of streams, how long they were open.",
        "method",
        server.seconds,
    )
    yield _histograms(
        "etcd_actions_server_call_seconds",
        "How long each call took; of streams, how long it was open.",
        {(method,): times for method, times in server.times.items()},
        "method",
    )
    yield _gauge("etcd_actions_server_open_streams", "Open streams.", server.open_streams)
    yield _counter("etcd_actions_server_updates", "Updates given out.", server.updates)
    yield _counter(
        "etcd_actions_server_conflated", "States that a newer one replaced.", server.conflated
    )
    yield _counter(
        "etcd_actions_server_protocol_errors",
        "Clients that left in the middle.",
        server.protocol_errors,
    )


def _of_executor(executor: ExecutorNumbers) -> Iterator[Metric]:
    yield _gauge("etcd_actions_executor_running", "Attempts under way.", executor.running)
    yield _gauge(
        "etcd_actions_executor_waiting", "Of these, waiting for children.", executor.waiting
    )
    yield _gauge("etcd_actions_executor_open_actions", "Not over yet.", executor.open_actions)
    yield _counter("etcd_actions_executor_started", "Attempts started.", executor.started)
    yield _counter("etcd_actions_executor_adopted", "Attempts found running.", executor.adopted)
    yield _counter("etcd_actions_executor_retries", "Attempts tried again.", executor.retries)
    yield _counters("etcd_actions_executor_ended", "Actions ended.", "phase", executor.ended)
    yield _counters(
        "etcd_actions_executor_cache",
        "Cached results, by what they came to.",
        "status",
        executor.cache,
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for each, value in values.items():
        family.add_metric([each], value)
    return family


def _histograms(
    name: str, text: str, values: Mapping[tuple[str, ...], Distribution], *labels: str
) -> Metric:
    """Durations, by what is in the labels."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for each, (counts, seconds) in values.items():
        family.add_metric(each, _cumulated(_BOUNDS, counts), seconds)
    return family


def _cumulated(bounds: Iterable[str], counts: Iterable[int]) -> list[tuple[str, float]]:
    return list(zip(bounds, accumulate(counts), strict=True))


def _buckets(sizes: Sequence[int]) -> list[tuple[str, float]]:
    """Of a histogram over powers of two: how many are as large as each, or smaller."""
    totals = list(accumulate(sizes))
    bounds = [*(f"{2**power}.0" for power in range(len(sizes))), "+Inf"]
    return list(zip(bounds, [*totals, totals[-1]], strict=True))
