"""The figures behind docs/scaling.md: their file, docs/scaling.json, and the tables in the page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from scripts.bench.processes import ROOT

DOCUMENT = ROOT / "docs" / "scaling.md"
FIGURES = ROOT / "docs" / "scaling.json"


class Cost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cost of one action over its life. Bytes are those of keys and values.

    Attributes:
        writes: Puts and deletions, until all of it is removed.
        requests: Proposals of raft that these were sent in.
        written_bytes: Bytes of the puts.
        object_keys: Keys of the ended action that expire with its object.
        object_bytes: Bytes of these.
        record_keys: Keys of the ended action that stay with the record of its run.
        record_bytes: Bytes of these.
        etcd_cpu_ms: Processor time of etcd.
        service_cpu_ms: Processor time of the service.
        worker_cpu_ms: Processor time of the worker, which its tasks call; without the task's.
    """

    writes: float
    requests: float
    written_bytes: float
    object_keys: float
    object_bytes: float
    record_keys: float
    record_bytes: float
    etcd_cpu_ms: float
    service_cpu_ms: float
    worker_cpu_ms: float


class Costs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The costs of runs.

    Attributes:
        run: Of a run that has its root only.
        child: Of each other action.
        page_factor: Bytes of etcd's database in use, for each byte of keys and values.
        follow_us: Processor time of a process, in microseconds, to follow one change.
    """

    run: Cost
    child: Cost
    page_factor: float
    follow_us: float


def read_figures(path: Path = FIGURES) -> dict[str, Any]:
    """All kept figures, by what measured them."""
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return figures


def keep_figures(name: str, figures: object, path: Path = FIGURES) -> None:
    """Keep the figures of one measurement."""
    kept = read_figures(path) | {name: msgspec.to_builtins(figures)}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def read_costs(path: Path = FIGURES) -> Costs:
    """The kept costs.

    Raises:
        msgspec.ValidationError: A field is missing, unknown, or no number.
        KeyError: They were never measured.
    """
    return msgspec.convert(read_figures(path)["costs"], Costs)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def replace_block(name: str, text: str, document: Path = DOCUMENT) -> None:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: The page does not have these marks once.
    """
    before = document.read_text()
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    after, count = pattern.subn(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", before)
    if count != 1:
        raise ValueError(f"{document} has the marks of {name} {count} times")
    document.write_text(after)
