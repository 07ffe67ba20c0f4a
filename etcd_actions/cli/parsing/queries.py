"""The flags of watch, list, get, tree and doctor, which show actions and etcd."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from etcd_actions.cli.flags import command
from etcd_actions.cli.number_types import COUNT
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.output_options import FORMATS, output_option
from etcd_actions.cli.parsing.filters import label_option, parse_labels, phase_option
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import BACKEND, COMMON


@command(example="etcd-actions watch -o table")
@output_option("table", "wide", "name", "jsonl", elsewhere="jsonl")
@click.option("--prev-kv", is_flag=True, help="Request the value of a deleted key from etcd.")
@with_settings(BACKEND)
def watch(common: CommonOptions, *, output: str | None, prev_kv: bool) -> int:
    """Show every change of the actions.

    First the state, then SYNCED, then the changes, until a signal. Without --endpoints or
    ETCDCTL_ENDPOINTS it uses the running embedded etcd, else 127.0.0.1:2379. It waits for an
    unavailable etcd. jsonl has one object a line.
    """
    from etcd_actions.cli.commands.watch import watch_until_signal  # noqa: PLC0415

    return run_async(watch_until_signal, common, output, prev_kv)


@command("list", example="etcd-actions list --run r1 --phase FAILED -o wide")
@click.option("--run", metavar="RUN", help="Only the actions of this run.")
@click.option("--project", metavar="NAME", help="Only this project.")
@click.option("--domain", metavar="NAME", help="Only this domain.")
@phase_option("actions")
@click.option("--parent", metavar="ACTION", help="Only children of this action.")
@label_option("Only actions whose object has this label; may be given several times.")
@click.option("--unrecorded", is_flag=True, help="Only actions that are not recorded.")
@click.option("--limit", type=COUNT, metavar="N", help="The most actions.")
@click.option("-w", "--watch", is_flag=True, help="Then show each action that changes.")
@output_option(*FORMATS, elsewhere="jsonl")
@with_settings(BACKEND)
def list_(
    common: CommonOptions,
    *,
    phases: tuple[str, ...],
    labels: tuple[str, ...],
    limit: int | None,
    watch: bool,
    output: str | None,
    **fields: Any,
) -> int:
    """Show the existing actions.

    All are read at one revision, in the order of their keys. With several flags, an action must
    match all of them. jsonl has one object a line; json is one document, with the revision and the
    actions. A value that is not a TaskAction is shown as such; with a filter it is omitted, and
    standard error has the number of such values.
    """
    from etcd_actions.cli.commands.list_actions import Filter, list_actions  # noqa: PLC0415

    selected = Filter(phases=frozenset(phases), labels=parse_labels(labels), **fields)
    return run_async(
        partial(list_actions, common, selected, output=output, limit=limit, watch=watch)
    )


@command(example="etcd-actions get r1/train -o yaml")
@click.argument("actions", metavar="ACTION...", nargs=-1, required=True)
@click.option("-w", "--watch", is_flag=True, help="Then show each change of them.")
@output_option(*FORMATS, "details", elsewhere="json")
@with_settings(BACKEND)
def get(common: CommonOptions, *, actions: tuple[str, ...], watch: bool, output: str | None) -> int:
    """Show actions in full.

    An ACTION is RUN/ACTION, the object's name (<run>-a0), <namespace>/<name>, or
    <project>/<domain>/<run>/<action>; RUN alone is its root. json is an object with the key,
    etcd's revisions and, in the field object, the stored object unchanged; for several ACTIONs it
    is an array. jsonl has one object a line.
    """
    from etcd_actions.cli.commands.get import get_actions  # noqa: PLC0415

    return run_async(get_actions, common, actions, output, watch)


@command(example="etcd-actions tree r1")
@click.argument("run", metavar="RUN")
@output_option(*FORMATS, elsewhere="json")
@with_settings(BACKEND)
def tree(common: CommonOptions, *, run: str, output: str | None) -> int:
    """Show the actions of a run as a tree.

    RUN is its name, or <project>/<domain>/<run>; each project with a run of the name has a tree.
    TIME is the duration of an action, or its age. An action whose parent is missing is below a
    line for that parent. json is flat, since many readers of JSON cannot nest as deep as actions:
    it has the actions of a tree depth first, each with its depth. jsonl has one action a line.
    """
    from etcd_actions.cli.commands.tree import show_tree  # noqa: PLC0415

    return run_async(show_tree, common, run, output)


@command(example="etcd-actions doctor --endpoints 10.0.0.5:2379")
@output_option("table", "jsonl", "json", elsewhere="jsonl")
@with_settings(COMMON)
def doctor(common: CommonOptions, *, output: str | None) -> int:
    """Examine etcd, and show problems and their remedies.

    It examines each endpoint and member, permissions, space, history, clocks and the stored
    values, changes nothing, and ends in limited time. A finding has a severity (ok, note,
    warning, error), a stable id, the observation, its meaning, and a remedy. The worst one
    determines the exit code: 0 for nothing worse than a note.
    """
    from etcd_actions.cli.commands.doctor import examine_etcd  # noqa: PLC0415

    return run_async(examine_etcd, common, output)
