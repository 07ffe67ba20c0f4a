"""docs/architecture.md lists the boundaries that there are."""

from __future__ import annotations

import re
from pathlib import Path

from tests.boundaries.table import BOUNDARIES

ROOT = Path(__file__).parent.parent.parent
# Where a boundary is made, by its kind or by a constant that holds it.
_MADE = re.compile(
    r"\b(?:unit|caught|park|count|keep)\(\s*\"(\w+)\"|\bkeep, \"(\w+)\"|^UNIT\b[^=]*= \"(\w+)\"",
    re.MULTILINE,
)


def _documented() -> set[str]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition("## Containment\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    return {unit for row in rows for unit in re.findall(r"`(\w+)`", row)}


def test_every_boundary_is_in_the_architecture() -> None:
    sources = [path.read_text() for path in (ROOT / "etcd_actions").rglob("*.py")]
    made = {name for source in sources for found in _MADE.findall(source) for name in found if name}
    assert made
    assert made - _documented() == set()


def test_every_boundary_of_the_line_is_in_the_architecture() -> None:
    assert {boundary.unit for boundary in BOUNDARIES} - _documented() == set()
