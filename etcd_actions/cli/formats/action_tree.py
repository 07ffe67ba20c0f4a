"""A run's actions as a tree, whatever their parents claim. No I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from etcd_actions.cli.formats.rows import ActionRow
from etcd_actions.model import ROOT_ACTION

# A deeper level shows only the last of its guides: a chain of thousands must not take
# megabytes of them.
_WIDEST_GUIDES = 120


class TreeRow(ActionRow, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An action of a tree; those below it follow it."""

    depth: int
    """Number of its ancestors that are there."""
    missing_parent: bool = False
    """Its parent is not there."""
    cycle: bool = False
    """It is its own ancestor, say the objects: the tree is cut here."""


class Place(NamedTuple):
    """A line of a drawn tree: an action, or without a row a parent that is missing."""

    label: str
    row: TreeRow | None


@dataclass(eq=False)
class _Node:
    row: ActionRow
    parent: _Node | None = None
    children: list[_Node] = field(default_factory=list)
    placed: bool = False


def grow(rows: Sequence[ActionRow], run: str) -> list[Place]:
    """Order the actions of a run depth first, with what to draw before each name.

    The root comes first, children in the order of ``rows``. Behind it come those whose parent
    is missing, below a place for that, and last those that are their own ancestors.

    Args:
        rows: The actions.
        run: The run's name, by which the root may be called, too.
    """
    nodes = [_Node(row) for row in rows]
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
    places: list[Place] = []
    for root in roots:
        _place(places, [root], "")
    for name, children in sorted(orphans.items()):
        places.append(Place(f"{name} (missing)", None))
        _place(places, children, "", below=True)
    for node in nodes:
        if not node.placed:
            _place(places, [_in_cycle(node)], "")
    return places


def _place(places: list[Place], tops: list[_Node], guides: str, *, below: bool = False) -> None:
    """Add nodes and all below them; with ``below`` they hang from the place before."""
    waiting = _hung(tops, guides, 0) if below else [(top, "", "", 0) for top in tops]
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
        places.append(Place(f"{head}{row.action}{notes}", row))
        waiting += _hung(node.children, guides, depth + 1)


def _hung(children: list[_Node], guides: str, depth: int) -> list[tuple[_Node, str, str, int]]:
    """Children with their guides, the last one first."""
    if len(guides) > _WIDEST_GUIDES:
        guides = "…" + guides[1 - _WIDEST_GUIDES :]
    hung = [(child, guides + "├─ ", guides + "│  ", depth) for child in children]
    if hung:
        hung[-1] = (children[-1], guides + "└─ ", guides + "   ", depth)
    return hung[::-1]


def _in_cycle(node: _Node) -> _Node:
    """The ancestor of a node without a root at which its line begins to repeat."""
    seen: set[int] = set()
    while id(node) not in seen and node.parent is not None:
        seen.add(id(node))
        node = node.parent
    return node
