"""Line charts as SVG, written by hand: for docs/, without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _GAP = 720, 130, 34
_LEFT, _RIGHT, _TOP = 70, 20, 22
_TICKS = 4


class Line(NamedTuple):
    """One chart: what it shows, and the points, as times in seconds and values."""

    title: str
    unit: str
    points: Sequence[tuple[float, float]]
    verdict: str = ""


def charts(lines: Sequence[Line], title: str) -> str:
    """All charts below each other, over one time."""
    height = _TOP + 14 + len(lines) * (_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="16" font-size="13" fill="#222222">{escape(title)}</text>',
    ]
    end = max((at for line in lines for at, _ in line.points), default=1.0) or 1.0
    for number, line in enumerate(lines):
        parts += _chart(line, _TOP + 14 + number * (_HEIGHT + _GAP), end)
    return "\n".join((*parts, "</svg>", ""))


def _chart(line: Line, top: float, end: float) -> list[str]:
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - 24
    most = _ceiling(max((value for _, value in line.points), default=1.0))
    floor = top + 16 + height

    def x(at: float) -> float:
        return _LEFT + at / end * width

    def y(value: float) -> float:
        return floor - value / most * height

    head = f"{line.title}, {line.unit}" if line.unit else line.title
    parts = [f'<text x="{_LEFT}" y="{top + 8:.1f}" fill="#222222">{escape(head)}</text>']
    if line.verdict:
        parts.append(
            f'<text x="{_WIDTH - _RIGHT}" y="{top + 8:.1f}" text-anchor="end" '
            f'fill="#666666">{escape(line.verdict)}</text>'
        )
    for tick in range(_TICKS + 1):
        value = most * tick / _TICKS
        parts += [
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            'stroke="#dddddd"/>',
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" '
            f'fill="#666666">{value:g}</text>',
        ]
    for tick in range(_TICKS + 1):
        at = end * tick / _TICKS
        parts.append(
            f'<text x="{x(at):.1f}" y="{floor + 14:.1f}" text-anchor="middle" '
            f'fill="#666666">{at:.0f} s</text>'
        )
    points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in line.points)
    parts.append(f'<polyline points="{points}" fill="none" stroke="#1f5fa8" stroke-width="1.2"/>')
    return parts


def _ceiling(value: float) -> float:
    """A round number that is not below a value."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value)
