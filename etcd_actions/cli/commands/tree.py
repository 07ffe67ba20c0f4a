"""``etcd-actions tree``: the actions of a run, each below its parent."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from operator import itemgetter

import msgspec

from etcd_actions._internal.quoting import quoted
from etcd_actions.cli.commands.list_actions import Filter, Selection, warn_undecodable
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.action_tree import TreeLine, TreeRow, build_forest
from etcd_actions.cli.formats.rows import ActionRow, as_text
from etcd_actions.cli.formats.standard_output import chosen_format, print_result
from etcd_actions.cli.keys import find_run
from etcd_actions.cli.options import CommonOptions
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.paging import open_pages


class Tree(msgspec.Struct, frozen=True):
    """A run in one namespace, project and domain; its actions depth first."""

    namespace: str
    project: str
    domain: str
    actions: list[TreeRow]


class Trees(msgspec.Struct, frozen=True):
    """The JSON output, which is flat: many readers of JSON cannot nest as deep as actions."""

    run: str
    revision: int
    trees: list[Tree]


async def show_tree(common: CommonOptions, run: str, output: str | None = None) -> int:
    """Print the actions of ``<run>`` or ``<project>/<domain>/<run>``, at one revision.

    Each project, domain and namespace with a run of the name has a tree of its own.
    """
    form = chosen_format(output, elsewhere="json")
    selected = _filter(run)
    name = selected.run or ""
    selection = Selection(common.prefix, selected, None)
    groups: defaultdict[tuple[str, str, str], list[tuple[int, ActionRow]]] = defaultdict(list)
    async with common.open_etcd() as etcd:
        ranges, revision = await find_run(etcd, common.prefix, common.namespace, name)
        for keys in ranges:
            async with open_pages(etcd, keys, revision=revision) as pages:
                async for page in pages:
                    for created, row in selection.actions(page):
                        groups[row.project, row.domain, row.namespace].append((created, row))
    trees: list[Tree] = []
    drawn: list[list[TreeLine]] = []
    for (project, domain, namespace), found in sorted(groups.items()):
        rows = [row for _, row in sorted(found, key=itemgetter(0))]
        drawn.append(build_forest(rows, name))
        actions = [line.row for line in drawn[-1] if line.row is not None]
        trees.append(Tree(namespace, project, domain, actions))
    if trees:
        print_result(
            form,
            [row for tree in trees for row in tree.actions],
            Trees(name, revision, trees),
            lambda: b"\n".join(map(_table, trees, drawn)),
        )
    warn_undecodable(selection.undecodable, shown=False)
    if not trees:
        print_message(f"{run}: no such run below {as_text(common.prefix)}")
        return ExitCode.NOT_FOUND
    return ExitCode.OK


def _filter(text: str) -> Filter:
    parts = text.split("/")
    if not all(parts) or len(parts) not in (1, 3):
        raise ConfigError(f"{quoted(text)} is no run: give its name, or <project>/<domain>/<run>")
    if len(parts) == 1:
        return Filter(run=text)
    project, domain, run = parts
    return Filter(project=project, domain=domain, run=run)


def _table(tree: Tree, lines: list[TreeLine]) -> bytes:
    from etcd_actions.cli.formats.action_tables import TreeTable  # noqa: PLC0415 (rich is slow to import)

    phases = Counter(row.phase for row in tree.actions)
    count = len(tree.actions)
    title = (
        f"{tree.project}/{tree.domain}/{tree.actions[0].run} in namespace {tree.namespace}: "
        f"{count} action{'' if count == 1 else 's'} "
        f"({', '.join(f'{number} {phase}' for phase, number in phases.most_common())})"
    )
    return TreeTable(sys.stdout, title, lines).format_tree()
