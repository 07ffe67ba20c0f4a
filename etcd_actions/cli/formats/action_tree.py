"""The actions of a run as a tree, also if their parents are missing or form a cycle. No I/O."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import msgspec

from etcd_actions.cli.formats.natural_order import NaturalKey, natural_key
from etcd_actions.cli.formats.rows import ActionRow
from etcd_actions.errors import DecodeError
from etcd_actions.model import ROOT_ACTION
from etcd_actions.model.taskaction import parse_time

# A deeper level has only the last of its guides: a chain of thousands has megabytes of guides.
_WIDEST_GUIDES = 120


class TreeRow(ActionRow, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An action of a tree; the actions below it follow it."""

    depth: int
    """Number of its existing ancestors."""
    missing_parent: bool = False
    """Its parent does not exist."""
    cycle: bool = False
    """By the parents in the objects it is its own ancestor: here the tree begins with it."""


class TreeLine(NamedTuple):
    """A line of a drawn tree: an action, or a missing parent, which has no row."""

    label: str
    row: TreeRow | None


@dataclass(eq=False)
class _Node:
    row: ActionRow
    parent: _Node | None = None
    children: list[_Node] = field(default_factory=list)
    placed: bool = False


def build_forest(rows: Sequence[ActionRow], run: str) -> list[TreeLine]:
    """Order the actions of a run depth first, with guides, the lines of the tree, before names.

    The root comes first. Siblings are in the order of their creation, and those of one second in
    the order of their names, with the numbers in these by value, as on the page. Then come the
    actions whose parent is missing, below a line for that; last those that are their own
    ancestors. The root can also have the name of the run.
    """
    nodes = [_Node(row) for row in sorted(rows, key=_order)]
    by_name: dict[str, _Node] = {}
    for node in nodes:
        by_name.setdefault(node.row.action or "", node)
    for name, other in ((ROOT_ACTION, run), (run, ROOT_ACTION)):
        if name not in by_name and other in by_name:
            by_name[name] = by_name[other]
    roots: list[_Node] = []
    orphans: defaultdict[str, list[_Node]] = defaultdict(list)
    for node in nodes:
        parent = node.row.parent
        if parent is None:
            roots.append(node)
        elif parent in by_name:
            node.parent = by_name[parent]
            node.parent.children.append(node)
        else:
            orphans[parent].append(node)
    roots.sort(key=lambda root: root.row.action not in (ROOT_ACTION, run))
    lines: list[TreeLine] = []
    for root in roots:
        _layout(lines, [root])
    for name, children in sorted(orphans.items(), key=lambda each: natural_key(each[0])):
        lines.append(TreeLine(f"{name} (missing)", None))
        _layout(lines, children, below=True)
    for node in nodes:
        if not node.placed:
            _layout(lines, [_in_cycle(node)])
    return lines


def _order(row: ActionRow) -> tuple[float, NaturalKey]:
    """The sort key of siblings; those without a readable time of creation come last."""
    created: datetime | None = None
    with suppress(DecodeError):
        created = parse_time(row.created_at, "created_at")
    milliseconds = math.inf if created is None else round(created.timestamp() * 1000)
    return milliseconds, natural_key(row.action or "")


def _layout(lines: list[TreeLine], tops: list[_Node], *, below: bool = False) -> None:
    """Add lines for nodes and all below them; with ``below`` as children of the last line."""
    waiting = _with_guides(tops, "", 0) if below else [(top, "", "", 0) for top in tops]
    while waiting:
        node, head, guides, depth = waiting.pop()
        if node.placed:
            continue
        node.placed = True
        row = TreeRow(
            **msgspec.structs.asdict(node.row),
            depth=depth,
            missing_parent=below and depth == 0,
            cycle=depth == 0 and node.parent is not None,
        )
        notes = " (its own ancestor)" if row.cycle else ""
        lines.append(TreeLine(f"{head}{row.action}{notes}", row))
        waiting += _with_guides(node.children, guides, depth + 1)


def _with_guides(
    children: list[_Node], guides: str, depth: int
) -> list[tuple[_Node, str, str, int]]:
    """Children with their guides, the last one first."""
    if len(guides) > _WIDEST_GUIDES:
        guides = "…" + guides[1 - _WIDEST_GUIDES :]
    placed = [(child, guides + "├─ ", guides + "│  ", depth) for child in children]
    if placed:
        placed[-1] = (children[-1], guides + "└─ ", guides + "   ", depth)
    return placed[::-1]


def _in_cycle(node: _Node) -> _Node:
    """The first node that appears twice on the way up from a node below a cycle."""
    seen: set[int] = set()
    while id(node) not in seen and node.parent is not None:
        seen.add(id(node))
        node = node.parent
    return node
