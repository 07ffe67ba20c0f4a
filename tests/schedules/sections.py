"""Sections of a Markdown file, each written by a program of its own."""

from __future__ import annotations

from pathlib import Path


def put_section(path: Path, heading: str, text: str) -> None:
    """Write a section, with its heading, in the place of the one that has it, or at the end."""
    before = path.read_text().splitlines() if path.exists() else []
    kept: list[str] = []
    place: int | None = None
    inside = False
    for line in before:
        if line.startswith("## "):
            inside = line == heading
            if inside:
                place = len(kept)
        if not inside:
            kept.append(line)
    where = len(kept) if place is None else place
    above, below = kept[:where], kept[where:]
    if above and above[-1]:
        above.append("")
    lines = [*above, *text.strip().splitlines(), *([""] if below else []), *below]
    path.write_text("\n".join(lines) + "\n")
