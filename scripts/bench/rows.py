"""The rows of the table: what each is to reach, and what stands in the way where it does not.

The bounds are those of docs/performance.md. A row is measured by the function of its name in
:data:`SCENARIOS`; ``OBSTACLES`` is the reason next to a goal that is not reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scripts.bench import executor, service_rows, starting, watching, writing
from scripts.bench.results import FLOOR, GO, Goal, Row
from scripts.bench.setting import Setting
from scripts.bench.watching import CHILDREN, READERS, SUBSCRIBERS, Load

_READER = "bare grpcio reader"
_EQUAL = 1.1


def _cpu(limit: float, *, times: bool = True, against: str = FLOOR) -> Goal:
    return Goal(
        figure="cpu_us",
        label="CPU µs an event",
        relation="≤",
        limit=limit,
        times=times,
        against=against,
    )


def _latency(percent: int, limit: float, *, against: str = FLOOR) -> Goal:
    return Goal(
        figure=f"p{percent}_ms",
        label=f"p{percent} ms",
        relation="≤",
        limit=limit,
        times=True,
        form=",.2f",
        against=against,
    )


def _rate(
    limit: float, label: str = "a second", *, times: bool = False, against: str = FLOOR
) -> Goal:
    return Goal(
        figure="rate",
        label=label,
        relation="≥",
        limit=limit,
        times=times,
        form=",.0f",
        against=against,
    )


def _seconds(limit: float, *, times: bool = False, against: str = FLOOR) -> Goal:
    return Goal(
        figure="seconds",
        label="seconds",
        relation="≤",
        limit=limit,
        times=times,
        form=",.2f",
        against=against,
    )


def _memory(limit: float) -> Goal:
    return Goal(figure="rss_mb", label="peak memory MB", relation="≤", limit=limit, form=",.0f")


def _cpu_ms(limit: float, label: str) -> Goal:
    return Goal(figure="cpu_ms", label=label, relation="≤", limit=limit, form=",.2f")


_WAKING = (
    "A single event is a turn of trio's loop, its protobuf message, the facts decoded from 3 KB of"
    " JSON, and their place in the index."
)
_QUEUES = (
    "The complete object is decoded for a subscriber, and its task has a turn of the loop of its"
    " own."
)
_FRONT = (
    "Of a call most is the way in: HTTP, the adapter of the RPC framework, messages in Python. The"
    " library's own part is its floor."
)

OBSTACLES = {
    "watch-200": _WAKING,
    "watch-1000": _WAKING,
    "watch-2000": _WAKING,
    "watch-8000": "Reader, load and etcd share cores that are busy: p99 is the wait for one of"
    " them, and what the reader spends the others lack.",
    "subscriber-1000": _QUEUES,
    "subscriber-3000": "Under this load the wait is for a core; what the reader spends counts"
    " twice, because etcd and the load lack it.",
    "batched": "Each transaction comes as one message for each key range that is watched. Of the"
    " rest, decoding and remembering an object take about 6 µs, taking messages apart 3.",
    "marks": "The floor only writes what it has already, 64 in flight. Ours lists the objects,"
    " decodes them, makes two calls of the run service for each, writes the mark and receives its"
    " event. Of its processor time a quarter is the list and the events, a fifth the write of the"
    " mark, a tenth each the calls, the decoding and the groups, the rest the outbox and trio's"
    " loop. The goal was set when the floor, too, went through grpcio.",
    "enqueue-256": "Each enqueue checks the request, builds the object and encodes it in Python;"
    " etcd has the other core.",
    "enqueue-1": "One at a time is one round trip, with etcd's fsync in it, and two turns of the"
    " group that the write is put into.",
    "status-64": "A report changes the cached object and writes 3 KB by a compare-and-swap.",
    "service-connect": _FRONT,
    "service-grpc": _FRONT + " gRPC adds its own HTTP/2 frames and headers.",
    "leaf": "The action and its children are read in one transaction; the rest is the stream, by"
    " the RPC framework and HTTP/2.",
    "list": "Of 19 µs of CPU an object 9 decode it and note it in the index, 3 receive and"
    " parse it; the rest is the comparison of the list.",
    "catch-up": "etcd sends a watcher that lags 1,000 revisions at a time, and reads its history"
    " for each of these batches. The reader's CPU, 11 µs a revision, was a tenth of the time on a "
    "loaded machine; 16 ranges instead of 4 make etcd read less often.",
    "abort": "Each descendant is read, changed and written, 100 in a transaction.",
    "version": "The interpreter's start, then imports that no command can do without.",
    "list-100": "The interpreter's start, the imports of the transport, and a connection.",
    "executor": "After the fork there is the program's import, and the SDK's client and"
    " controller.",
    "keys": "What is remembered of a key is a packed summary in a dict; the dict and the key count."
    " More stays resident than is allocated: a list leaves holes that the allocator keeps.",
}

_TABLE: tuple[tuple[str, str, str, tuple[Goal, ...], Callable[[Setting], Any]], ...] = (
    *(
        (
            f"watch-{rate}",
            f"Single puts at {rate:,}/s, put → handler",
            _READER,
            (
                _cpu(_EQUAL, against=GO),
                _latency(50, _EQUAL, against=GO),
                _latency(99, _EQUAL, against=GO),
            ),
            watching.watch(Load(rate=rate), READERS),
        )
        for rate in (200, 1_000, 2_000)
    ),
    (
        "subscriber-1000",
        "Single puts at 1,000/s, put → subscriber",
        _READER,
        (_cpu(1.35), _latency(50, 1.3)),
        watching.watch(Load(rate=1_000, keys=CHILDREN, per_run=CHILDREN), SUBSCRIBERS),
    ),
    (
        "subscriber-3000",
        "Single puts at 3,000/s, put → subscriber",
        _READER,
        (_latency(50, 0.3),),
        watching.watch(Load(rate=3_000, keys=CHILDREN, per_run=CHILDREN), SUBSCRIBERS),
    ),
    (
        "watch-8000",
        "Single puts at 8,000/s, put → handler",
        _READER,
        (_cpu(1.7), _latency(99, 1)),
        watching.watch(Load(rate=8_000), READERS),
    ),
    (
        "batched",
        "Transactions of 100 puts, as many as go, put → handler",
        _READER,
        (_rate(0.95, "events/s", times=True), _cpu(22, times=False)),
        watching.watch(Load(batch=100), READERS),
    ),
    (
        "marks",
        "Marks, with a run service that accepts at once",
        "one a transaction, 64 in flight",
        (_rate(7, "marks/s", times=True),),
        writing.marking,
    ),
    (
        "enqueue-256",
        "Library: Enqueue, 256 in flight",
        "plain puts of 3 KB, 256 in flight",
        (_rate(3_000),),
        writing.against_plain_puts("enqueue", 256, 10_000),
    ),
    (
        "enqueue-1",
        "Library: Enqueue, one at a time",
        "plain puts of 3 KB, one at a time",
        (_rate(600),),
        writing.against_plain_puts("enqueue", 1, 3_000),
    ),
    (
        "status-64",
        "Library: status report, 64 in flight",
        "plain puts of 3 KB, 64 in flight",
        (_rate(2_400),),
        writing.against_plain_puts("status", 64, 10_000),
    ),
    (
        "service-connect",
        "Service: Enqueue by Connect, 16 in flight",
        "the library's, 16 in flight",
        (_rate(1_000), _cpu_ms(1.0, "CPU ms a call")),
        service_rows.enqueuing("connect"),
    ),
    (
        "service-grpc",
        "Service: Enqueue by gRPC, 16 in flight",
        "the library's, 16 in flight",
        (_rate(800), _cpu_ms(1.2, "CPU ms a call")),
        service_rows.enqueuing("grpc"),
    ),
    (
        "leaf",
        "Service: opening a stream on a leaf of a run of 10,000",
        "on a leaf of a run of 3",
        (_cpu_ms(3, "CPU ms a stream"),),
        service_rows.leaf,
    ),
    (
        "list",
        "First list of 100,000 objects, to the last handler",
        _READER,
        (_seconds(2), _memory(200), _seconds(0.5, times=True, against=GO), _memory(120)),
        watching.listing,
    ),
    (
        "catch-up",
        "Catch-up of 100,000 revisions, after a restart",
        _READER,
        (
            _rate(45_000, "revisions/s"),
            _rate(1, "revisions/s", times=True, against=GO),
            _memory(200),
        ),
        watching.catching_up,
    ),
    (
        "abort",
        "Abort of 10,000 descendants",
        "plain puts, 100 in a transaction",
        (_seconds(1.5),),
        writing.aborting,
    ),
    (
        "version",
        "`etcd-actions --version`",
        "`python -c pass`",
        (_cpu_ms(150, "CPU ms"),),
        starting.version,
    ),
    (
        "list-100",
        "`etcd-actions list` on 100 actions",
        "`python -c pass`",
        (_cpu_ms(300, "CPU ms"),),
        starting.listing,
    ),
    (
        "executor",
        "Executor: tasks one after the other",
        "`import flyte` in a new process",
        (
            Goal(
                figure="cpu_s", label="CPU s a task", relation="≤", limit=0.12, form=",.3f"
            ),
        ),
        executor.sequential,
    ),
    (
        "keys",
        "One event at 1,000/s, in stores of 1,000 keys to the largest",
        _READER,
        (
            Goal(
                figure="growth", label="CPU, largest / 1,000 keys", relation="≤", limit=1.2,
                form=",.2f",
            ),
            Goal(
                figure="allocated_key", label="bytes a key, allocated", relation="≤", limit=250,
                form=",.0f",
            ),
            Goal(
                figure="resident_key", label="bytes a key, resident after the list", relation="≤",
                limit=250, form=",.0f",
            ),
        ),
        watching.keys,
    ),
)  # fmt: skip

ROWS = {
    name: Row(name=name, title=title, floor=floor, goals=goals, obstacle=OBSTACLES[name])
    for name, title, floor, goals, _ in _TABLE
}
SCENARIOS = {name: scenario for name, _, _, _, scenario in _TABLE}
