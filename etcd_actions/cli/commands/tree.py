"""``etcd-actions tree``: the actions of a run, each below its parent."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict

import msgspec

from etcd_actions._internal.quoting import quoted
from etcd_actions.cli.commands.list_actions import Filter, Selection, warn_undecodable
from etcd_actions.cli.exit_codes import ExitCode, say
from etcd_actions.cli.formats.action_tree import Place, TreeRow, grow
from etcd_actions.cli.formats.rows import ActionRow, as_text
from etcd_actions.cli.formats.standard_output import chosen_format, standard_output
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
    """What ``tree`` prints as JSON.

    It is flat: many readers of JSON cannot nest as deep as actions can.
    """

    run: str
    revision: int
    trees: list[Tree]


async def show_tree(common: CommonOptions, run: str, output: str | None = None) -> int:
    """Print the actions of a run, at one revision.

    Runs of the same name in several projects, domains or namespaces are told apart.

    Args:
        common: The settings.
        run: The run's name, or ``<project>/<domain>/<run>``.
        output: ``table``, ``json`` or ``jsonl``; None for what fits standard output.
    """
    form = chosen_format(output, elsewhere="json")
    wanted = _wanted(run)
    name = wanted.run or ""
    selection = Selection(common.prefix, wanted, None)
    groups: defaultdict[tuple[str, str, str], list[tuple[int, ActionRow]]] = defaultdict(list)
    async with common.open_etcd() as etcd:
        ranges, revision = await find_run(etcd, common.prefix, common.namespace, name)
        for keys in ranges:
            async with open_pages(etcd, keys, revision=revision) as pages:
                async for page in pages:
                    for created, row in selection.actions(page):
                        group = (row.project, row.domain, row.namespace)
                        groups[group].append((created, row))
    drawn: list[tuple[Tree, list[Place]]] = []
    for (project, domain, namespace), found in sorted(groups.items()):
        # In the order in which they came to be.
        rows = [row for _, row in sorted(found, key=lambda pair: pair[0])]
        places = grow(rows, name)
        actions = [place.row for place in places if place.row is not None]
        drawn.append((Tree(namespace, project, domain, actions), places))
    with standard_output() as write:
        if form == "jsonl":
            for tree, _ in drawn:
                write(msgspec.json.Encoder().encode_lines(tree.actions))
        elif form == "json" and drawn:
            trees = Trees(name, revision, [tree for tree, _ in drawn])
            write(msgspec.json.format(msgspec.json.encode(trees), indent=2) + b"\n")
        elif form == "table":
            write(b"\n".join(_table(name, tree, places) for tree, places in drawn))
    warn_undecodable(selection.undecodable, shown=False)
    if not drawn:
        say(f"{run}: no such run below {as_text(common.prefix)}")
        return ExitCode.NOT_FOUND
    return ExitCode.OK


def _wanted(text: str) -> Filter:
    parts = text.split("/")
    if not all(parts) or len(parts) not in (1, 3):
        raise ConfigError(f"{quoted(text)} is no run: give its name, or <project>/<domain>/<run>")
    if len(parts) == 1:
        return Filter(run=text)
    project, domain, run = parts
    return Filter(project=project, domain=domain, run=run)


def _table(run: str, tree: Tree, places: list[Place]) -> bytes:
    # Imports rich, which is slow.
    from etcd_actions.cli.formats.table import TreeTable  # noqa: PLC0415

    phases = Counter(row.phase for row in tree.actions)
    count = len(tree.actions)
    title = (
        f"{tree.project}/{tree.domain}/{run} in namespace {tree.namespace}: "
        f"{count} action{'' if count == 1 else 's'} "
        f"({', '.join(f'{number} {phase}' for phase, number in phases.most_common())})"
    )
    return TreeTable(sys.stdout, title, places).format_tree()
