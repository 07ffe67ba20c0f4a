"""What the client writes and how fast; prints a markdown table for each part.

    .venv/bin/python -m scripts.bench.actions --help

Each round has an etcd of its own and measures all sides in turns, beginning with another one
each; figures are medians of the rounds, ratios medians of the ratios within a round. What else
runs on the machine shows in both sides.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import trio

from etcd_actions.etcd import open_etcd
from etcd_actions.etcd.api import Etcd
from etcd_actions.testing import EtcdProcess
from scripts.bench import changes, marks, told

_QUOTA_BYTES = 8 << 30


class Part(NamedTuple):
    """Something that is measured.

    Attributes:
        title: What one of the things is that are counted.
        sides: The ways to do it, by name; the first is what the others are compared with.
            Each takes a connection, a prefix and a number of things, and returns how many
            of these it did a second, and microseconds of this process's CPU for each.
    """

    title: str
    sides: Mapping[str, Callable[[Etcd, bytes, int], Awaitable[tuple[float, float]]]]


PARTS = {
    "enqueues": Part("enqueue", changes.ENQUEUES),
    "reports": Part("status report", changes.REPORTS),
    "marks": Part("mark", marks.SIDES),
    "told": Part("mark with a run service", told.SIDES),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the client's writes.")
    parser.add_argument("--part", action="append", choices=PARTS, help="only these (all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each figure (3)")
    parser.add_argument("--count", type=int, default=10_000, help="writes a side (10000)")
    parser.add_argument("--directory", type=Path, help="where etcd's data goes (TMPDIR)")
    given = parser.parse_args(arguments)
    for name in ("rounds", "count"):
        if getattr(given, name) < 1:
            parser.error(f"--{name}: {getattr(given, name)} is below 1")
    for name in given.part or PARTS:
        part = PARTS[name]
        rounds = [
            one_round(part, number, given.count, given.directory) for number in range(given.rounds)
        ]
        print("\n".join(table(part, rounds)), flush=True)


def one_round(
    part: Part, number: int, count: int, directory: Path | None
) -> dict[str, tuple[float, float]]:
    """All sides, on one etcd."""
    names = list(part.sides)
    first = number % len(names)
    measured = {}
    flags = [f"--quota-backend-bytes={_QUOTA_BYTES}"]
    with (
        tempfile.TemporaryDirectory(dir=directory) as data,
        EtcdProcess(Path(data), flags=flags) as etcd,
    ):
        for at, name in enumerate(names[first:] + names[:first]):
            prefix = f"/bench/{at}/".encode()
            measured[name] = trio.run(_connected, etcd.endpoint, part.sides[name], prefix, count)
    return measured


async def _connected(
    endpoint: str,
    side: Callable[[Etcd, bytes, int], Awaitable[tuple[float, float]]],
    prefix: bytes,
    count: int,
) -> tuple[float, float]:
    async with open_etcd(endpoint) as etcd:
        return await side(etcd, prefix, count)


def table(part: Part, rounds: Sequence[dict[str, tuple[float, float]]]) -> list[str]:
    lines = [f"| {part.title} | 1/s | µs CPU | rate, x the first |", "| --- | --- | --- | --- |"]
    base = next(iter(part.sides))
    for name in part.sides:
        rate, cpu = (median(one[name][at] for one in rounds) for at in (0, 1))
        ratio = median(one[name][0] / one[base][0] for one in rounds)
        lines.append(f"| {name} | {rate:,.0f} | {cpu:.1f} | {ratio:.1f} |")
    return lines


if __name__ == "__main__":
    main()
