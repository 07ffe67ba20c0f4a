"""Sizes and speeds of the three stored forms, on captured values; prints markdown tables.

    .venv/bin/python -m scripts.bench.codecs

Each figure is the best of some rounds, in which the codecs take turns: what else runs on the
machine can only add to a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence

from etcd_actions.codecs import CODEC_NAMES, Codec, codec_named
from etcd_actions.model import LABEL_TERMINAL_STATUS_RECORDED
from tests.data.captured import PUTS

ROUND_SECONDS = 0.02
OPERATIONS = ("summarize", "decode", "release", "encode", "decode_tree", "encode_tree")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the stored forms of TaskActions.")
    parser.add_argument("--rounds", type=int, default=25, help="rounds for each figure (25)")
    rounds = parser.parse_args(arguments).rounds
    if rounds < 1:
        parser.error(f"--rounds: {rounds} is below 1")
    codecs = [codec_named(name) for name in CODEC_NAMES]
    values = chosen()
    print(sizes(codecs, values))
    for value in values:
        print()
        print(speeds(codecs, value, rounds))


def chosen() -> list[bytes]:
    """A new object, one in the middle of its life, and one with a large task template."""
    ordered = sorted((event.value for event in PUTS), key=len)
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]]


def sizes(codecs: Sequence[Codec], values: Sequence[bytes]) -> str:
    lines = [
        "| bytes | " + " | ".join(codec.name for codec in codecs) + " |",
        "| --- " * (len(codecs) + 1) + "|",
    ]
    everything = [event.value for event in PUTS]
    for name, group in [
        *((f"a value of {len(value):,}", [value]) for value in values),
        (f"all {len(everything)} captured values", everything),
    ]:
        lengths = [sum(len(value) for value in encoded(codec, group)) for codec in codecs]
        lines.append(f"| {name} | " + " | ".join(cells(lengths, "{:,}")) + " |")
    return "\n".join(lines)


def encoded(codec: Codec, values: Sequence[bytes]) -> Iterator[bytes]:
    json = codec_named("json")
    return (codec.encode_tree(json.decode_tree(value)) for value in values)


def speeds(codecs: Sequence[Codec], value: bytes, rounds: int) -> str:
    lines = [
        f"| µs, a value of {len(value):,} bytes | "
        + " | ".join(codec.name for codec in codecs)
        + " |",
        "| --- " * (len(codecs) + 1) + "|",
    ]
    calls = [operations(codec, value) for codec in codecs]
    for operation in OPERATIONS:
        best = fastest([call[operation] for call in calls], rounds)
        lines.append(f"| `{operation}` | " + " | ".join(cells(best, "{:.1f}")) + " |")
    return "\n".join(lines)


def operations(codec: Codec, json_value: bytes) -> dict[str, Callable[[], object]]:
    (value,) = encoded(codec, [json_value])
    tree, action = codec.decode_tree(value), codec.decode(value)
    # Not the mark: some of the values have it already.
    label = LABEL_TERMINAL_STATUS_RECORDED + "-2"
    return {
        "summarize": lambda: codec.summarize(value),
        "decode": lambda: codec.decode(value),
        "release": lambda: codec.release(value, label, "true", None),
        "encode": lambda: codec.encode(action),
        "decode_tree": lambda: codec.decode_tree(value),
        "encode_tree": lambda: codec.encode_tree(tree),
    }


def fastest(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The best time of each in µs."""
    counts = [max(1, int(ROUND_SECONDS / len(calls) / seconds(call, 20))) for call in calls]
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for at, (call, count) in enumerate(zip(calls, counts, strict=True)):
            best[at] = min(best[at], seconds(call, count) * 1e6)
    return best


def seconds(call: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def cells(figures: Sequence[float], form: str) -> list[str]:
    """Each figure with its ratio to the first."""
    first = figures[0]
    return [form.format(first)] + [
        f"{form.format(figure)} ({figure / first:.2f} x)" for figure in figures[1:]
    ]


if __name__ == "__main__":
    main()
