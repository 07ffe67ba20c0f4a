"""The states of a run's actions, one line each, as ``submit`` and ``attach`` print them."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import msgspec

from etcd_actions._internal.quoting import printable
from etcd_actions.cli.formats.standard_output import Write
from etcd_actions.model import Phase


class ActionState(NamedTuple):
    """The state of an action of a run."""

    action: str
    phase: Phase
    attempts: int
    error: str
    short_name: str = ""


class ProgressPrinter:
    """Prints each state once, with the seconds since the start of the command.

    Args:
        write: Writes to standard output.
        form: ``table`` or ``jsonl``.
    """

    def __init__(self, write: Write, form: str) -> None:
        self._write = write
        self._form = form
        self._started = time.monotonic()
        self._printed: dict[str, tuple[Phase, int]] = {}

    def is_new(self, state: ActionState) -> bool:
        """Whether :meth:`state` would print a state."""
        return state.phase is not Phase.UNSPECIFIED and self._printed.get(state.action) != (
            state.phase,
            state.attempts,
        )

    def state(self, state: ActionState) -> None:
        """Print a state, unless it was printed."""
        if not self.is_new(state):
            return
        name = state.action
        self._printed[name] = (state.phase, state.attempts)
        seconds, phase = round(time.monotonic() - self._started, 3), state.phase.name
        if self._form == "jsonl":
            row: dict[str, object] = {"seconds": seconds, "action": name, "phase": phase}
            rest = {"name": state.short_name, "attempt": state.attempts, "error": state.error}
            self._write(_line(row | {key: value for key, value in rest.items() if value}))
            return
        error = f"  {state.error.splitlines()[0]}" if state.error else ""
        attempt = f" (attempt {state.attempts})" if state.attempts > 1 else ""
        line = f"{seconds:8.3f}  {name:<26}{state.short_name:<16} {phase}{attempt}{error}"
        self._write(f"{printable(line)}\n".encode())

    def result(self, value: Any) -> None:
        """Print the result of the run."""
        if self._form == "jsonl":
            self._write(_line({"result": value}))
        else:
            self._write(f"result: {json.dumps(value, indent=2)}\n".encode())


def _line(row: object) -> bytes:
    """A row as JSON; text of a task that is not Unicode has escapes."""
    try:
        return msgspec.json.encode(row) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"
