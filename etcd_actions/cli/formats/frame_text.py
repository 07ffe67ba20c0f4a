"""A frame of ``top`` for a person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import IO

from etcd_actions._internal.quoting import printable
from etcd_actions.cli.formats.action_tables import phase_text
from etcd_actions.cli.formats.frames import Frame
from etcd_actions.cli.formats.run_table import RunTable
from etcd_actions.cli.formats.table import Cell, Line, Terminal

_HOME_AND_CLEAR = b"\x1b[H\x1b[J"
_TITLE_WIDTH = 14
# The last line would scroll the screen.
_LINES_KEPT_FREE = 1


def frame_text(frame: Frame, file: IO[str], *, is_live: bool) -> bytes:
    """The lines of a frame.

    Args:
        frame: The frame.
        file: The output.
        is_live: Whether it replaces the screen, and is cut to it.
    """
    terminal = Terminal(file)
    lines: list[Line] = [[Cell(f"etcd-actions top  {frame.at}", "bold")]]
    total = sum(frame.runs.values())
    runs: Line = [Cell(f"{'Runs':<{_TITLE_WIDTH}}", "dim"), Cell(str(total))]
    for phase, number in sorted(frame.runs.items(), key=lambda each: -each[1]):
        runs += [Cell(f"  {number} "), phase_text(phase)]
    lines.append(runs)
    if frame.rates:
        rates = "  ".join(f"{name} {rate:.1f}/s" for name, rate in frame.rates.items())
        lines.append([Cell(f"{'Rates':<{_TITLE_WIDTH}}", "dim"), Cell(rates)])
    for name, text in frame.cluster.items():
        lines.append([Cell(f"{name:<{_TITLE_WIDTH}}", "dim"), Cell(printable(text))])
    if frame.note:
        lines.append([Cell(printable(frame.note), "yellow")])
    lines.append([])
    if frame.active:
        lines += RunTable(file, datetime.now(UTC)).lines(frame.active)
    else:
        lines.append([Cell("no run is active", "dim")])
    if not is_live:
        return terminal.render(lines, wrap=True)
    return _HOME_AND_CLEAR + terminal.render(lines[: terminal.height - _LINES_KEPT_FREE])
