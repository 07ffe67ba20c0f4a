"""Rows about the command line: processor time of a command, from its start to its end."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from etcd_actions.model import DEFAULT_KEY_PREFIX
from scripts.bench.processes import command_cost, etcd_server
from scripts.bench.results import OURS, Figures
from scripts.bench.setting import Setting, Take
from scripts.bench.writer import Work
from scripts.bench.writing import do

_TIMES = 5
_LISTED = 100
_BARE = (sys.executable, "-c", "pass")
_PROGRAM = str(Path(sys.executable).with_name("etcd-actions"))


@contextmanager
def version(setting: Setting) -> Iterator[Take]:
    """A row: a command that does nothing."""
    with tempfile.TemporaryDirectory(dir=setting.directory) as name:
        yield _against_python([_PROGRAM, "--version"], Path(name))


@contextmanager
def listing(setting: Setting) -> Iterator[Take]:
    """A row: a command that lists 100 actions."""
    with tempfile.TemporaryDirectory(dir=setting.directory) as name:
        directory = Path(name)
        with etcd_server(setting.etcd, directory) as server:
            work = Work(
                name="fill",
                target=server.address,
                count=_LISTED - 1,
                prefix=DEFAULT_KEY_PREFIX.decode(),
            )
            do(work, directory)
            command = [_PROGRAM, "list", "--endpoints", server.address]
            yield _against_python(command, directory)


def _against_python(command: list[str], directory: Path) -> Callable[[str], Figures]:
    def take(side: str) -> Figures:
        chosen: Any = command if side == OURS else _BARE
        costs = [command_cost(chosen, directory / "command.log") for _ in range(_TIMES)]
        return {
            "cpu_ms": median(cpu for cpu, _ in costs),
            "ms": median(took for _, took in costs),
        }

    return take
