"""From results to Markdown: the table, and docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from scripts.bench.results import FLOOR, GO, OURS, Result, lines, load_doubts, median_of
from scripts.bench.rows import ROWS

_INTRODUCTION = """\
# Performance

Written by `scripts/bench/run --write`, from what it measured;
[scripts/bench](../scripts/bench/README.md) says how it measures. Each goal was set for two cores
that client, load and etcd share. *Floor* is what the row's third column names, measured in the same
round as *ours*; figures are medians over the rounds, and *ratio* is the median of the ratios to the
floor of the same round, which says more than a figure: machines drift. A bound with x is one of
that ratio. The bare grpcio reader only receives and counts. The reader in Go uses clientv3 and
decodes each object into a struct, as an informer does; where Go is not installed the grpcio reader
stands in.
"""
_GO_READER = "Go's clientv3, decoding"
_LOADS = """\
## The loads

What the generator achieved, how late it was against its schedule, how long etcd took to answer it,
and what it cost; and what the reader saw. A reader may leave out states of an action that a newer
one replaced, never the last.
"""


def page(results: Mapping[str, Result]) -> str:
    """All of docs/performance.md."""
    parts = [_INTRODUCTION, table(results, ROWS), *_sections(results)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def table(results: Mapping[str, Result], names: Iterable[str]) -> str:
    """One line for each goal of the rows of these names."""
    text = [
        "| what | figure | compared with | goal | floor | ours | ratio | |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in map(ROWS.__getitem__, names):
        result = results.get(row.name)
        title, before = row.title, ""
        doubtful = result is not None and bool(
            result.doubts or load_doubts(result.rounds) or result.failures
        )
        for goal, against, floor, ours, ratio, verdict in lines(row, result):
            compared = _GO_READER if against == GO else row.floor
            shown = "" if compared == before else compared
            cells = [_cell(value, goal.form) for value in (floor, ours)]
            doubt = " [(doubts)](#doubts)" if doubtful and ours is not None else ""
            text.append(
                f"| {title} | {goal.label} | {shown} | {goal.text} | {' | '.join(cells)} "
                f"| {_cell(ratio, ',.2f')} | {verdict}{doubt} |"
            )
            title, before = "", compared
    return "\n".join(text) + "\n"


def summary(result: Result) -> str:
    """One row in a line, while a run continues."""
    row = ROWS[result.row]
    if result.skipped:
        return f"{row.name}: skipped, {result.skipped}"
    said = [
        f"{goal.label} {_cell(ours, goal.form)}"
        + (f" ({ratio:,.2f} x)" if ratio is not None else "")
        + f" {goal.text}: {verdict.replace('*', '')}"
        for goal, _, _, ours, ratio, verdict in lines(row, result)
    ]
    return f"{row.name}: " + "; ".join(said) + f" [{result.seconds:.0f} s]"


def _sections(results: Mapping[str, Result]) -> Iterator[str]:
    missed = list(_missed(results))
    if missed:
        yield "## What stands in the way\n"
        yield "\n".join(missed)
    loads = list(_loads(results))
    if loads:
        yield _LOADS
        yield (
            "| row | side | put/s planned | achieved | refused | late p99 ms | put p50 / p99 ms "
            "| CPU µs a put | seen / sent | most behind | peak memory MB |\n"
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
            + "\n".join(loads)
        )
    doubts = list(_doubts(results))
    if doubts:
        yield "## Doubts\n"
        yield "\n".join(doubts)
    if not results:
        return
    conditions = dict.fromkeys(one.conditions for one in results.values() if not one.skipped)
    yield "## Conditions\n"
    for text in conditions:
        names = [name for name, one in results.items() if one.conditions == text]
        which = "" if len(conditions) == 1 else f"{', '.join(f'`{name}`' for name in names)}: "
        yield f"- {which}{text}"


def _missed(results: Mapping[str, Result]) -> Iterator[str]:
    for name, row in ROWS.items():
        result = results.get(name)
        if result is None or result.skipped:
            continue
        labels = [
            f"{line.goal.label} {line.goal.text}"
            for line in lines(row, result)
            if "not reached" in line.verdict
        ]
        if labels:
            yield f"- **{row.title}** ({'; '.join(labels)}). {row.obstacle}"


def _loads(results: Mapping[str, Result]) -> Iterator[str]:
    for name in ROWS:
        result = results.get(name)
        if result is None:
            continue
        for side in dict.fromkeys(side for one in result.rounds for side in one):
            if median_of(result, side, "load_rate") is not None:
                yield _load(result, side)


def _load(result: Result, side: str) -> str:
    def of(figure: str, form: str = ",.0f") -> str:
        return _cell(median_of(result, side, figure), form)

    who = {FLOOR: "bare grpcio reader", OURS: "etcd-actions", GO: _GO_READER}.get(side, side)
    planned = of("load_planned")
    return (
        f"| `{result.row}` | {who} | {'as many as go' if planned == '0' else planned} "
        f"| {of('load_rate')} | {of('load_refused')} | {of('load_late_p99_ms', ',.2f')} "
        f"| {of('load_put_p50_ms', ',.2f')} / {of('load_put_p99_ms', ',.2f')} "
        f"| {of('load_cpu_us')} | {of('seen')} / {of('sent')} | {of('backlog')} "
        f"| {of('rss_mb')} |"
    )


def _doubts(results: Mapping[str, Result]) -> Iterator[str]:
    for name in ROWS:
        result = results.get(name)
        if result is not None:
            for doubt in (*result.failures, *result.doubts, *load_doubts(result.rounds)):
                yield f"- `{name}`: {doubt}"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
