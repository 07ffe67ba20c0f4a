"""``etcd-actions tree``: the actions of a run, each below its parent."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from typing import TypeAlias

import msgspec

from etcd_actions.cli.commands.list_actions import Filter, RowSelection, warn_undecodable
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.formats.action_tree import TreeLine, TreeRow, build_forest
from etcd_actions.cli.formats.rows import ActionRow
from etcd_actions.cli.formats.standard_output import chosen_format, print_rows
from etcd_actions.cli.names import Name, find_run, nearest, parse_name
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.stored_objects import StoredObjects, open_stored_objects
from etcd_actions.errors import NotFound
from etcd_actions.model import canonical_name

Groups: TypeAlias = defaultdict[tuple[str, str, str], list[ActionRow]]
"""Actions by project, domain and namespace."""


class Tree(msgspec.Struct, frozen=True):
    """A run in one namespace, project and domain; its actions depth first."""

    namespace: str
    project: str
    domain: str
    actions: list[TreeRow]


class Trees(msgspec.Struct, frozen=True):
    """The JSON output. It is flat, since many readers of JSON cannot nest as deep as actions."""

    run: str
    revision: int
    trees: list[Tree]


async def show_tree(common: CommonOptions, run: str, output: str | None = None) -> int:
    """Print the actions of a run, at one revision; see :mod:`etcd_actions.cli.names` for its name.

    Each project, domain and namespace with a run of the name has a tree of its own.
    """
    form = chosen_format(output, elsewhere="json")
    parsed = parse_name(run)
    groups: Groups = defaultdict(list)
    async with open_stored_objects(common) as stored:
        selected = Filter(
            run=parsed.run or parsed.object,
            project=parsed.project or None,
            domain=parsed.domain or None,
        )
        selection = await _read(stored, selected, groups)
        if not _has_action(groups, parsed):
            # The text may be the name of an action, or have a namespace.
            found = await find_run(stored.names, run)
            selected = Filter(run=found.run, project=found.project, domain=found.domain)
            groups.clear()
            selection = await _read(stored, selected, groups)
            if not groups:
                raise NotFound(f"{run}: its objects have expired: see etcd-actions describe {run}")
            if parsed.project and not _has_action(groups, parsed):
                near = await nearest(stored.names, run)
                raise NotFound(f"{run}: there is no such run or action{near}")
        name, revision = selected.run or "", stored.revision
    trees: list[Tree] = []
    drawn: list[list[TreeLine]] = []
    for (project, domain, namespace), rows in sorted(groups.items()):
        drawn.append(build_forest(rows, name))
        actions = [line.row for line in drawn[-1] if line.row is not None]
        trees.append(Tree(namespace, project, domain, actions))
    print_rows(
        form,
        [row for tree in trees for row in tree.actions],
        Trees(name, revision, trees),
        lambda wide: b"\n".join(
            _table(tree, lines, wide) for tree, lines in zip(trees, drawn, strict=True)
        ),
    )
    warn_undecodable(selection.undecodable, shown=False)
    return ExitCode.OK


async def _read(stored: StoredObjects, selected: Filter, groups: Groups) -> RowSelection:
    """Read the selected actions into groups; the result has the number of undecodable values."""
    selection = RowSelection(stored, selected, None)
    run = Name(selected.project or "", selected.domain or "", selected.run or "")
    async with stored.pages(run) as pages:
        async for page in pages:
            for row in selection.actions(page):
                groups[row.project, row.domain, row.namespace].append(row)
    return selection


def _has_action(groups: Groups, name: Name) -> bool:
    """Whether the groups have the action of a parsed name, or for a run any action."""
    if not name.action:
        return bool(groups)
    named = canonical_name(name.run, name.action)
    rows = (row for each in groups.values() for row in each)
    return any(canonical_name(name.run, row.action or "") == named for row in rows)


def _table(tree: Tree, lines: list[TreeLine], wide: bool) -> bytes:
    from etcd_actions.cli.formats.action_tables import TreeTable  # noqa: PLC0415 (rich is slow to import)

    phases = Counter(row.phase for row in tree.actions)
    count = len(tree.actions)
    title = (
        f"{tree.project}/{tree.domain}/{tree.actions[0].run} in namespace {tree.namespace}: "
        f"{count} action{'' if count == 1 else 's'} "
        f"({', '.join(f'{number} {phase}' for phase, number in phases.most_common())})"
    )
    return TreeTable(sys.stdout, title, lines, wide=wide).format_tree()
