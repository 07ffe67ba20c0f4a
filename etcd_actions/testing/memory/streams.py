"""Watch streams, by the rules of etcd's ``v3rpc/watch.go`` and ``watchable_store.go``."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import msgspec
import trio

from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import Event, WatchCreate, WatchResponse
from etcd_actions.testing.memory.engine import Engine
from etcd_actions.testing.memory.faults import Faults
from etcd_actions.testing.memory.keyspace import contains

MOST_REVISIONS = 1_000
"""The revisions in one response to a watcher that lags; etcd's number."""

FRAGMENT_BYTES = 2 * 1024 * 1024
"""From this size on a response is divided: etcd's largest request, and gRPC's overhead."""

PROGRESS_INTERVAL = 600.0
"""Seconds without an event after which a progress notification is sent, if requested."""

_EVENT_OVERHEAD = 32


@dataclass
class _Watcher:
    """A watcher's request, its first revision, and the time of the last message to it."""

    request: WatchCreate
    since: int
    last_sent: float


class MemoryWatchStream:
    """Implements :class:`~etcd_actions.etcd.transport.TransportStream`.

    Args:
        engine: The member.
        faults: The faults of the client; the stream belongs to their current epoch.
        silence: Seconds without a message after which the connection counts as broken.
        on_unavailable: Called when the member is unreachable.
    """

    def __init__(
        self,
        engine: Engine,
        faults: Faults,
        *,
        silence: float,
        on_unavailable: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._faults = faults
        self._epoch = faults.epoch
        self._silence = silence
        self._on_unavailable = on_unavailable
        self._bell = trio.lowlevel.ParkingLot()
        self._requests: deque[Callable[[], None]] = deque()
        self._answers: deque[tuple[float, WatchResponse]] = deque()
        self._watchers: dict[int, _Watcher] = {}
        self._used_ids: set[int] = set()
        self._failure: EtcdError | None = None
        self._stalled_since = math.inf

    def create(self, request: WatchCreate) -> None:
        """Request a watcher."""
        self._request(lambda: self._create(request))

    def cancel(self, watch_id: int) -> None:
        """End a watcher."""
        self._request(lambda: self._cancel(watch_id))

    def request_progress(self) -> None:
        """Request a progress notification for the stream."""
        self._request(lambda: self._answer(WatchResponse(-1, self._engine.keyspace.revision, 0)))

    async def receive(self) -> Sequence[WatchResponse]:
        """The messages that have arrived, at least one; see the protocol."""
        await trio.lowlevel.checkpoint()
        while True:
            moment = min(self._engine.advance(), self._look())
            now = trio.current_time()
            if found := self._arrived(now):
                return found
            if self._failure is not None and not self._answers:
                if isinstance(self._failure, Unavailable):
                    self._on_unavailable()
                raise self._failure
            with trio.move_on_at(moment):
                await self._bell.park()
                for _ in range(self._engine.pauses("answers_first")):
                    await trio.lowlevel.checkpoint()

    def fail(self, failure: EtcdError) -> None:
        """End the stream: its reader gets the messages that have arrived, then ``failure``."""
        if self._failure is None:
            self._failure = failure
            # Messages in flight never arrive.
            arrived = -math.inf if self._faults.is_stalled else trio.current_time()
            self._answers = deque(each for each in self._answers if each[0] <= arrived)
        self._bell.unpark_all()

    def look(self) -> None:
        """Check the connection, and wake the reader."""
        self._look()
        self._bell.unpark_all()

    def publish(self, changes: Sequence[Event]) -> None:
        """Send the changes of the newest revision to the watchers of their keys."""
        revision = changes[0].mod_revision
        for watcher in self._watchers.values():
            if watcher.since <= revision:
                self._send(watcher, changes, revision)

    def _look(self) -> float:
        """Check the connection, and do what is due; return the time of the next check."""
        now = trio.current_time()
        if self._epoch != self._faults.epoch:
            self.fail(Unavailable("watch at the in-memory etcd: the connection was lost"))
        if self._faults.is_stalled:
            self._stalled_since = min(self._stalled_since, now)
            dead = self._stalled_since + self._silence
            if dead <= now:
                self.fail(Unavailable("watch at the in-memory etcd: it does not answer"))
            return dead
        self._stalled_since = math.inf
        while self._requests:
            self._requests.popleft()()
        moments = [self._answers[0][0]] if self._answers else []
        for watcher in self._watchers.values():
            if watcher.request.progress_notify:
                if watcher.last_sent + PROGRESS_INTERVAL <= now:
                    watcher.last_sent = now
                    progress = WatchResponse(
                        watcher.request.watch_id, self._engine.keyspace.revision, 0
                    )
                    self._answer(progress)
                    moments.append(now)
                moments.append(watcher.last_sent + PROGRESS_INTERVAL)
        return min(moments, default=math.inf)

    def _arrived(self, now: float) -> list[WatchResponse]:
        found: list[WatchResponse] = []
        if self._failure is not None or not self._faults.is_stalled:
            while self._answers and self._answers[0][0] <= now:
                found.append(self._answers.popleft()[1])
        return found

    def _request(self, request: Callable[[], None]) -> None:
        self._requests.append(request)
        self.look()

    def _answer(self, response: WatchResponse) -> None:
        if self._failure is not None:
            return
        stamped = msgspec.structs.replace(response, cluster_id=self._engine.cluster_id)
        self._answers.append((trio.current_time() + self._faults.latency, stamped))
        self._bell.unpark_all()

    def _create(self, request: WatchCreate) -> None:
        revision = self._engine.keyspace.revision
        if refusal := self._faults.watch_refusal or self._refusal(request):
            self._answer(
                WatchResponse(-1, revision, 0, created=True, canceled=True, cancel_reason=refusal)
            )
            return
        self._used_ids.add(request.watch_id)
        self._answer(WatchResponse(request.watch_id, revision, 0, created=True))
        since = request.start_revision or revision + 1
        if since < self._engine.keyspace.compacted:
            self._answer(
                WatchResponse(
                    request.watch_id,
                    0,
                    0,
                    canceled=True,
                    compact_revision=self._engine.keyspace.compacted,
                )
            )
            return
        watcher = _Watcher(request, since, trio.current_time())
        self._watchers[request.watch_id] = watcher
        past = [
            event
            for event in self._engine.keyspace.since(since)
            if contains(request.keys, event.key)
        ]
        revisions = groupby(past, key=attrgetter("mod_revision"))
        groups = [list(changes) for _, changes in revisions]
        for begin in range(0, len(groups), MOST_REVISIONS):
            batch = groups[begin : begin + MOST_REVISIONS]
            self._send(watcher, [event for group in batch for event in group], revision)

    def _refusal(self, request: WatchCreate) -> str:
        """The text with which etcd refuses a request; empty if it accepts it."""
        start, end = request.keys
        if end not in {b"", b"\0"} and start >= end:
            return "mvcc: watcher range is empty"
        if request.watch_id in self._used_ids:
            return "mvcc: duplicate watch ID provided on the WatchStream"
        return ""

    def _cancel(self, watch_id: int) -> None:
        # A watcher that ended by itself also keeps its id until it is cancelled.
        if watch_id in self._used_ids:
            self._used_ids.discard(watch_id)
            self._watchers.pop(watch_id, None)
            self._answer(WatchResponse(watch_id, self._engine.keyspace.revision, 0, canceled=True))

    def _send(self, watcher: _Watcher, changes: Iterable[Event], revision: int) -> None:
        request = watcher.request
        events = [event for event in changes if contains(request.keys, event.key)]
        if not events:
            return
        watcher.last_sent = trio.current_time()
        if request.prev_kv:
            events = [self._with_previous(event) for event in events]
        parts = list(_fragments(events))
        for part in parts:
            fragment = part is not parts[-1]
            self._answer(WatchResponse(request.watch_id, revision, 0, part, fragment=fragment))

    def _with_previous(self, event: Event) -> Event:
        previous = self._engine.keyspace.at(event.key, event.mod_revision - 1)
        return msgspec.structs.replace(event, prev_kv=previous)


def _fragments(events: list[Event]) -> Iterable[list[Event]]:
    """Divide events into messages of limited size, with at least one event each."""
    part: list[Event] = []
    size = 0
    for event in events:
        previous = 0 if event.prev_kv is None else len(event.prev_kv.value)
        length = 2 * len(event.key) + len(event.value) + previous + _EVENT_OVERHEAD
        if part and size + length >= FRAGMENT_BYTES:
            yield part
            part, size = [], 0
        part.append(event)
        size += length
    yield part
