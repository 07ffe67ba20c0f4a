"""From times and counts to a table."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

BASELINE = "grpcio"
SUBJECT = "etcd-actions"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one reader did in one round.

    Attributes:
        scenario: The load.
        reader: The reader's name.
        round: The number of the round.
        sent: Events that etcd acknowledged, or objects to list.
        seen: Events or objects that reached the reader's handler.
        planned_rate: Events a second that were to be sent; 0 for as many as go.
        rate: Events a second that the generator achieved.
        refused: Events that etcd refused; it does when its backlog is too long.
        late_p99_ms: How late the generator was, against its schedule.
        late_max_ms: The latest.
        put_p50_ms: From put to etcd's answer.
        put_p99_ms: From put to etcd's answer.
        load_cpu_us: The generator's CPU for each event.
        cpu_us: The reader's CPU for each event that it saw.
        p50_ms: From put to handler.
        p99_ms: From put to handler.
        max_ms: From put to handler.
        lag_s: From the last acknowledged put to the last event seen.
        backlog: The most events acknowledged and not yet seen.
        disordered: Events that came after a later one of their key, or twice.
        stale: Keys whose last state was not seen.
        rss: Peak, in bytes.
        list_s: From connecting to the last object of a list.
        start_s: From the start of the process to the last object of a list.
        notes: What the reader says about itself.
        failed: Why there is no measurement.
    """

    scenario: str
    reader: str
    round: int
    sent: int = 0
    seen: int = 0
    planned_rate: float = 0.0
    rate: float = 0.0
    refused: int = 0
    late_p99_ms: float = 0.0
    late_max_ms: float = 0.0
    put_p50_ms: float = 0.0
    put_p99_ms: float = 0.0
    load_cpu_us: float = 0.0
    cpu_us: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    lag_s: float = 0.0
    backlog: int = 0
    disordered: int = 0
    stale: int = 0
    rss: int = 0
    list_s: float = 0.0
    start_s: float = 0.0
    notes: dict[str, object] | None = None
    failed: str = ""

    @property
    def fell_behind(self) -> bool:
        """Whether the time was up before the last state of every key was seen."""
        return bool(self.stale) or (self.scenario == "list" and self.seen < self.sent)


@dataclass(frozen=True)
class Times:
    """When a reader saw events, and when they were sent; in the order seen."""

    seen: array[int]
    sent: array[int]

    @classmethod
    def read(cls, path: Path, skip: int) -> Times:
        """From a reader's file, without the first ``skip`` events."""
        both = longs(path)
        count = len(both) // 2
        return cls(both[skip:count], both[count + skip :])

    def latencies_ms(self) -> tuple[float, float, float]:
        """The median, the 99th percentile and the maximum."""
        latencies = sorted(seen - sent for seen, sent in zip(self.seen, self.sent, strict=True))
        if not latencies:
            return 0.0, 0.0, 0.0
        count = len(latencies)
        return (
            latencies[count // 2] / 1e6,
            latencies[count * 99 // 100] / 1e6,
            latencies[-1] / 1e6,
        )

    def backlog(self, acks: Iterable[int], batch: int) -> int:
        """The most events that were acknowledged and not yet seen."""
        most, seen, acked = 0, 0, 0
        for ack in acks:
            acked += batch
            while seen < len(self.seen) and self.seen[seen] <= ack:
                seen += 1
            most = max(most, acked - seen)
        return most


def longs(path: Path) -> array[int]:
    """A file of 64-bit integers."""
    result = array("q")
    result.frombytes(path.read_bytes())
    return result


def table(scenario: str, measurements: Sequence[Measurement]) -> str:
    """Markdown: one line for each reader, medians over the rounds."""
    header, line = _LIST if scenario == "list" else _WATCH
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    failures = []
    for reader in dict.fromkeys(one.reader for one in measurements):
        rounds = [one for one in measurements if one.reader == reader and not one.failed]
        failures += [
            f"{one.reader}, round {one.round}: {one.failed}"
            for one in measurements
            if one.reader == reader and one.failed
        ]
        if rounds:
            rows.append([reader, *line(rounds, measurements)])
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n\n".join([text, *failures])


def verdicts(scenario: str, measurements: Sequence[Measurement]) -> list[str]:
    """For each target of ``scenario``, whether the medians of etcd-actions reach it."""
    rounds = [one for one in measurements if one.reader == SUBJECT and not one.failed]
    if not rounds:
        return []
    lines = []
    for name, value, limit, unit in _TARGETS.get(scenario, ()):
        measured = median(value(one) for one in rounds)
        verdict = "reached" if measured <= limit else "**not reached**"
        lines.append(f"- {name} ≤ {limit:g} {unit}: {measured:.3g} {unit}, {verdict}")
    if lines and any(one.fell_behind for one in rounds):
        lines.append("- but it fell behind, and a lagging reader looks cheap")
    short = median(one.rate - 0.98 * one.planned_rate for one in rounds) < 0
    if lines and short:
        lines.append("- but the load was less than planned: see put/s achieved")
    return lines


_Value = Callable[[Measurement], float]

_TARGETS: dict[str, tuple[tuple[str, _Value, float, str], ...]] = {
    "batch": (("CPU an event", lambda one: one.cpu_us, 20, "µs"),),
    "1000": (
        ("put → handler p50", lambda one: one.p50_ms, 0.8, "ms"),
        ("put → handler p99", lambda one: one.p99_ms, 4, "ms"),
    ),
    "8000": (
        ("put → handler p99", lambda one: one.p99_ms, 100, "ms"),
        ("CPU an event", lambda one: one.cpu_us, 100, "µs"),
    ),
    "list": (
        ("first list to the last handler", lambda one: one.list_s, 2.5, "s"),
        ("peak memory", lambda one: one.rss / 1e6, 250, "MB"),
    ),
}

_WATCH_HEADER = [
    "reader",
    "events seen / sent",
    "put/s achieved",
    "refused",
    "late p99 ms",
    "put p50 / p99 ms",
    "CPU µs/event",
    f"CPU / {BASELINE}",
    "p50 ms",
    "p99 ms",
    "max ms",
    f"p99 / {BASELINE}",
    "final lag s",
    "most behind",
    "disordered",
    "last state unseen",
    "RSS MB",
]
_LIST_HEADER = [
    "reader",
    "objects",
    "s to the last",
    f"s / {BASELINE}",
    "s from process start",
    "CPU µs/object",
    f"CPU / {BASELINE}",
    "RSS MB",
]


def _watch_line(rounds: list[Measurement], all_: Sequence[Measurement]) -> list[str]:
    seen, sent = median(one.seen for one in rounds), median(one.sent for one in rounds)
    behind = sum(one.fell_behind for one in rounds)
    events = f"{seen:,.0f} / {sent:,.0f}"
    if behind:
        events = f"**fell behind** ({behind} of {len(rounds)}): {events}"
    lag = f"{_median(rounds, lambda one: one.lag_s):.3f}"
    return [
        events,
        f"{_median(rounds, lambda one: one.rate):,.0f}",
        f"{_median(rounds, lambda one: one.refused):,.0f}",
        f"{_median(rounds, lambda one: one.late_p99_ms):.2f}",
        f"{_median(rounds, lambda one: one.put_p50_ms):.2f}"
        f" / {_median(rounds, lambda one: one.put_p99_ms):.2f}",
        f"{_median(rounds, lambda one: one.cpu_us):.1f}",
        _ratio(rounds, all_, lambda one: one.cpu_us),
        f"{_median(rounds, lambda one: one.p50_ms):.2f}",
        f"{_median(rounds, lambda one: one.p99_ms):.2f}",
        f"{max(one.max_ms for one in rounds):.1f}",
        _ratio(rounds, all_, lambda one: one.p99_ms),
        f"> {lag}" if behind else lag,
        f"{_median(rounds, lambda one: one.backlog):,.0f}",
        str(sum(one.disordered for one in rounds)),
        str(sum(one.stale for one in rounds)),
        f"{_median(rounds, lambda one: one.rss / 1e6):.0f}",
    ]


def _list_line(rounds: list[Measurement], all_: Sequence[Measurement]) -> list[str]:
    seen, sent = median(one.seen for one in rounds), median(one.sent for one in rounds)
    return [
        f"{seen:,.0f} / {sent:,.0f}",
        f"{_median(rounds, lambda one: one.list_s):.2f}",
        _ratio(rounds, all_, lambda one: one.list_s),
        f"{_median(rounds, lambda one: one.start_s):.2f}",
        f"{_median(rounds, lambda one: one.cpu_us):.1f}",
        _ratio(rounds, all_, lambda one: one.cpu_us),
        f"{_median(rounds, lambda one: one.rss / 1e6):.0f}",
    ]


def _median(rounds: Iterable[Measurement], value: _Value) -> float:
    return median(value(one) for one in rounds)


def _ratio(rounds: list[Measurement], all_: Sequence[Measurement], value: _Value) -> str:
    """The median of the ratios to the baseline of the same round."""
    bases = {one.round: value(one) for one in all_ if one.reader == BASELINE and not one.failed}
    ratios = [value(one) / bases[one.round] for one in rounds if bases.get(one.round)]
    return f"{median(ratios):.1f}" if ratios else "-"


_WATCH = (_WATCH_HEADER, _watch_line)
_LIST = (_LIST_HEADER, _list_line)
