"""Rows about what the library writes: enqueues, status reports, marks, aborts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.bench.processes import child, etcd_server
from scripts.bench.results import OURS, Figures
from scripts.bench.setting import Setting, Take
from scripts.bench.watching import plain_puts, preload
from scripts.bench.writer import Work

_SECONDS = 120.0


def against_plain_puts(work: str, together: int, count: int) -> Callable[[Setting], Any]:
    """A row: some work of the library, and puts of a cheap client, equally many in flight."""

    @contextmanager
    def prepared(setting: Setting) -> Iterator[Take]:
        def take(side: str) -> Figures:
            total = setting.scaled(count)
            if side == OURS:
                return on_own_etcd(setting, work, total, together)
            return plain_puts(setting, together, total)

        yield take

    return prepared


@contextmanager
def marking(setting: Setting) -> Iterator[Take]:
    """A row: marks by the processor, and one a transaction."""
    count = setting.scaled(10_000)

    def take(side: str) -> Figures:
        name = "marks" if side == OURS else "marks-alone"
        return on_own_etcd(setting, name, count, 64)

    yield take


@contextmanager
def aborting(setting: Setting) -> Iterator[Take]:
    """A row: an abort, and as many plain puts in transactions."""
    count = setting.scaled(10_000)

    def take(side: str) -> Figures:
        if side == OURS:
            return on_own_etcd(setting, "abort", count, 1)
        with tempfile.TemporaryDirectory(dir=setting.directory) as name:
            directory = Path(name)
            with etcd_server(setting.etcd, directory) as server:
                return {"seconds": preload(server, directory, count, small=True)}

    yield take


def on_own_etcd(setting: Setting, name: str, count: int, together: int) -> Figures:
    """Some work of a process of the library, on an empty etcd."""
    with tempfile.TemporaryDirectory(dir=setting.directory) as place:
        directory = Path(place)
        with etcd_server(setting.etcd, directory) as server:
            work = Work(name=name, target=server.address, count=count, together=together)
            return do(work, directory)


def do(work: Work, directory: Path) -> Figures:
    """Some work of a process of the library."""
    with child("writer", work.to_json(), directory / "writer.log") as writer:
        result = writer.receive("result", _SECONDS)
    return {name: float(value) for name, value in result.items() if name != "event"}
